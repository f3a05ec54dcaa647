"""Collecting with and without shards: does acting for one half overlap simulating the other?

    python -m benchmarks.shards [--rounds 7] [--recipe maniskill/pick_cube_flow_sde]

Contestants are one environment of N rows and two shards of N / 2 (``env.num_shards``), with all
cores for worker processes, and one torch thread. A round gives each of them one rollout of fixed
length in turn. The policies differ in how long they take to act: ``flow_mlp`` is the recipe's own,
``flow_transformer`` is several times slower. The table has the share of the time in which the
policy acts, and medians over rounds of the ratio of decisions per second within a round. Run it on
an idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from embodied_rl import rollout as rollouts
from embodied_rl.build import build_policy, build_training_env, policy_spec
from embodied_rl.config import Component, TrainConfig
from embodied_rl.registry import registry
from embodied_rl.seeding import torch_generator

TABLE = Path("docs/benchmarks_shards.md")
NUM_ENVS, NUM_STEPS = 64, 16
POLICIES: dict[str, dict[str, Any]] = {
    "flow_mlp": {},
    "flow_transformer": {"dim": 64, "depth": 3},
    "flow_transformer, wide": {"dim": 128, "depth": 6},
}


class Contestant:
    """One way to collect; ``round`` returns decisions per second and the share spent acting."""

    def __init__(self, config: TrainConfig, *, num_shards: int) -> None:
        env = replace(config.env, num_shards=num_shards, num_envs=NUM_ENVS)
        self.env = build_training_env(env, seed=0, autoreset=True, device="cpu")
        self.policy: Any = build_policy(config, policy_spec(self.env, env))
        self.generator = torch_generator(0, "benchmark")
        self.cursor = rollouts.start(self.env)
        self.acting = 0.0
        sample = self.policy.sample

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            output = sample(*arguments, **options)
            self.acting += time.perf_counter() - started
            return output

        self.policy.sample = timed

    def round(self) -> tuple[float, float]:
        """One rollout."""
        self.acting, started = 0.0, time.perf_counter()
        rollouts.collect(
            self.env, self.policy, self.cursor, num_steps=NUM_STEPS, generator=self.generator
        )
        seconds = time.perf_counter() - started
        return NUM_ENVS * NUM_STEPS / seconds, self.acting / seconds


def measure(config: TrainConfig, rounds: int) -> str:
    """Cells of a row: decisions/s and share of acting without shards, ratio with two."""
    contestants = [Contestant(config, num_shards=count) for count in (1, 2)]
    try:
        for contestant in contestants:
            contestant.round()
        results = [[contestant.round() for contestant in contestants] for _ in range(rounds)]
    finally:
        for contestant in contestants:
            contestant.env.close()
    rate = statistics.median(one[0] for one, _ in results)
    share = statistics.median(one[1] for one, _ in results)
    ratios = sorted(two[0] / one[0] for one, two in results)
    return (
        f"{rate:.0f} | {share:.0%} | **{statistics.median(ratios):.2f}** "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main() -> None:
    """Measure every policy and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--recipe", default="maniskill/pick_cube_flow_sde")
    options = parser.parse_args()
    recipe: TrainConfig = registry("recipes").get(options.recipe)()
    lines = [
        "# Shards",
        "",
        f"`python -m benchmarks.shards`: `{options.recipe}`, {NUM_ENVS} rows, "
        f"{len(os.sched_getaffinity(0))} cores, median of {options.rounds} rounds of {NUM_STEPS} "
        "decisions (smallest and largest ratio).",
        "",
        "| policy | decisions/s, one environment | of it acting | two shards, ratio |",
        "|---|---|---|---|",
    ]
    for name, settings in POLICIES.items():
        given = settings | {"flow": recipe.policy.resolved()["flow"]}
        policy = Component("policies", name.partition(",")[0], given)
        row = measure(replace(recipe, policy=policy), options.rounds)
        lines.append(f"| {name} | {row} |")
        print(lines[-1], flush=True)
    TABLE.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
