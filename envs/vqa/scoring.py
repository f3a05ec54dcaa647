"""What answers earn: from the option ``reward`` of the environment to numbers for a batch.

``reward`` is one of

- ``"correct"``: 1 if the task's own check says so, else 0;
- ``"task"``: the registered reward that each question names;
- the name of a registered reward, or a ``Score``;
- a mapping of named terms, summed by `embodied_rl.rewards.score.score`:

      {right: {reward: match, tasks: [shapes_vqa]}, brief: {reward: shortest_correct, weight: 0.2}}

  with the keys of ``TERM_KEYS``; ``reward`` is the name of the term where it is left out, and a
  number is the weight alone. A group reward sees the answers of all rows of a group, so these have
  to answer in the same step.

What a term adds is its weight times its value. Axes: [n] answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from embodied_rl.envs.base import ArrayDict, BoolArray, IntArray
from embodied_rl.registry import RegistryError, near_names, options_of, registry
from embodied_rl.rewards.base import SetupError, prepare
from embodied_rl.rewards.score import GroupTerm, Scores, Term, score
from embodied_rl.types import Question

Score: TypeAlias = Callable[[Question, str], Mapping[str, float]]
"""Reward terms of an answer by name, always the same names. The reward is their sum, without a
term ``success``, which replaces the task's own check where there is one (1 for solved)."""
Check: TypeAlias = Callable[[Question, str], bool]
TERM_KEYS = ("reward", "weight", "tasks", "options", "scores_from")
RESERVED_TERMS = ("success", "malformed", "failed", "turn")


@dataclass(frozen=True)
class Verdicts:
    """What ``n`` answers earned.

    Attributes:
        terms: [n] float32 by name; the reward is their sum.
        success: [n] bool.
        failed: [n] bool, a reward raised or was not finite.
    """

    terms: ArrayDict
    success: BoolArray
    failed: BoolArray


@dataclass(frozen=True)
class Scoring:
    """How answers are judged.

    Attributes:
        term_names: always the same.
        judge: (questions [n], answers [n], groups [n]) -> verdicts.
        whole_groups: all answers of a group must come together.
    """

    term_names: tuple[str, ...]
    judge: Callable[[Sequence[Question], Sequence[str], IntArray], Verdicts]
    whole_groups: bool = False


def scoring_of(
    reward: str | Mapping[str, Any] | Score,
    options: Mapping[str, Any],
    *,
    samples: Mapping[str, Question],
    checks: Mapping[str, Check],
) -> Scoring:
    """The scoring that the option ``reward`` asks for.

    Args:
        reward: see the module.
        options: of the registered reward that ``reward`` names.
        samples: one question of every task, which are scored once, so that what a reward lacks
            shows before the run begins.
        checks: whether an answer is right, by task.

    Raises:
        ValueError: options that nothing takes, or a mapping that is not as the module says.
        RegistryError: no such reward.
        SetupError: the machine lacks what a reward needs.
    """
    if options and (not isinstance(reward, str) or reward in ("correct", "task")):
        raise ValueError("reward_options are those of a registered reward: name one as reward")
    if isinstance(reward, Mapping):
        return _of_terms(reward, samples, checks)
    if reward == "correct":
        return Scoring(("correct",), lambda q, texts, _: _each(_correct(checks), q, texts, checks))
    function = _score_function(reward, options, samples)
    probes = [function(question, "") for question in samples.values()]
    names = tuple(sorted({name for terms in probes for name in terms} - {"success"}))

    def judge(questions: Sequence[Question], texts: Sequence[str], _: IntArray) -> Verdicts:
        if isinstance(reward, str):
            _prepare(reward, options, questions, texts)
        return _each(function, questions, texts, checks, names)

    return Scoring(names, judge)


def _correct(checks: Mapping[str, Check]) -> Score:
    def terms(question: Question, text: str) -> Mapping[str, float]:
        right = float(checks[question.task](question, text))
        return {"correct": right, "success": right}

    return terms


def _score_function(
    reward: str | Score, options: Mapping[str, Any], samples: Mapping[str, Question]
) -> Score:
    if not isinstance(reward, str):
        return reward
    if reward == "task":
        for question in samples.values():
            registry("rewards").get(question.data["reward"])
        return lambda question, text: {"task": _own_reward(text, question)}
    function = registry("rewards").get(reward)
    return lambda question, text: {reward: function(text, question, **options)}


def _prepare(
    reward: str, options: Mapping[str, Any], questions: Sequence[Question], texts: Sequence[str]
) -> None:
    """Let the rewards of a batch do at once what they can."""
    named = [q.data["reward"] if reward == "task" else reward for q in questions]
    for name in dict.fromkeys(named):
        rows = [row for row, other in enumerate(named) if other == name]
        said, asked = [texts[row] for row in rows], [questions[row] for row in rows]
        prepare(registry("rewards").get(name), said, asked, options)


def _own_reward(response: str, question: Question) -> float:
    return registry("rewards").get(question.data["reward"])(response, question)


