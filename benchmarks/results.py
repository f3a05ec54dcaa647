"""The tables of docs/results.md: trains every listed run through the command line, pools seeds.

    python -m benchmarks.results [--tables] GROUP [GROUP ...]

Runs are skipped that are in ``docs/results.jsonl`` already, so that an interrupted series goes on
where it stopped; ``--tables`` runs nothing and prints what is there. Evaluation is on the ``test``
manifest, which no setting was chosen on.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.systems import interval
from embodied_rl.configs.mixed import parts
from embodied_rl.evaluate import make_manifest
from embodied_rl.metrics import append_jsonl, read_jsonl
from embodied_rl.statistics import bootstrap_interval, wilson_interval

RECORDS = Path("docs/results.jsonl")
JOBS = 2
"""Runs side by side, each on one core."""


@dataclass(frozen=True)
class Case:
    """One row of a table: a recipe with changes, run with every seed.

    ``controls`` are options of the simulator under which the trained policy is evaluated once more.
    """

    group: str
    recipe: str
    changes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    controls: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What a user types, without the seed."""
        return " ".join(("embodied-rl train", self.recipe, *self.changes))


def demonstrations(count: int) -> tuple[str, ...]:
    """Overlay for the number of expert episodes per task."""
    return ("--imitation.episodes-per-task", str(count))


MAIN = (
    ("pick_place", 5),
    ("push", 4),
    ("peg_insert_side", 4),
    ("basketball", 5),
    ("shelf_place", 5),
)
HARD = (("pick_place", 3), ("push", 3), ("basketball", 2))
MANISKILL = (
    ("pick_cube", 8, 300_000),
    ("stack_cube", 7, 1_000_000),
    ("place_sphere", 2, 200_000),
    ("push_cube", 1, 100_000),
)
IN_WORKERS = ("maniskill", "libero")
"""Groups whose simulators run in worker processes."""
HELD_OUT = range(40, 50)
"""Initial states of every LIBERO task that its recipes do not train on."""
SAMPLERS = ("uniform", "vade_thompson", "vas_mixed")

GREY = json.dumps({"parts": parts(split="train", pictures="blank")})
UNSEEN = json.dumps({"parts": parts(split="heldout")})
"""Options of the mixture: grey pictures; pairs of colour and shape that training never shows."""
MODES = ("sampled", "greedy")
EPISODE_BY_EPISODE = ("libero", "mixed")
"""Groups whose records keep every single success."""

CASES: tuple[Case, ...] = (
    *(Case("main", f"metaworld/{t}_flow_sde", demonstrations(n)) for t, n in MAIN),
    *(Case("noise", f"metaworld/{t}_flow_noise", demonstrations(n)) for t, n in MAIN[:2]),
    *(Case("grpo", f"metaworld/{t}_grpo", demonstrations(n)) for t, n in MAIN[:2]),
    *(
        Case(
            "hard",
            f"metaworld/{t}_flow_sde",
            (*demonstrations(n), "--total-env-steps", "800000"),
        )
        for t, n in HARD
    ),
    *(
        Case(
            "mt10",
            "metaworld/mt10_flow_sde",
            (*demonstrations(3), "--evaluation.episodes", "500", "--sampler.name", name),
        )
        for name in SAMPLERS
    ),
    *(
        Case(
            "maniskill",
            f"maniskill/{t}_flow_sde",
            (*demonstrations(n), "--total-env-steps", str(steps)),
        )
        for t, n, steps in MANISKILL
    ),
    Case("libero", "libero/object_flow_sde", demonstrations(1), seeds=(0,)),
    Case("libero", "libero/spatial_flow_sde", demonstrations(4), seeds=(0,)),
    Case(
        "vqa",
        "vqa/shapes_grpo",
        ("--evaluation.episodes", "1000"),
        controls=("{pictures: blank}", "{pictures: swapped}"),
    ),
    Case("mixed", "mixed/shapes_and_reach", seeds=(3, 4, 5), controls=(GREY, UNSEEN)),
    *(Case("gaussian", f"metaworld/{t}_ppo", demonstrations(n)) for t, n in MAIN[:2]),
)


