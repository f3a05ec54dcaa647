"""What every reward shares: its types, how it asks for what it needs, and who may stop a run.

A reward is a pure, deterministic function of one response and its question. What a *model* writes
never makes a reward raise on purpose: an answer that cannot be read scores its worst. What a *task*
lacks (``required``) raises ``ValueError``, which ``score`` counts. What the *machine* lacks raises
``SetupError``, which nobody swallows: a missing library must not look like a policy that fails.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embodied_rl.types import Question

Reward = Callable[..., float]
"""``(response: str, question: Question, *, options) -> float``."""
GroupReward = Callable[..., list[float]]
"""``(responses: Sequence[str], question, *, scores: Sequence[float], options) -> list[float]``."""

PREPARATIONS: dict[Reward, Callable[..., None]] = {}
"""``(responses: Sequence[str], questions: Sequence[Question], *, options) -> None`` by reward."""


class SetupError(RuntimeError):
    """The machine lacks a library or a protection; the message says what to do."""


def library(module: str, *, extra: str) -> Any:
    """Import ``module`` on first use.

    Raises:
        SetupError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = f"pip install 'embodied-rl[{extra}]'"
        raise SetupError(f"this reward needs {module.partition('.')[0]}: {install}") from error


def prepared_by(prepare: Callable[..., None]) -> Callable[[Reward], Reward]:
    """Declare what a reward can do for a whole batch at once, before it is asked one by one.

    ``prepare`` takes no offence at what the reward would: a response that cannot be read, a
    question that lacks something.
    """

    def declare(reward: Reward) -> Reward:
        PREPARATIONS[reward] = prepare
        return reward

    return declare


def prepare(
    reward: Reward,
    responses: Sequence[str],
    questions: Sequence[Question],
    options: Mapping[str, Any],
) -> None:
    """Let ``reward`` do what it can for ``[N]`` responses at once; its values do not change."""
    if reward in PREPARATIONS:
        PREPARATIONS[reward](responses, questions, **options)


def required(question: Question, key: str) -> Any:
    """``question.data[key]``.

    Raises:
        ValueError: the task did not provide it.
    """
    if key not in question.data:
        raise ValueError(f"task {question.task!r} must set data[{key!r}] for this reward")
    return question.data[key]


def clamp(value: float, *, low: float = 0.0, high: float = 1.0) -> float:
    """``value`` limited to [low, high]."""
    return min(max(value, low), high)