def _each(
    function: Score,
    questions: Sequence[Question],
    texts: Sequence[str],
    checks: Mapping[str, Check],
    names: Sequence[str] = ("correct",),
) -> Verdicts:
    """Answers judged one by one: one that breaks its reward earns nothing in any term."""
    terms = {name: np.zeros(len(texts), np.float32) for name in names}
    success, failed = np.zeros((2, len(texts)), np.bool_)
    for index, (question, text) in enumerate(zip(questions, texts, strict=True)):
        try:
            values = {name: float(value) for name, value in function(question, text).items()}
        except SetupError:
            raise  # a missing library must not look like a policy that fails
        except Exception:  # a reward that breaks on an answer must neither pay nor end the run
            failed[index] = True
            continue
        solved = values.pop("success", None)
        if not all(map(math.isfinite, values.values())):
            failed[index] = True
            continue
        unknown = values.keys() - terms.keys()
        if unknown:
            raise ValueError(
                f"the reward of {question.task!r} gives {sorted(unknown)}, which it did not give "
                f"an empty answer: always give the same terms (so far: {tuple(names)})"
            )
        for name, value in values.items():
            terms[name][index] = value
        check = checks[question.task]
        success[index] = check(question, text) if solved is None else solved >= 1.0
    return Verdicts(terms, success, failed)


# --- mixtures of named terms -----------------------------------------------------------------


def _of_terms(
    given: Mapping[str, Any], samples: Mapping[str, Question], checks: Mapping[str, Check]
) -> Scoring:
    terms = [_term(name, {} if it is None else it, checks) for name, it in given.items()]
    weights = {term.name: term.weight for term in terms}

    def judge(questions: Sequence[Question], texts: Sequence[str], groups: IntArray) -> Verdicts:
        scores = score(terms, texts, questions, groups.tolist())
        right = [checks[q.task](q, text) for q, text in zip(questions, texts, strict=True)]
        return Verdicts(
            {name: (weights[name] * value).numpy() for name, value in scores.terms.items()},
            np.array(right, np.bool_),
            scores.failed.numpy(),
        )

    asked = list(samples.values())
    _require_working(score(terms, [""] * len(asked), asked, range(len(asked))), asked)
    return Scoring(tuple(weights), judge, any(isinstance(term, GroupTerm) for term in terms))


def _term(name: str, given: Any, checks: Mapping[str, Check]) -> Term | GroupTerm:
    """One term of a mapping.

    Raises:
        ValueError: an unknown key, task or option, or a name that means something else.
    """
    where = f"reward term {name!r}"
    if name in RESERVED_TERMS:
        raise ValueError(f"{where}: the environment counts that itself, choose another name")
    if isinstance(given, int | float) and not isinstance(given, bool):
        given = {"weight": given}
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}: give a weight, or a mapping as {{weight: 0.5}}")
    _require_known(given, TERM_KEYS, where=where, what="key")
    tasks = given.get("tasks")
    tasks = None if tasks is None else frozenset([tasks] if isinstance(tasks, str) else tasks)
    _require_known(tasks or (), checks, where=where, what="task")
    options = dict(given.get("options") or {})
    common: dict[str, Any] = {
        "name": name,
        "weight": float(given.get("weight", 1.0)),
        "tasks": tasks,
        "options": options,
    }
    registered = given.get("reward", name)
    if registered in ("correct", "task"):
        _require_known(options, (), where=where, what="option")
        return Term(reward=_own_reward if registered == "task" else _check(checks), **common)
    function, grouped = _registered(registered)
    known = options_of(function)
    _require_known(options, known.keys() - {"scores"}, where=where, what="option")
    if grouped:
        return GroupTerm(reward=function, scores_from=given.get("scores_from"), **common)
    if "scores_from" in given:
        raise ValueError(f"{where}: scores_from belongs to group rewards, {registered!r} is none")
    return Term(reward=function, **common)


def _check(checks: Mapping[str, Check]) -> Callable[[str, Question], float]:
    return lambda response, question: float(checks[question.task](question, response))


def _registered(name: str) -> tuple[Callable[..., Any], bool]:
    """A registered reward, and whether it is one of groups."""
    rewards, groups = registry("rewards"), registry("group_rewards")
    if name in groups.names():
        return groups.get(name), True
    if name not in rewards.names():
        hint = near_names(name, [*rewards.names(), *groups.names(), "correct", "task"])
        raise RegistryError(
            f"no reward {name!r}{hint} (see `embodied-rl list rewards` and `... group_rewards`)"
        )
    return rewards.get(name), False


def _require_known(names: Any, known: Any, *, where: str, what: str) -> None:
    for name in names:
        if name not in known:
            have = ", ".join(sorted(known)) or "none"
            raise ValueError(f"{where}: no {what} {name!r}{near_names(name, known)} (have: {have})")


def _require_working(probe: Scores, asked: Sequence[Question]) -> None:
    """Refuse terms that cannot score an empty answer to the questions of a task they apply to."""
    for name, message in probe.first_failures.items():
        applies = probe.applies[name].tolist()
        tasks = sorted({q.task for q, applied in zip(asked, applies, strict=True) if applied})
        raise ValueError(
            f"reward term {name!r} cannot score questions of {', '.join(tasks)} ({message}): give "
            "it the `tasks` it can score, or the options it lacks"
        )
