"""Time spans: temporal IoU (TimeLens, system 60) and its scaled form (VITAL, system 59)."""

from __future__ import annotations

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import clamp, required
from embodied_rl.types import Question


def tiou(response: str, question: Question) -> float:
    """Overlap / union of the one span of the answer with ``data["span"]``, (start, end) in s."""
    said = parse.span(parse.answer_text(response) or "")
    start, end = required(question, "span")
    if said is None:
        return 0.0
    overlap = min(said[1], end) - max(said[0], start)
    return max(overlap, 0.0) / (said[1] - said[0] + end - start - max(overlap, 0.0))


def tiou_scaled(response: str, question: Question, *, low: float = 0.3, high: float = 0.7) -> float:
    """clamp((tIoU - low) / (high - low), 0, 1).

    The paper's constants are not public; the defaults are the outer thresholds at which recall is
    usually reported.
    """
    if not low < high:
        raise ValueError(f"low={low} must be less than high={high}")
    return clamp((tiou(response, question) - low) / (high - low))
