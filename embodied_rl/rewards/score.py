"""From responses to rewards: a weighted sum of named terms, routed by task.

    value_i = sum over terms k that apply to task(i) of  weight_k * reward_k(response_i, question_i)

The terms of a task are its mixture (Intern-S1, system 51); ``Term.tasks`` is the router of
Mixed-R1 (system 67). Group terms come last and see the score of every response to the same
question. A reward that raises, or returns NaN or infinity, scores 0 and is counted: R1-Reward's
verifier paid 1 for its own exceptions. Axes: [N] responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from embodied_rl.rewards.base import GroupReward, Reward, SetupError, prepare
from embodied_rl.types import Question


@dataclass(frozen=True, kw_only=True)
class Term:
    """One named addend.

    Attributes:
        name: unique; the key in ``Scores.terms``.
        reward: called with ``options`` as keywords.
        weight: factor of the addend.
        tasks: names of the tasks it applies to; None for all.
        options: keyword arguments of ``reward``.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    tasks: frozenset[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GroupTerm:
    """One named addend of a group reward.

    Attributes:
        name, weight, tasks, options: as in ``Term``.
        reward: called once per group, with ``scores=`` beside ``options``.
        scores_from: name of the term whose values it sees; None for the weighted sum of all
            ``Term`` (not of other group terms).
    """

    name: str
    reward: GroupReward
    weight: float = 1.0
    tasks: frozenset[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    scores_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What ``score`` returns.

    Attributes:
        values: ``[N]`` float32 weighted sums.
        terms: ``[N]`` float32 unweighted, by name; 0 where the term does not apply.
        applies: ``[N]`` bool by name, the term belongs to the response's task.
        failures: number of responses scored 0 because the reward raised or was not finite, by
            name.
        failed: ``[N]`` bool, some term of the response is one of these.
        first_failures: message of the first such response, by name.
    """

    values: Tensor
    terms: dict[str, Tensor]
    applies: dict[str, Tensor]
    failures: dict[str, int]
    failed: Tensor
    first_failures: dict[str, str]


class _Failures:
    """Counts what went wrong and keeps the first message of each term."""

    def __init__(self, names: Sequence[str]) -> None:
        self.counts = dict.fromkeys(names, 0)
        self.rows: set[int] = set()
        self.messages: dict[str, str] = {}

    def guard(self, name: str, call: Callable[[], list[float]], rows: Sequence[int]) -> list[float]:
        """``call()``, the values of ``rows``, with what is broken replaced by 0."""
        try:
            values = [float(value) for value in call()]
            assert len(values) == len(rows), f"{len(values)} values for {len(rows)} responses"
        except SetupError:
            raise
        except Exception as error:
            self._add(name, rows, f"{type(error).__name__}: {error}")
            return [0.0] * len(rows)
        broken = [i for i, value in enumerate(values) if not math.isfinite(value)]
        if broken:
            self._add(name, [rows[i] for i in broken], f"the reward is {values[broken[0]]}")
        return [value if math.isfinite(value) else 0.0 for value in values]

    def _add(self, name: str, rows: Sequence[int], message: str) -> None:
        self.counts[name] += len(rows)
        self.rows.update(rows)
        self.messages.setdefault(name, message)


def score(
    terms: Sequence[Term | GroupTerm],
    responses: Sequence[str],
    questions: Sequence[Question],
    group_ids: Sequence[int] | Tensor,
) -> Scores:
    """Reward of every response.

    Args:
        terms: addends; their names must differ.
        responses: ``[N]`` texts.
        questions: ``[N]``, what each of them answers.
        group_ids: ``[N]`` equal for responses to the same question.

    Raises:
        ValueError: lengths differ, a name occurs twice, ``scores_from`` names no term, or no term
            applies to a task.
        SetupError: the machine lacks what a reward needs.
    """
    ids = [int(group) for group in group_ids]
    _check(terms, responses, questions, ids)
    names = [term.name for term in terms]
    failures = _Failures(names)
    values: dict[str, list[float]] = {}
    total = [0.0] * len(responses)
    for term in (t for t in terms if isinstance(t, Term)):
        values[term.name] = _response_values(term, responses, questions, failures)
        total = _plus(total, values[term.name], term.weight)
    base = total
    for term in (t for t in terms if isinstance(t, GroupTerm)):
        seen = base if term.scores_from is None else values[term.scores_from]
        values[term.name] = _group_values(term, responses, questions, ids, seen, failures)
        total = _plus(total, values[term.name], term.weight)
    return Scores(
        values=torch.tensor(total, dtype=torch.float32),
        terms={name: torch.tensor(values[name], dtype=torch.float32) for name in names},
        applies={term.name: torch.tensor([_applies(term, q) for q in questions]) for term in terms},
        failures=failures.counts,
        failed=torch.tensor([i in failures.rows for i in range(len(responses))], dtype=torch.bool),
        first_failures=failures.messages,
    )


def _applies(term: Term | GroupTerm, question: Question) -> bool:
    return term.tasks is None or question.task in term.tasks


def _plus(total: list[float], values: list[float], weight: float) -> list[float]:
    return [a + weight * b for a, b in zip(total, values, strict=True)]


def _response_values(
    term: Term, responses: Sequence[str], questions: Sequence[Question], failures: _Failures
) -> list[float]:
    def value(row: int, response: str, question: Question) -> float:
        if not _applies(term, question):
            return 0.0
        call = lambda: [term.reward(response, question, **term.options)]  # noqa: E731
        return failures.guard(term.name, call, [row])[0]

    pairs = list(zip(responses, questions, strict=True))
    mine = [pair for pair in pairs if _applies(term, pair[1])]
    prepare(term.reward, [said for said, _ in mine], [asked for _, asked in mine], term.options)
    return [value(row, *pair) for row, pair in enumerate(pairs)]


def _group_values(
    term: GroupTerm,
    responses: Sequence[str],
    questions: Sequence[Question],
    ids: Sequence[int],
    seen: Sequence[float],
    failures: _Failures,
) -> list[float]:
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(ids):
        rows.setdefault(group, []).append(row)
    values = [0.0] * len(responses)
    for members in rows.values():
        question = questions[members[0]]
        if not _applies(term, question):
            continue
        texts, scores = [responses[i] for i in members], [seen[i] for i in members]

        def call(
            texts: list[str] = texts, scores: list[float] = scores, question: Question = question
        ) -> list[float]:
            return term.reward(texts, question, scores=scores, **term.options)

        for row, value in zip(members, failures.guard(term.name, call, members), strict=True):
            values[row] = value
    return values


def _check(
    terms: Sequence[Term | GroupTerm],
    responses: Sequence[str],
    questions: Sequence[Question],
    ids: Sequence[int],
) -> None:
    if not len(responses) == len(questions) == len(ids):
        sizes = f"{len(responses)}, {len(questions)} and {len(ids)}"
        raise ValueError(f"give one question and one group id per response, not {sizes}")
    names = [term.name for term in terms]
    if len(set(names)) != len(names):
        raise ValueError(f"reward terms {names} must have different names")
    plain = {term.name for term in terms if isinstance(term, Term)}
    for term in terms:
        if isinstance(term, GroupTerm) and term.scores_from not in {None, *plain}:
            raise ValueError(f"scores_from={term.scores_from!r} must be one of {sorted(plain)}")
    for question in questions:
        if not any(_applies(term, question) for term in terms):
            raise ValueError(f"no reward term applies to task {question.task!r}; add one")
