"""Honest tests of published systems on questions made by program, with a small policy.

    python -m benchmarks.systems --list
    python -m benchmarks.systems 10 37 --seeds 0 1 2     # runs what is missing
    python -m benchmarks.systems --write                 # docs/systems.md from docs/systems.jsonl

A system is data (see `catalogue`): a recipe of ``embodied_rl.configs``, variants, metrics and
rules. A variant is a chain of stages, each a command-line overlay of the recipe: the first one
imitates, every other one starts from the weights of the one before. Stages that several variants
share run once per seed. Every case (variant, seed) answers the same held-out questions greedily and
appends one line to ``docs/systems.jsonl``; cases with equal settings are not run again.

Intervals. With x[s, q] in [0, 1] the value of seed s on question q, or the difference of two
variants at equal s and q, the mean is over both; the 95 % interval resamples seeds and questions
independently with replacement (A. B. Owen 2007, The pigeonhole bootstrap). With three seeds it
cannot know more about seeds than their three values.

Verdicts: a rule passes where the lower end lies above its bound (for bounds of a difference: the
stated margin), fails where the upper end lies below it, and is null otherwise. A system passes if
all of its rules do, and fails if one does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.systems_catalogue import METRICS, SYSTEMS, Rule, System, Variant
from embodied_rl.build import build_env, load_policy
from embodied_rl.config import TrainConfig, overlay, to_plain
from embodied_rl.configs import builtin_recipes
from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.evaluate import SPLIT_RANGES
from embodied_rl.metrics import append_jsonl, read_jsonl
from embodied_rl.policies.vlm import text
from embodied_rl.rollout import start
from embodied_rl.trainer import train
from embodied_rl.types import TensorDict

RECORDS, PAGE, FRAGMENTS = Path("docs/systems.jsonl"), Path("docs/systems.md"), Path("docs/systems")
MIN_SEEDS = 3
"""Fewer say nothing."""
LEVELS = 35
"""A value in [0, 1] is stored as one digit of base 36."""
FIRST_TUNING_SEED = 10
"""From this seed on settings may be chosen: questions are then other ones, of the train split."""
Array = npt.NDArray[np.float64]


# --- one case --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A variant of a system with one seed."""

    system: System
    variant: Variant
    seed: int

    @property
    def configs(self) -> list[TrainConfig]:
        """The resolved configuration of every stage, without ``init_from``."""
        recipe = builtin_recipes()[self.variant.recipe or self.system.recipe]()
        stages = [overlay(recipe, stage) for stage in self.variant.stages]
        first, *others = (replace(config, seed=self.seed) for config in stages)
        return [first, *(replace(config, imitation=None) for config in others)]

    @property
    def views(self) -> dict[str, dict[str, Any]]:
        """Options of the environment for every set of questions that is asked."""
        last = self.configs[-1].evaluation.env_options
        return {"": dict(last)} | {
            name: {**last, **dict(options)} for name, options in self.variant.views.items()
        }

    @property
    def settings(self) -> str:
        """A hash of everything that the figures depend on but the code."""
        parts = [[to_plain(config) for config in self.configs], self.views, self.system.metrics]
        return digest([parts, self.system.questions])


