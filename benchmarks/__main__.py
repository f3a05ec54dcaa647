"""Run the benchmarks and write the tables to ``docs/benchmarks.md``: ``python -m benchmarks``.

Every contestant trains one round in turn, then the next round begins: what else the machine does
falls on all of them alike. A ratio is taken within a round; the tables give the median over rounds
with the smallest and largest.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Before torch is imported: one thread for everybody.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from benchmarks.contestants import (
    Contestant,
    collection,
    ours,
    raw_stepping,
    single_file,
    stable_baselines3,
)
from benchmarks.settings import SETTINGS, Setting

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--only", choices=sorted(SETTINGS), help="one environment only")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the tables go")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = [options.only] if options.only else list(SETTINGS)
    parts = [_preamble(options.rounds)]
    for name in names:
        setting = SETTINGS[name]
        with tempfile.TemporaryDirectory() as folder:
            contestants = _contestants(setting, Path(folder))
            first, seconds, returns = measure(contestants, rounds=options.rounds)
        parts.append(table(setting, contestants, first, seconds, returns))
        print(parts[-1], flush=True)
    options.output.write_text("\n".join(parts), encoding="utf-8")
    print(f"written to {options.output}")
    return 0


def _contestants(setting: Setting, folder: Path) -> list[Contestant]:
    return [
        stable_baselines3(setting, seed=1, folder=folder / "sb3"),
        single_file(setting, seed=1, folder=folder / "single_file"),
        ours(setting, seed=1, folder=folder / "ours"),
        ours(setting, seed=1, folder=folder / "ours_asynchronous", asynchronous=True),
        ours(setting, seed=1, folder=folder / "ours_compiled", compile=True),
        collection(setting, seed=1, folder=folder / "collect"),
        raw_stepping(setting, seed=1),
    ]


def measure(
    contestants: Sequence[Contestant], *, rounds: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Time ``rounds`` rounds of every contestant in turn, after one that is not counted.

    Returns:
        (seconds of the round before [contestants], seconds [rounds, contestants], recent return
        of each contestant at the end).
    """
    seconds = np.zeros((rounds + 1, len(contestants)))
    for index in range(rounds + 1):
        for column, contestant in enumerate(contestants):
            started = time.perf_counter()
            contestant.run()
            seconds[index, column] = time.perf_counter() - started
            print(f"\rround {index}/{rounds}: {contestant.name:30}", end="", file=sys.stderr)
    print(file=sys.stderr)
    returns = [contestant.recent_return() for contestant in contestants]
    for contestant in contestants:
        contestant.close()
    return seconds[0], seconds[1:], returns


def table(
    setting: Setting,
    contestants: Sequence[Contestant],
    first: np.ndarray,
    seconds: np.ndarray,
    returns: Sequence[float],
) -> str:
    """A markdown section: steps per second and ratios, median (min-max) over rounds.

    ``first`` [contestants] are the seconds of the round that is not counted; it says how long
    compiling took.
    """
    steps = setting.round_iterations * setting.batch_size
    names = [contestant.name for contestant in contestants]
    baselines = [names.index(n) for n in ("Stable-Baselines3", "single-file PPO")]
    raw = names.index("raw envpool stepping")
    lines = [
        f"## {setting.title}",
        "",
        f"{setting.num_envs} environments x {setting.num_steps} steps, {setting.num_threads} "
        f"simulator thread(s), {setting.num_epochs} epochs x {setting.num_minibatches} minibatches "
        f"of {setting.minibatch_size}, learning rate {setting.learning_rate:g}, gamma "
        f"{setting.gamma}, lambda {setting.gae_lambda}; {steps:,} steps per round.",
        "",
        "| | steps/s | x SB3 | x single-file | share of raw stepping | return at the end |",
        "|---|---|---|---|---|---|",
    ]
    for column, name in enumerate(names):
        ratios = [spread(seconds[:, base] / seconds[:, column], ".2f") for base in baselines]
        share = spread(100 * seconds[:, raw] / seconds[:, column], ".0f")
        speed = spread(steps / seconds[:, column] / 1000, ".1f")
        final = "" if np.isnan(returns[column]) else f"{returns[column]:.0f}"
        lines.append(f"| {name} | {speed} k | {ratios[0]} | {ratios[1]} | {share} % | {final} |")
    compiled = names.index("embodied-rl, compiled")
    compiling = first[compiled] - np.median(seconds[:, compiled])
    lines += ["", f"Compiling took {compiling:.0f} s at the start, which is not in these figures."]
    return "\n".join([*lines, ""])


def spread(values: np.ndarray, form: str) -> str:
    """``median (min-max)``."""
    return f"{np.median(values):{form}} ({values.min():{form}}-{values.max():{form}})"


def _preamble(rounds: int) -> str:
    import envpool
    import stable_baselines3

    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Written by `make bench`; what is compared and how is in `benchmarks/README.md`.",
            f"Median (smallest-largest) of {rounds} interleaved rounds in one process. "
            f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; "
            f"Python {platform.python_version()}, torch {torch.__version__} with one thread, "
            f"envpool {envpool.__version__}, Stable-Baselines3 {stable_baselines3.__version__}.",
            "",
            "GRPO on a vision-language model against TRL: [benchmarks_vlm.md](benchmarks_vlm.md).",
            "",
        ]
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
