"""The 130 tasks of LIBERO in five suites: names, both wordings, goals, initial states.

B. Liu et al., "LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot Learning", NeurIPS 2023.
A goal is a conjunction of predicates (``in``, ``on``, ``open``, ``close``, ``turnon``); every task
has 50 initial states. Nothing of this needs the scenes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embodied_rl.envs.libero.assets import package_folder
from embodied_rl.envs.spaces import Array
from embodied_rl.registry import near_names

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
HORIZONS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Control steps that evaluations of vision-language-action models commonly allow, by suite."""
GOALS_PER_TASK = {
    "libero_spatial": 1,
    "libero_object": 1,
    "libero_goal": 1,
    "libero_10": 3,
    "libero_90": 2,
}
"""Most goal predicates of a task, by suite."""
NUM_INITIAL_STATES = 50
EVALUATION_SEEDS = 2**30
"""Seeds from here on are those of evaluation manifests (``embodied_rl.seeding``)."""
Wording = Literal["name", "scene"]
WORDINGS: tuple[Wording, ...] = ("name", "scene")


@dataclass(frozen=True, slots=True)
class Goal:
    """One predicate: ``thing`` is in or on ``target``, or open, closed, turned on (no target)."""

    predicate: str
    thing: str
    target: str | None


@dataclass(frozen=True, slots=True)
class LiberoTask:
    """One task.

    Attributes:
        suite, name: as in the benchmark.
        instructions: what to do by wording; ``name`` is read off the task's name, ``scene`` is the
            sentence in its scene description. They differ in 29 tasks.
        goals: all of them must hold.
    """

    suite: str
    name: str
    instructions: dict[str, str]
    goals: tuple[Goal, ...]

    @property
    def bddl_file(self) -> Path:
        """Scene description."""
        return package_folder() / "bddl_files" / self.suite / f"{self.name}.bddl"

    def initial_states(self) -> Array:
        """(time, positions, velocities) [50, 1 + nq + nv] float64 that the benchmark fixes."""
        import torch

        path = package_folder() / "init_files" / self.suite / f"{self.name}.pruned_init"
        # The file is a pickled numpy array that comes with the installed package.
        states = np.asarray(torch.load(path, weights_only=False), np.float64)
        assert states.shape[0] == NUM_INITIAL_STATES
        return states


@cache
def suite_tasks() -> dict[str, tuple[str, ...]]:
    """Task names of every suite, in the benchmark's order.

    Raises:
        ValueError: LIBERO is not installed.
    """
    path = package_folder() / "benchmark" / "libero_suite_task_map.py"
    # One dict literal; importing it would import the whole benchmark.
    module = ast.parse(path.read_text())
    table = next(node.value for node in module.body if isinstance(node, ast.Assign))
    tasks: dict[str, list[str]] = ast.literal_eval(table)
    return {suite: tuple(tasks[suite]) for suite in SUITES}


def expand_tasks(tasks: str | Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(suite, task name) of suite names, task names, or several of either, without repetition.

    ``"libero_object"``, ``"object"``, ``"pick_up_the_milk_and_place_it_in_the_basket"`` and
    ``"libero_object/3"`` (the fourth task of a suite) are understood.

    Raises:
        ValueError: no such suite or task; the message lists near names.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise ValueError("tasks is empty: name a suite (libero_object) or a task")
    return tuple(dict.fromkeys(pair for name in names for pair in _expand(name)))


def _expand(name: str) -> list[tuple[str, str]]:
    table = suite_tasks()
    suite, _, rest = name.partition("/")
    suite = suite if suite in table else f"libero_{suite}"
    if suite in table:
        if not rest:
            return [(suite, task) for task in table[suite]]
        if rest.isdigit() and int(rest) < len(table[suite]):
            return [(suite, table[suite][int(rest)])]
        if rest in table[suite]:
            return [(suite, rest)]
    owners = {task: suite for suite, tasks in table.items() for task in tasks}
    if name in owners:
        return [(owners[name], name)]
    hint = near_names(name, [*SUITES, *owners])
    raise ValueError(f"LIBERO has no suite or task {name!r}{hint}; suites: {', '.join(SUITES)}")


def state_index(seed: int, *, training: tuple[int, int], evaluation: tuple[int, int]) -> int:
    """Number of the initial state that a seed starts from.

    Args:
        seed: of the episode.
        training: first and last state for seeds below ``EVALUATION_SEEDS``.
        evaluation: the same for the other seeds.
    """
    first, last = evaluation if seed >= EVALUATION_SEEDS else training
    return first + seed % (last - first + 1)


@cache
def load_task(suite: str, name: str) -> LiberoTask:
    """A task of a suite, read from its scene description."""
    path = package_folder() / "bddl_files" / suite / f"{name}.bddl"
    sections = {section[0]: section[1:] for section in _parse(path.read_text())[1:]}
    goal = sections[":goal"][0]
    goals = goal[1:] if goal[0].lower() == "and" else [goal]
    return LiberoTask(
        suite=suite,
        name=name,
        instructions={
            "name": re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " "),
            "scene": " ".join(sections[":language"]).lower(),
        },
        goals=tuple(Goal(g[0].lower(), g[1], g[2] if len(g) > 2 else None) for g in goals),
    )


def _parse(text: str) -> list[Any]:
    """The one expression of a text in parentheses, as nested lists of words."""
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return stack[0][0]
