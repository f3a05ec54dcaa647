"""Points against regions, and boxes with a point each (affordances), by Hungarian matching."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from embodied_rl.rewards import parse
from embodied_rl.rewards.assignment import MAX_ITEMS, best_pairs
from embodied_rl.rewards.base import required
from embodied_rl.rewards.boxes import as_box, iou
from embodied_rl.rewards.parse import Box, Point
from embodied_rl.types import Question


def inside(point: Point, box: Box) -> bool:
    """Whether a point lies in a box, edges included."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def point_match(response: str, question: Question) -> float:
    """Share of regions that get a point of their own: pairs / max(points said, regions).

    ``data["boxes"]`` are the regions. A point more than needed costs as much as one missing.
    """
    said = parse.points(parse.answer_text(response) or "") or []
    regions = [as_box(box) for box in required(question, "boxes")]
    if len(said) > MAX_ITEMS:
        return 0.0
    hits = [[float(inside(point, region)) for region in regions] for point in said]
    return sum(hits[i][j] for i, j in best_pairs(hits)) / max(len(said), len(regions))


def affordance_hungarian(
    response: str,
    question: Question,
    *,
    min_iou: float = 0.65,
    max_l1: float = 10.0,
    max_distance: float = 30.0,
) -> float:
    """Affordance-R1's matching reward divided by its maximum (system 64).

    A pair earns a third each for IoU > ``min_iou``; mean |difference| of the four box coordinates
    < ``max_l1``; its point nearer than ``max_distance`` and inside the reference box. The sum over
    the best pairing is divided by max(number said, number of references).

    Args:
        response: JSON list of ``{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}``.
        question: ``data["affordances"]``, a list of the same form.
        min_iou: without unit.
        max_l1: pixels.
        max_distance: pixels.
    """
    references = [_pair(item) for item in required(question, "affordances")]
    value = parse.json_value(parse.answer_text(response) or "")
    items = value if isinstance(value, list) else [value]
    if not items or len(items) > MAX_ITEMS or not all(_is_affordance(item) for item in items):
        return 0.0

    def gain(said: tuple[Box, Point], reference: tuple[Box, Point]) -> float:
        (box, point), (true_box, true_point) = said, reference
        l1 = sum(abs(a - b) for a, b in zip(box, true_box, strict=True)) / 4
        near = math.dist(point, true_point) < max_distance and inside(point, true_box)
        return ((iou(box, true_box) > min_iou) + (l1 < max_l1) + near) / 3

    gains = [[gain(_pair(item), reference) for reference in references] for item in items]
    return sum(gains[i][j] for i, j in best_pairs(gains)) / max(len(items), len(references))


def _is_affordance(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    box, point = item.get("bbox_2d"), item.get("point_2d")
    if not (isinstance(box, list) and isinstance(point, list)):
        return False
    if not (len(box) == 4 and len(point) == 2 and all(map(parse.is_number, [*box, *point]))):
        return False
    return box[0] < box[2] and box[1] < box[3]


def _pair(item: Mapping[str, Any]) -> tuple[Box, Point]:
    x1, y1, x2, y2 = map(float, item["bbox_2d"])
    x, y = map(float, item["point_2d"])
    return (x1, y1, x2, y2), (x, y)
