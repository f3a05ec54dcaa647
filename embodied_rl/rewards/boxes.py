"""Boxes against boxes: (x1, y1, x2, y2) in whatever unit the task uses, areas by exact arithmetic.

    IoU(a, b) = area(a & b) / area(a | b)

References are ``data["box"]`` for one and ``data["boxes"]`` for several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embodied_rl.rewards import parse
from embodied_rl.rewards.assignment import MAX_ITEMS, best_pairs
from embodied_rl.rewards.base import required
from embodied_rl.rewards.parse import Box
from embodied_rl.types import Question


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes with positive area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (area(a) + area(b) - shared)


def area(box: Box) -> float:
    """Width times height."""
    return (box[2] - box[0]) * (box[3] - box[1])


def union_iou(a: Sequence[Box], b: Sequence[Box]) -> float:
    """IoU of the unions of ``a`` and of ``b``, exact: cells between all edges are summed."""
    xs = np.unique([edge for box in (*a, *b) for edge in (box[0], box[2])])
    ys = np.unique([edge for box in (*a, *b) for edge in (box[1], box[3])])
    cells = np.diff(xs)[:, None] * np.diff(ys)[None, :]
    in_a, in_b = _covered(a, xs, ys), _covered(b, xs, ys)
    return float(cells[in_a & in_b].sum() / cells[in_a | in_b].sum())


def _covered(boxes: Sequence[Box], xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    covered = np.zeros((len(xs) - 1, len(ys) - 1), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        columns = slice(*np.searchsorted(xs, (x1, x2)))
        covered[columns, slice(*np.searchsorted(ys, (y1, y2)))] = True
    return covered


def _one(response: str) -> Box | None:
    found = parse.boxes(parse.answer_text(response) or "")
    return found[0] if found and len(found) == 1 else None


def _all(response: str) -> list[Box]:
    return several(parse.answer_text(response))


def several(text: str | None) -> list[Box]:
    """Every box of a text; none of them where there are more than 256."""
    found = parse.boxes(text or "") or []
    return found if len(found) <= MAX_ITEMS else []


def as_box(values: Sequence[float]) -> Box:
    """(x1, y1, x2, y2) as floats."""
    x1, y1, x2, y2 = map(float, values)
    return x1, y1, x2, y2


def paired_at(
    said: Sequence[Box], true: Sequence[Box], *, threshold: float
) -> list[tuple[int, int]]:
    """The most pairs (said, true) with IoU >= ``threshold``, each box in at most one."""
    hits = [[float(iou(a, b) >= threshold) for b in true] for a in said]
    return [(i, j) for i, j in best_pairs(hits) if hits[i][j]]


def box_iou(response: str, question: Question) -> float:
    """IoU of the one box of the answer with ``data["box"]`` (systems 10 and 67)."""
    box = _one(response)
    return iou(box, as_box(required(question, "box"))) if box else 0.0


def roi_iou(response: str, question: Question, *, threshold: float = 0.5) -> float:
    """1 if that IoU reaches ``threshold`` (DocThinker, system 33)."""
    return float(box_iou(response, question) >= threshold)


def union_box_iou(response: str, question: Question) -> float:
    """IoU of the union of all boxes with the union of ``data["boxes"]`` (SATORI-R1, system 49)."""
    said = _all(response)
    references = [as_box(box) for box in required(question, "boxes")]
    return union_iou(said, references) if said else 0.0


def hungarian_boxes(response: str, question: Question) -> float:
    """Sum of the IoUs of the best pairing / max(number said, number of ``data["boxes"]``)."""
    said = _all(response)
    references = [as_box(box) for box in required(question, "boxes")]
    gains = [[iou(a, b) for b in references] for a in said]
    return sum(gains[i][j] for i, j in best_pairs(gains)) / max(len(said), len(references))


def weighted_precision_recall(
    response: str, question: Question, *, precision_weight: float = 0.5, threshold: float = 0.5
) -> float:
    """Precision * w + recall * (1 - w) of boxes paired at IoU >= ``threshold`` (DIP-R1, system 26).

    The most pairs are made that reach the threshold, each box in at most one. The weights are not
    published; equal ones are assumed.
    """
    said = _all(response)
    references = [as_box(box) for box in required(question, "boxes")]
    if not said:
        return 0.0
    count = len(paired_at(said, references, threshold=threshold))
    recall = count / len(references)
    return precision_weight * count / len(said) + (1 - precision_weight) * recall
