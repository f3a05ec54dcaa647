"""Time to a mean return of 18 in Pong: ours against Stable-Baselines3's PPO.

    python -m benchmarks.atari ours --seed 0 --minutes 30
    python -m benchmarks.atari sb3 --seed 0 --minutes 120
    python -m benchmarks.atari table

A contestant trains until the mean return of its last ``WINDOW`` whole games reaches ``TARGET``, or
its time is used up. Its folder under ``runs/benchmark_atari`` holds ``progress.jsonl`` (seconds of
training, decisions, mean return; one line per ``SLICE`` decisions) and a checkpoint: a command that
was interrupted goes on where it stood, and one that has finished does nothing. Run them one after
the other on an idle machine, each with all cores; ``table`` writes ``docs/atari_results.md``.

Ours is the recipe ``pong_ppo``. Stable-Baselines3 has the settings of its own model zoo for Atari:
NoFrameskip-v4 with its AtariWrapper, 8 environments, 4 stacked screens, Nature CNN, 128 steps, 4
epochs of minibatches of 256, learning rate 2.5e-4 and clip range 0.1 falling to 0 over 10M
decisions, entropy 0.01, value 0.5. Its environments run in ``SubprocVecEnv`` workers. Both count
decisions of 4 frames, unclipped returns of whole games, and time in ``learn`` alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, before torch is there

from embodied_rl import trainer
from embodied_rl.metrics import METRICS_FILE, read_jsonl
from embodied_rl.registry import registry

TARGET, WINDOW, SLICE = 18.0, 20, 16_384
PONG = "ale_py:PongNoFrameskip-v4"  # importing ale_py registers it, in workers also
ROOT = Path("runs/benchmark_atari")
OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "atari_results.md"
Step = Callable[[int], tuple[int, float]]
"""Train to that many decisions in all; returns (decisions so far, mean return or NaN)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.atari")
    parser.add_argument("what", choices=("ours", "sb3", "table"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="give up after this long")
    parser.add_argument("--slice", type=int, default=SLICE, help="decisions between two looks")
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args(arguments)
    if options.what == "table":
        OUTPUT.write_text(table(options.root), encoding="utf-8")
        print(table(options.root))
        return 0
    folder = options.root / f"{options.what}-seed{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    open_contestant = {"ours": ours, "sb3": stable_baselines3}[options.what]
    race(folder, open_contestant, options.seed, minutes=options.minutes, size=options.slice)
    return 0


def race(
    folder: Path,
    open_contestant: Callable[[Path, int], tuple[Step, Callable[[], object]]],
    seed: int,
    *,
    minutes: float,
    size: int,
) -> None:
    """Train in slices of ``size`` decisions; appends a line to ``progress.jsonl`` for each."""
    progress = folder / "progress.jsonl"
    lines = read_jsonl(progress) if progress.exists() else []
    spent = lines[-1]["seconds"] if lines else 0.0
    if lines and lines[-1]["return"] is not None and lines[-1]["return"] >= TARGET:
        print(f"{folder} has reached {TARGET} already")
        return
    step, close = open_contestant(folder, seed)
    decisions = lines[-1]["decisions"] if lines else 0
    try:
        while spent < 60 * minutes:
            started = time.perf_counter()
            decisions, mean = step(decisions + size)
            spent += time.perf_counter() - started
            known = None if np.isnan(mean) else mean
            with progress.open("a", encoding="utf-8") as file:
                line = {"seconds": spent, "decisions": decisions, "return": known}
                file.write(json.dumps(line) + "\n")
            print(f"{spent / 60:6.1f} min {decisions:9d} decisions, return {mean:6.2f}", flush=True)
            if mean >= TARGET:
                return
    finally:
        close()


def ours(folder: Path, seed: int) -> tuple[Step, Callable[[], object]]:
    """The recipe ``pong_ppo``, through the loop that ``embodied-rl train`` runs."""
    recipe = registry("recipes").get("pong_ppo")()
    quiet = dataclasses.replace(recipe.checkpoint, every=10**9)
    config = dataclasses.replace(recipe, seed=seed, checkpoint=quiet)
    if config.num_threads:
        import torch

        torch.set_num_threads(config.num_threads)
    session = trainer.open_session(config, folder)
    if session.checkpoints.latest() is not None:
        session.load_state_dict(trainer.newest_checkpoint(session))
        session.logger.truncate(session.iteration)

    def step(total: int) -> tuple[int, float]:
        session.config = dataclasses.replace(session.config, total_env_steps=total)
        trainer.reinforce(session)  # ends with a checkpoint
        session.config = dataclasses.replace(session.config, total_env_steps=recipe.total_env_steps)
        return session.env_steps, recent_return(folder / METRICS_FILE)

    def close() -> None:
        session.env.close()
        session.logger.close()

    return step, close


def recent_return(metrics: Path) -> float:
    """Mean return of the last ``WINDOW`` games or a few more, NaN with fewer."""
    total = games = 0.0
    for record in reversed(read_jsonl(metrics)):
        count = record.get("rollout/episodes", 0.0)
        if count:
            total += count * record["rollout/return"]
            games += count
        if games >= WINDOW:
            return total / games
    return float("nan")


def stable_baselines3(folder: Path, seed: int) -> tuple[Step, Callable[[], object]]:
    """PPO of Stable-Baselines3 with the settings of its zoo."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecTransposeImage

    env = VecTransposeImage(
        VecFrameStack(
            make_atari_env(
                "ale_py:PongNoFrameskip-v4", n_envs=8, seed=seed, vec_env_cls=SubprocVecEnv
            ),
            n_stack=4,
        )
    )
    saved = folder / "model.zip"
    horizon = 10_000_000
    model: Any = (
        PPO.load(saved, env=env, device="cpu")
        if saved.exists()
        else PPO(
            "CnnPolicy",
            env,
            n_steps=128,
            n_epochs=4,
            batch_size=256,
            learning_rate=lambda left: 2.5e-4 * left,
            clip_range=lambda left: 0.1 * left,
            vf_coef=0.5,
            ent_coef=0.01,
            seed=seed,
            device="cpu",
        )
    )

    def step(total: int) -> tuple[int, float]:
        from stable_baselines3.common.callbacks import BaseCallback

        class Stop(BaseCallback):
            """Ends ``learn`` after a slice; its schedule goes on to ``horizon``."""

            def _on_step(self) -> bool:
                return self.model.num_timesteps < total

        # learn adds the steps so far to what it is given.
        model.learn(horizon - model.num_timesteps, callback=Stop(), reset_num_timesteps=False)
        model.save(saved)
        games = [info["r"] for info in model.ep_info_buffer or []][-WINDOW:]
        mean = float(np.mean(games)) if len(games) == WINDOW else float("nan")
        return int(model.num_timesteps), mean

    return step, env.close


def table(root: Path) -> str:
    """A markdown table of what is under ``root``."""
    lines = [
        "# Atari: time to a mean return of 18 in Pong",
        "",
        "Written by `python -m benchmarks.atari table`; the contestants are described in "
        f"`benchmarks/atari.py`. Mean of the last {WINDOW} whole training games. "
        f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        "| run | minutes | decisions | decisions/s | mean return |",
        "|---|---|---|---|---|",
    ]
    for folder in sorted(path for path in root.glob("*-seed*") if path.is_dir()):
        progress = read_jsonl(folder / "progress.jsonl")
        if not progress:
            continue
        last = progress[-1]
        mean = "-" if last["return"] is None else f"{last['return']:.1f}"
        reached = mean if last["return"] and last["return"] >= TARGET else f"{mean} (not reached)"
        lines.append(
            f"| {folder.name} | {last['seconds'] / 60:.1f} | {last['decisions']:,} | "
            f"{last['decisions'] / last['seconds']:.0f} | {reached} |"
        )
    return "\n".join([*lines, ""])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
