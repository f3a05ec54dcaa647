"""Partial credit for a list of changes between two pictures (STAR-R1 on TRANCE, system 63).

Each (object, attribute, value) said is paired with at most one true change: 5 points if all three
agree, 1.5 for object and attribute, 0.5 for the object, -1 for none. Saying fewer changes than
there are costs 1 point for each one missing, so that silence does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embodied_rl.rewards import parse
from embodied_rl.rewards.assignment import MAX_ITEMS, best_pairs
from embodied_rl.rewards.base import required
from embodied_rl.rewards.match import normalize
from embodied_rl.types import Question

FULL, OBJECT_AND_ATTRIBUTE, OBJECT_ONLY, WRONG = 5.0, 1.5, 0.5, -1.0
KEYS = ("object", "attribute", "value")


def transformation_partial(response: str, question: Question) -> float:
    """Points / (5 * number of true changes), at least -1; range [-1, 1].

    Args:
        response: a JSON list of ``[object, attribute, value]`` or of dicts with those keys; what
            cannot be read counts as an empty list.
        question: ``data["changes"]``, such a list, not empty.
    """
    changes = [_triple(change) for change in required(question, "changes")]
    value = parse.json_value(parse.answer_text(response) or "")
    items = value if isinstance(value, list) else [value]
    said = [triple for triple in map(_triple, items) if triple is not None][: MAX_ITEMS + 1]
    unreadable = len(items) - len(said) if value is not None else 0
    if not changes or None in changes:
        raise ValueError(
            f"data['changes'] of {question.task!r} must be [object, attribute, value]s"
        )
    if len(said) > MAX_ITEMS:
        return -1.0
    # WRONG is what an item without a partner gets, so a pair is worth what it adds to that.
    gains = [[_points(a, b) - WRONG for b in changes if b] for a in said]
    points = WRONG * (len(said) + unreadable) + sum(gains[i][j] for i, j in best_pairs(gains))
    points -= max(len(changes) - len(said), 0)
    return max(points / (FULL * len(changes)), -1.0)


def _points(said: Sequence[str], true: Sequence[str]) -> float:
    if said[0] != true[0]:
        return WRONG
    if said[1] != true[1]:
        return OBJECT_ONLY
    return FULL if said[2] == true[2] else OBJECT_AND_ATTRIBUTE


def _triple(item: Any) -> tuple[str, str, str] | None:
    if isinstance(item, dict):
        item = [item.get(key) for key in KEYS]
    if not isinstance(item, list | tuple) or len(item) != 3:
        return None
    if not all(isinstance(part, str | int | float) for part in item):
        return None
    first, second, third = (normalize(str(part)) for part in item)
    return first, second, third