def run(case: Case, seed: int) -> None:
    """Train one seed and append its evaluations to the records."""
    command = [sys.executable, "-W", "ignore", "-m", "embodied_rl.cli", "train", case.recipe]
    command += [*case.changes, "--seed", str(seed), "--evaluation.manifest", "test"]
    if case.group not in ("vqa", "mixed"):  # which have no threads of their own
        command += ["--env.num-threads", "1"]
    print(case.command, "seed", seed, file=sys.stderr, flush=True)
    started = time.perf_counter()
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    folder = Path(result.stdout.strip().splitlines()[-1])
    metrics = [r for r in read_jsonl(folder / "metrics.jsonl") if "iteration" in r]
    append_jsonl(
        RECORDS,
        {
            "group": case.group,
            "command": case.command,
            "seed": seed,
            "commit": commit(),
            "total_seconds": time.perf_counter() - started,
            **training_figures(metrics),
            "evaluations": [
                {k: v for k, v in r.items() if k != "successes" or case.group in EPISODE_BY_EPISODE}
                for r in (
                    *read_jsonl(folder / "evaluations.jsonl"),
                    *(controlled(folder, options) for options in case.controls),
                )
            ],
        },
    )


def controlled(folder: Path, options: str) -> dict[str, Any]:
    """The greedy evaluation of a run under other options of its simulator."""
    command = [sys.executable, "-W", "ignore", "-m", "embodied_rl.cli", "eval", str(folder)]
    command += ["--env-options", options, "--episodes", "1000", "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"label": options, **json.loads(result.stdout.strip().splitlines()[-1])}


def commit() -> str:
    """Short hash of the checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def training_figures(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """What the RL part of a run cost and met, from its lines of ``metrics.jsonl``."""
    variances = [r["rollout/success_variance"] for r in metrics]
    return {
        "rl_seconds": sum(r["time/collect_seconds"] + r["time/update_seconds"] for r in metrics),
        "rl_cpu_seconds": sum(r["time/cpu_seconds"] for r in metrics),
        "env_steps": metrics[-1]["time/env_steps"],
        "episodes": sum(r["rollout/episodes"] for r in metrics),
        "extra_rollouts": metrics[-1]["rollout/extra_rollouts"],
        "success_variance": sum(variances) / len(variances),
    }


def table(group: str) -> str:
    """Markdown: one row per case, seeds pooled, Wilson intervals over all their episodes."""
    head = (
        "| command | seeds | SFT greedy | SFT sampled | RL greedy | RL sampled | steps | RL s |",
        "|---|---|---|---|---|---|---|---|",
    )
    records = [r for r in read_jsonl(RECORDS) if r["group"] == group]
    rows = []
    for command in dict.fromkeys(r["command"] for r in records):
        runs = sorted((r for r in records if r["command"] == command), key=lambda r: r["seed"])
        cells = [
            pooled([e for r in runs for e in r["evaluations"]], label, mode)
            for label in ("sft", "rl")
            for mode in ("greedy", "sampled")
        ]
        steps = sum(r["env_steps"] for r in runs) / len(runs)
        # Processor time where it was recorded: a run has one core, which it may have to share. It
        # does not count worker processes, so wall time where they simulate.
        clock = "rl_seconds" if group in IN_WORKERS else "rl_cpu_seconds"
        seconds = sum(r.get(clock, r["rl_seconds"]) for r in runs) / len(runs)
        figures = [f"`{command}`", str(len(runs)), *cells, f"{steps / 1000:.0f}k", f"{seconds:.0f}"]
        rows.append(f"| {' | '.join(figures)} |")
    return "\n".join((*head, *rows))


def of_task(runs: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """The evaluations of ``runs``, of one task alone."""
    return [{**e, **e["per_task"][task]} for r in runs for e in r["evaluations"]]


def pooled(evaluations: list[dict[str, Any]], label: str, mode: str) -> str:
    """``94.5 % [92.3, 96.1]`` and the value of each seed."""
    picked = [e for e in evaluations if e["label"] == label and e["mode"] == mode]
    if not picked:
        return "-"
    wins = sum(round(e["success_rate"] * e["episodes"]) for e in picked)
    count = sum(e["episodes"] for e in picked)
    low, high = wilson_interval(wins, count)
    each = ", ".join(f"{e['success_rate'] * 100:.0f}" for e in picked)
    return f"{wins / count:.1%} [{low * 100:.1f}, {high * 100:.1f}] ({each})"


def sampler_table(group: str) -> str:
    """Markdown: what each task sampler met and paid; means over seeds with bootstrap intervals."""
    lines = [
        "| sampler | captured variance of success | episodes | refresh episodes | steps |",
        "|---|---|---|---|---|",
    ]
    for command, runs in by_command(group).items():
        variances = [r["success_variance"] for r in runs]
        low, high = bootstrap_interval(variances)
        mean = sum(variances) / len(variances)
        cells = [
            f"`{command.rpartition(' ')[2]}`",
            f"{mean:.3f} [{low:.3f}, {high:.3f}] ({', '.join(f'{v:.3f}' for v in variances)})",
            *(f"{sum(r[k] for r in runs) / len(runs):.0f}" for k in ("episodes", "extra_rollouts")),
            f"{sum(r['env_steps'] for r in runs) / len(runs) / 1000:.0f}k",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def task_table(group: str) -> str:
    """Markdown: greedy success of each task before and after RL, seeds pooled."""
    runs = by_command(group)
    names = [f"RL `{command.rpartition(' ')[2]}`" for command in runs]
    lines = [f"| task | SFT | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    first = next(iter(runs.values()))
    for task in first[0]["evaluations"][0]["per_task"]:
        cells = [pooled(of_task(first, task), "sft", "greedy")]
        cells += [pooled(of_task(group_runs, task), "rl", "greedy") for group_runs in runs.values()]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def libero_table(group: str) -> str:
    """Markdown: success of each task on the states trained on, on the others, and on all 50."""
    lines = []
    for command, runs in by_command(group).items():
        if not runs:
            continue
        lines += [
            f"`{command}`, {len(runs)} seed{'s' if len(runs) > 1 else ''}, greedy:",
            "",
            "| task | SFT, held-out | RL, held-out | SFT, all 50 states | RL, all 50 states |",
            "|---|---|---|---|---|",
        ]
        tasks = list(runs[0]["evaluations"][0]["per_task"])
        for task in [*tasks, None]:
            cells = [
                on_states(runs, label, task, states)
                for states in (HELD_OUT, range(50))
                for label in ("sft", "rl")
            ]
            lines.append(f"| {task or '**all tasks**'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def control_table(group: str) -> str:
    """Markdown: greedy success of the trained policies under each control, seeds pooled."""
    lines = ["| command | pictures as they are | control | success |", "|---|---|---|---|"]
    for command, runs in by_command(group).items():
        evaluations = [e for r in runs for e in r["evaluations"]]
        for label in dict.fromkeys(e["label"] for e in evaluations):
            if label.startswith("{"):
                cells = [pooled(evaluations, name, "greedy") for name in ("rl", label)]
                lines.append(f"| `{command}` | {cells[0]} | `{label}` | {cells[1]} |")
    return "\n".join(lines)


def paired_table(group: str) -> str:
    """Markdown: success of each task before and after RL, and the difference in equal episodes."""
    lines = [
        "| task | mode | SFT -> RL in % by seed | mean difference | grey pictures | unseen pairs |",
        "|---|---|---|---|---|---|",
    ]
    for runs in by_command(group).values():
        tasks = list(runs[0]["evaluations"][0]["per_task"])
        for task, mode in itertools.product(tasks, MODES):
            before, after = (successes(runs, label, mode, task) for label in ("sft", "rl"))
            seeds = zip(before.mean(1), after.mean(1), strict=True)
            mean, low, high = (100 * value for value in interval(after - before))
            controls = [
                ", ".join(
                    f"{100 * e['success_rate']:.0f}"
                    for e in of_task(runs, task)
                    if (e["label"], e["mode"]) == (label, mode)
                )
                for label in (GREY, UNSEEN)
            ]
            cells = [
                task,
                mode,
                ", ".join(f"{100 * first:.0f} -> {100 * last:.0f}" for first, last in seeds),
                f"**{mean:+.0f}** [{low:+.0f}, {high:+.0f}]",
                *controls,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def successes(
    runs: Sequence[dict[str, Any]], label: str, mode: str, task: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``[S, E]`` whether the episodes of ``task`` ended well; tasks take turns in a manifest."""
    rows = []
    for evaluation in (e for r in runs for e in r["evaluations"]):
        if (evaluation["label"], evaluation["mode"]) == (label, mode):
            tasks = list(evaluation["per_task"])
            flags = evaluation["successes"][tasks.index(task) :: len(tasks)]
            rows.append([float(flag) for flag in flags])
    return np.array(rows)


def on_states(runs: Sequence[dict[str, Any]], label: str, task: str | None, states: range) -> str:
    """Greedy success over the episodes of ``task`` (None: all) that start from ``states``."""
    wins = count = 0
    for evaluation in (e for r in runs for e in r["evaluations"]):
        if (evaluation["label"], evaluation["mode"]) != (label, "greedy"):
            continue
        names = list(evaluation["per_task"])
        manifest = make_manifest(
            names, episodes=evaluation["episodes"], split="test", simulator="libero"
        )
        assert manifest.sha256 == evaluation["manifest_sha256"]
        for name, seed, flag in zip(
            manifest.tasks, manifest.seeds, evaluation["successes"], strict=True
        ):
            if seed % 50 in states and task in (None, name):
                wins, count = wins + int(flag), count + 1
    low, high = wilson_interval(wins, count)
    return f"{wins}/{count} = {wins / count:.0%} [{low * 100:.0f}, {high * 100:.0f}]"


def by_command(group: str) -> dict[str, list[dict[str, Any]]]:
    """Records of a group, by command, in the order of their seeds."""
    records = sorted(
        (r for r in read_jsonl(RECORDS) if r["group"] == group), key=lambda r: r["seed"]
    )
    commands = [case.command for case in CASES if case.group == group]
    return {c: [r for r in records if r["command"] == c] for c in commands}


def run_missing(groups: list[str]) -> None:
    """Run every case of the groups that has no record yet."""
    done = {(r["group"], r["command"], r["seed"]) for r in read_jsonl(RECORDS)}
    missing = [
        (case, seed)
        for group in groups
        for case in CASES
        for seed in case.seeds
        if case.group == group and (group, case.command, seed) not in done
    ]
    with ThreadPoolExecutor(max_workers=JOBS) as pool:
        for finished in [pool.submit(run, case, seed) for case, seed in missing]:
            finished.result()


def main(arguments: list[str]) -> None:
    """Run what is missing of the groups, then print their tables."""
    groups = [name for name in arguments if name != "--tables"]
    if "--tables" not in arguments:
        run_missing(groups)
    for group in groups:
        print(f"\n## {group}\n\n{table(group)}")
        if group == "vqa":
            print(f"\n{control_table(group)}")
        if group == "mixed":
            print(f"\n{paired_table(group)}")
        if group == "libero":
            print(f"\n{libero_table(group)}")
        if group == "mt10":
            print(f"\n{sampler_table(group)}\n\n{task_table(group)}")


if __name__ == "__main__":
    main(sys.argv[1:])