def digest(data: Any) -> str:
    """Eight hexadecimal digits for plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


def run_case(case: Case, *, runs: Path) -> dict[str, Any]:
    """Train the stages that are missing, ask the questions; the record of the case."""
    started, folder, cpu, stages = time.perf_counter(), "", 0.0, []
    for config in case.configs:
        stages.append(to_plain(config))
        place = runs / digest(stages)
        cpu += run_stage(replace(config, init_from=folder, runs=str(runs)), place)
        folder = str(place)
    asked = {name: ask(case, folder, options) for name, options in case.views.items()}
    return {
        "system": case.system.number,
        "variant": case.variant.name,
        "seed": case.seed,
        "settings": case.settings,
        "questions": case.system.questions,
        "values": {name: values for name, (values, _) in asked.items()},
        "tokens": {name: tokens for name, (_, tokens) in asked.items()},
        "cpu_s": round(cpu, 1),
        "wall_s": round(time.perf_counter() - started, 1),
    }


def run_stage(config: TrainConfig, folder: Path) -> float:
    """Train into ``folder`` unless that is done; processor seconds that it took."""
    done = folder / "done.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        before = time.process_time()
        train(config, folder=folder, final=False)
        done.write_text(json.dumps({"cpu_s": time.process_time() - before}))
    return json.loads(done.read_text())["cpu_s"]


def ask(case: Case, folder: str, options: Mapping[str, Any]) -> tuple[dict[str, str], float]:
    """Every metric on every question as base-36 digits; mean length of an answer with its end."""
    policy, config, _ = load_policy(folder)
    tuning = case.seed >= FIRST_TUNING_SEED
    changes = {**options, **({"split": "train"} if tuning else {})}
    blank, sampled = changes.pop("blank", False), changes.pop("sampled", False)
    env_config = replace(config.env, simulator=config.env.simulator.replace(**changes))
    number = case.system.questions
    env = build_env(env_config, seed=0, autoreset=False, num_envs=number, group_size=1)
    assert isinstance(env, SimulatorVectorEnv)
    simulator: Any = env.simulator
    count = len(env.task_names)
    rows = torch.arange(number)
    seeds = SPLIT_RANGES["tune" if tuning else "test"] + rows // count
    obs: TensorDict = start(env, task_ids=rows % count, episode_seeds=seeds).obs
    if blank:
        obs = {**obs, "images": torch.full_like(obs["images"], 128)}
    questions = list(simulator.questions)
    generator = torch.Generator().manual_seed(case.seed)
    answers = policy.sample(obs, deterministic=not sampled, generator=generator).actions
    said = text.from_bytes(answers)
    form = env_config.simulator.resolved()["answer_form"]
    values = {
        name: "".join(
            as_digit(METRICS[name](question, answer, form))
            for question, answer in zip(questions, said, strict=True)
        )
        for name in case.system.metrics
    }
    env.close()
    return values, round(float(np.mean([len(answer) + 1 for answer in said])), 2)


def as_digit(value: float) -> str:
    """A value in [0, 1] as one digit; ``-`` where the metric says nothing (NaN)."""
    return "-" if math.isnan(value) else np.base_repr(round(LEVELS * value), 36).lower()


def as_values(digits: str) -> list[float]:
    """Back again, without those that say nothing."""
    return [int(digit, 36) / LEVELS for digit in digits if digit != "-"]


# --- figures ---------------------------------------------------------------------------------


@dataclass
class Figures:
    """What was measured for one system: records with the settings of today."""

    system: System
    records: Sequence[Mapping[str, Any]]

    def seeds(self, rule: Rule) -> list[int]:
        """Seeds with which all was run that a rule compares, so that differences are paired."""
        variants = [split_place(place)[0] for place in (rule.of, rule.minus) if place]
        ran = [{r["seed"] for r in self.records if r["variant"] == name} for name in variants]
        return sorted(seed for seed in set.intersection(*ran) if seed < FIRST_TUNING_SEED)

    def table(self, place: str, seeds: Sequence[int]) -> Array:
        """``[S, Q]`` of ``variant:metric`` or ``variant:metric@view``.

        ``tokens`` is a metric too, with one value per seed.
        """
        variant, metric, view = split_place(place)
        found = {r["seed"]: r for r in self.records if r["variant"] == variant}
        if metric == "tokens":
            return np.array([[found[seed]["tokens"][view]] for seed in seeds])
        return np.array([as_values(found[seed]["values"][view][metric]) for seed in seeds])


def split_place(place: str) -> tuple[str, str, str]:
    """(variant, metric, view) of ``variant:metric@view``; names of metrics may hold an @ too."""
    variant, _, rest = place.partition(":")
    if rest in METRICS:
        return variant, rest, ""
    metric, _, view = rest.rpartition("@") if "@" in rest else (rest, "", "")
    return variant, metric, view


def interval(table: Array, *, resamples: int = 4000) -> tuple[float, float, float]:
    """(mean, low, high) of ``[S, Q]``; see the module."""
    rng = np.random.default_rng(0)
    seeds, questions = table.shape
    means = np.empty(resamples)
    for index in range(resamples):
        rows = table[rng.integers(seeds, size=seeds)]
        means[index] = rows[:, rng.integers(questions, size=questions)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(table.mean()), float(low), float(high)


def judge(rule: Rule, figures: Figures) -> tuple[str, str]:
    """(verdict, figure in words) of a rule."""
    seeds = figures.seeds(rule)
    if len(seeds) < MIN_SEEDS:
        return "not run", f"{rule.says}: not run"
    first = figures.table(rule.of, seeds)
    if rule.minus:
        second = figures.table(rule.minus, seeds)
        questions = min(first.shape[1], second.shape[1])
        first = first[:, :questions] - rule.times * second[:, :questions]
    mean, low, high = interval(first)
    verdict = "pass" if low > rule.above else "fail" if high < rule.above else "null"
    if rule.report:
        verdict = "reported"
    bound = "" if rule.report else f" (above {rule.above:g}: {verdict})"
    return verdict, f"{rule.says} {mean:.3f} [{low:.3f}, {high:.3f}]{bound}"


def verdict_of(verdicts: Sequence[str]) -> str:
    """Of a system from those of its rules."""
    counted = [verdict for verdict in verdicts if verdict != "reported"]
    for worst in ("fail", "null", "not run"):
        if worst in counted:
            return worst
    return "pass"


# --- the page --------------------------------------------------------------------------------

HEAD = """# Systems

