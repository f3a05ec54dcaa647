"""Whether an answer is right, for every form that a question may ask for.

A check is ``(question, text) -> bool`` and never raises: an answer that cannot be read is wrong.
Success of an episode is one of these; how much a nearly right answer earns is up to the reward.

- words, letters, whole numbers: the same, case, spaces and a last full stop apart;
- boxes: as many as asked for, paired so that every pair has intersection / union >= 1/2;
- points: as many as asked for, each in another of the boxes; spans: intersection / union >= 1/2;
- orders: the same numbers in the same order; rankings: all pages, those asked for in front;
- programs: the same syntax tree, so that layout, comments and quotes do not matter. Another program
  may be as right: whoever can run it should let the reward say so (see `env`).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from embodied_rl.types import Question

OVERLAP = 0.5
"""Least intersection / union of a box or span that counts as found."""
MAX_ITEMS = 64
"""Longer lists of boxes, points or changes are wrong without being looked at."""


def normalise(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.casefold().split()).removesuffix(".").strip()


def same_words(question: Question, text: str) -> bool:
    """The reference in the same words."""
    return normalise(text) == normalise(question.answer)


def same_number(question: Question, text: str) -> bool:
    """The reference as a number, where it is one, else in the same words."""
    try:
        return float(text) == float(question.answer)
    except ValueError:
        return same_words(question, text)


def same_order(question: Question, text: str) -> bool:
    """The numbers of the reference in its order, separated by spaces or commas."""
    return _integers(text) == _integers(question.answer)


def positives_first(question: Question, text: str) -> bool:
    """All of ``data["candidates"]`` once, with ``data["positives"]`` in front."""
    said, positives = _integers(text), set(question.data["positives"])
    if said is None or sorted(said) != sorted(question.data["candidates"]):
        return False
    return set(said[: len(positives)]) == positives


def places(question: Question, text: str) -> bool:
    """Boxes that overlap those of ``data["boxes"]``, or points in them (``data["output"]``)."""
    value, boxes = read_json(text), question.data["boxes"]
    length = 4 if question.data["output"] == "boxes" else 2
    said = [value] if is_vector(value, length) else value
    if not isinstance(said, list) or len(said) != len(boxes):
        return False
    if not all(is_vector(item, length) for item in said):
        return False
    fits = box_iou if length == 4 else _inside
    table = np.array([[fits(item, box) >= OVERLAP for box in boxes] for item in said])
    return _perfect_pairing(table)


def overlapping_span(question: Question, text: str) -> bool:
    """``[start, end]`` that overlaps ``data["clean_span"]``."""
    said = read_json(text)
    if not is_vector(said, 2):
        return False
    (a, b), (c, d) = said, question.data["clean_span"]
    # An interval is a box one high.
    return a < b and box_iou((a, 0, b, 1), (c, 0, d, 1)) >= OVERLAP


def same_changes(question: Question, text: str) -> bool:
    """The items of ``data["changes"]`` in any order, nothing beside them."""
    said = read_json(text)
    if not isinstance(said, list) or len(said) > MAX_ITEMS:
        return False
    true = sorted(map(_plain, question.data["changes"]))
    return sorted(map(_plain, said)) == true


def same_checklist(question: Question, text: str) -> bool:
    """``data["checklist"]`` as a JSON list in the tags ``checklist``, ``final`` in ``answer``."""
    facts, final = _block(text, "checklist"), _block(text, "answer")
    said = None if facts is None else read_json(facts)
    if final is None or not isinstance(said, list):
        return False
    same_facts = [normalise(str(fact)) for fact in said] == list(question.data["checklist"])
    return same_facts and normalise(final) == question.data["final"]


def same_program(question: Question, text: str) -> bool:
    """The reference program, a fence of backquotes and matters of layout apart."""
    fenced = re.fullmatch(r"\s*```(?:python)?\n(.*?)```\s*", text, re.DOTALL)
    try:
        said = ast.dump(ast.parse((fenced[1] if fenced else text).strip()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return said == ast.dump(ast.parse(question.answer))


def read_json(text: str) -> Any:
    """The value of a JSON text, None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_vector(value: object, length: int) -> bool:
    """Whether ``value`` is a list of ``length`` finite numbers."""
    if not isinstance(value, list) or len(value) != length:
        return False
    return all(
        isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e9 for x in value
    )


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection / union of two boxes ``[x1, y1, x2, y2]``; 0 if one of them is empty."""
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _inside(point: Sequence[float], box: Sequence[float]) -> bool:
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


def _perfect_pairing(table: np.ndarray) -> bool:
    """Whether every row of a square bool table can have a column of its own (augmenting paths)."""
    taken: dict[int, int] = {}

    def give(row: int, tried: set[int]) -> bool:
        for column in np.flatnonzero(table[row]).tolist():
            if column not in tried:
                tried.add(column)
                if column not in taken or give(taken[column], tried):
                    taken[column] = row
                    return True
        return False

    return all(give(row, set()) for row in range(len(table)))


def _integers(text: str) -> list[int] | None:
    if not re.fullmatch(r"\s*\d{1,6}(?:(?:\s*,\s*|\s+)\d{1,6})*\s*\.?\s*", text, re.ASCII):
        return None
    return [int(number) for number in re.findall(r"\d+", text)]


def _plain(change: object) -> str:
    """An ``[object, attribute, value]`` as comparable text."""
    parts = change if isinstance(change, list) else [change]
    return json.dumps([normalise(str(part)) for part in parts])


def _block(text: str, name: str) -> str | None:
    """What stands between the one pair of tags ``name``."""
    found = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
    return found[0] if len(found) == 1 else None
