"""Control steps per second of ManiSkill on a CPU: its own stepping against ours.

    python -m benchmarks.maniskill [--rounds 5] [--rows 16 64] [--workers 2] [--tasks PickCube-v1]

Every contestant plays random episodes of the time limit, resets included, with state observations,
the sparse reward and the control mode of the expert. A round gives each of them one episode of all
its rows in turn, timed by CPU time (user and system, worker processes included), so that a busy
machine hurts all alike. The table has medians over rounds of steps per CPU second, and of the
ratios to raw ManiSkill within a round.

Contestants: ``raw`` is ManiSkill's own environment, one scene; ``rows`` is ours with one scene;
``together`` are N scenes stepped as one in one process; ``workers`` the vector environment over
worker processes. ``physics`` bounds them: the physics steps alone of the N scenes, under drives
that keep their targets.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before torch is imported: one thread for everybody.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from embodied_rl.envs.maniskill import make
from embodied_rl.envs.maniskill.headless import import_maniskill
from embodied_rl.envs.maniskill.scenes import SceneOptions, Scenes
from embodied_rl.envs.maniskill.tasks import CONTROL_MODES, MAX_EPISODE_STEPS, expand_tasks

TABLE = Path("docs/benchmarks_maniskill.md")
Episode = Callable[[int], int]
"""One episode of all rows from a seed on; returns control steps."""


def actions_of(steps: int, rows: int, size: int) -> Any:
    """Uniform in [-1, 1], [steps, rows, size] float32, the same for all with these numbers."""
    generator = np.random.default_rng(0)
    return generator.uniform(-1, 1, (steps, rows, size)).astype(np.float32)


def raw(task: str) -> Episode:
    """ManiSkill's environment without anything of ours around it."""
    import_maniskill()
    import gymnasium

    env: Any = gymnasium.make(
        task,
        obs_mode="state",
        reward_mode="sparse",
        control_mode=CONTROL_MODES.get(task),
        sim_backend="physx_cpu",
        render_backend="none",
    ).unwrapped
    steps = MAX_EPISODE_STEPS[task]
    actions = torch.from_numpy(actions_of(steps, 1, env.single_action_space.shape[0]))

    def episode(seed: int) -> int:
        env.reset(seed=seed)
        for action in actions:
            env.step(action)
        return steps

    return episode


def scenes(task: str, rows: int) -> tuple[Episode, Episode]:
    """``rows`` scenes in this process, and the physics of them alone."""
    together = Scenes(task, options=SceneOptions(), num_envs=rows)
    steps = MAX_EPISODE_STEPS[task]
    actions = actions_of(steps, rows, together.action_space.shape[0])
    every = np.arange(rows)

    def episode(seed: int) -> int:
        together.reset(every, seed + every)
        for action in actions:
            together.step(action)
        return steps * rows

    def physics(seed: int) -> int:
        scene = together.env.scene
        systems = [each.physx_system for each in scene.sub_scenes]
        for _ in range(steps):
            for system in systems:
                for _ in range(together.env._sim_steps_per_control):
                    system.step()
        return steps * rows

    return episode, physics


def workers(task: str, rows: int, count: int) -> tuple[Episode, list[int]]:
    """The vector environment, and the process ids of its workers."""
    env = make(
        tasks=task,
        num_envs=rows,
        seed=0,
        num_threads=count,
        backend="workers",
        autoreset=False,
        terminate_on_success=False,
    )
    steps = MAX_EPISODE_STEPS[task]
    shape = env.simulator.action_space.shape
    assert shape is not None
    actions = torch.from_numpy(actions_of(steps, rows, shape[0]))

    def episode(seed: int) -> int:
        env.reset(seed=seed)
        for action in actions:
            env.step(action)
        return steps * rows

    simulator: Any = env.simulator
    return episode, simulator.worker_pids


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of this process and of ``pids`` so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum((int(f[11]) + int(f[12])) / ticks for f in fields)


def measure(task: str, rows: Sequence[int], count: int, rounds: int) -> dict[str, list[float]]:
    """Control steps per CPU second of every contestant in every round."""
    contestants: dict[str, Episode] = {"raw": raw(task), "rows": scenes(task, 1)[0]}
    for number in rows:
        together, physics = scenes(task, number)
        contestants[f"together, {number}"] = together
        contestants[f"physics, {number}"] = physics
    contestants[f"workers, {count} x {rows[0]}"], pids = workers(task, count * rows[0], count)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, episode in contestants.items():
            before = cpu_seconds(pids)
            steps = episode(number * 1000)
            if number:  # the first round warms everything up
                rates[name].append(steps / (cpu_seconds(pids) - before))
    return rates


def table(task: str, rates: dict[str, list[float]]) -> str:
    """Markdown: median rate, and median, smallest and largest ratio to raw."""
    lines = [f"### {task}\n", "| contestant | steps per CPU second | times raw |", "|---|---|---|"]
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates["raw"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {name} | {statistics.median(values):.0f} | {spread} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maniskill", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", default=["PickCube-v1", "StackCube-v1"])
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = expand_tasks(options.tasks)
    parts = [f"# ManiSkill on a CPU\n\n{(__doc__ or '').strip()}\n\n{options.rounds} rounds.\n"]
    for task in tasks:
        parts.append(table(task, measure(task, options.rows, options.workers, options.rounds)))
        print(parts[-1], flush=True)
    options.output.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