Written by `python -m benchmarks.systems --write` from `systems.jsonl`. One row per published system
with its mechanism here, the honest test of it and what was measured. Policies of 0.5 to 1.5 M
parameters (`picture_generator`) with random weights that imitate a few hundred steps and are then
trained by reinforcement; 200 held-out questions, or as many as the row says, answered greedily;
mean over seeds and questions with a 95 % interval that resamples both (`benchmarks/systems.py` says
how). *pass*: every bound lies outside its interval on the right side; *fail*: one lies on the wrong
side; *null*: one interval holds its bound. Figures of such policies say whether a mechanism does
what it should, not how well it does in large models. Tests named here are in `tests/numerics` and
`tests/conformance`.

| no. | system | components | command | honest test and figures | verdict | CPU s |
|---|---|---|---|---|---|---|
"""


def row(system: System, records: Sequence[Mapping[str, Any]]) -> str:
    """One line of the table."""
    mine = current(system, records)
    figures = Figures(system, mine)
    judged = [judge(rule, figures) for rule in system.rules]
    seeds = sorted({seed for rule in system.rules for seed in figures.seeds(rule)})
    seconds = sum(r["cpu_s"] for r in mine if r["seed"] in seeds)
    verdict = verdict_of([one for one, _ in judged]) if system.rules else "not run"
    measured = "; ".join(words for _, words in judged) + "." if mine else ""
    asked = "" if system.questions == System.questions else f"{system.questions} questions."
    given = " ".join(map(str, seeds or (0, 1, 2)))
    cells = (
        str(system.number),
        f"{system.title} (`{system.recipe}`)",
        ", ".join(f"`{name}`" for name in system.components),
        f"`python -m benchmarks.systems {system.number} --seeds {given}`",
        " ".join(filter(None, (system.test, asked, measured, system.note.strip()))),
        verdict,
        f"{seconds:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def current(system: System, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records of the system whose settings are those of its variants now; the last of each."""
    found = {}
    variants = {variant.name: variant for variant in system.variants}
    for record in records:
        if record["system"] == system.number and record["variant"] in variants:
            case = Case(system, variants[record["variant"]], record["seed"])
            if record["settings"] == case.settings:
                found[record["variant"], record["seed"]] = record
    return list(found.values())


def write_page(records: Sequence[Mapping[str, Any]]) -> None:
    """``docs/systems.md``: a row per system, then the tables of ``docs/systems/*.md``."""
    rows = sorted(SYSTEMS, key=lambda system: system.number)
    table = "\n".join(row(system, records) for system in rows)
    rest = "".join(f"\n{path.read_text()}" for path in sorted(FRAGMENTS.glob("*.md")))
    PAGE.write_text(f"{HEAD}{table}\n{rest}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("numbers", nargs="*", type=int, help="systems; none: all of them")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="*", default=[], help="only these")
    parser.add_argument("--runs", type=Path, default=Path("runs/systems"))
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--list", action="store_true", help="print the systems and end")
    parser.add_argument("--write", action="store_true", help="write the page and end")
    options = parser.parse_args()
    systems = [s for s in SYSTEMS if not options.numbers or s.number in options.numbers]
    if options.list:
        for system in systems:
            names = ", ".join(variant.name for variant in system.variants)
            print(f"{system.number:3d} {system.title}: {system.recipe} ({names})")
        return
    records = read_jsonl(options.records) if options.records.exists() else []
    if options.write:
        write_page(records)
        return
    torch.set_num_threads(1)
    for system in systems:
        run_system(system, options, records)
        for rule in system.rules:
            figures = Figures(system, current(system, records))
            print("   ", judge(rule, figures)[1])


def run_system(system: System, options: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    """Run the cases of a system that are missing, seed by seed."""
    done = {(r["variant"], r["seed"]) for r in current(system, records)}
    for seed in options.seeds:
        for variant in system.variants:
            wanted = not options.variants or variant.name in options.variants
            if not wanted or (variant.name, seed) in done:
                continue
            record = run_case(Case(system, variant, seed), runs=options.runs)
            append_jsonl(options.records, record)
            records.append(record)
            shown = {
                f"{name}@{view}": round(float(np.mean(as_values(digits))), 3)
                for view, values in record["values"].items()
                for name, digits in values.items()
            }
            print(system.number, variant.name, seed, shown, record["tokens"], record["cpu_s"])


if __name__ == "__main__":
    main()
