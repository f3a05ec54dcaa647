"""Rewards that need every response to one question, and how good each of them was.

``scores`` come from another term; a response is correct where its score reaches ``correct_from``.
Lengths are in words. Axes: [G] responses of a group, [B] reference boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import required
from embodied_rl.rewards.boxes import as_box, paired_at, several
from embodied_rl.rewards.length import num_words
from embodied_rl.types import Question


def shortest_correct(
    responses: Sequence[str],
    question: Question,
    *,
    scores: Sequence[float],
    bonus: float = 0.2,
    min_length: int = 0,
    correct_from: float = 0.5,
) -> list[float]:
    """``bonus`` for the shortest correct response longer than ``min_length`` (Observe-R1, 12).

    Equally short ones all get it. Wrong responses get 0.
    """
    lengths = [num_words(response) for response in responses]
    right = [length for length, s in zip(lengths, scores, strict=True) if s >= correct_from]
    if not right or min(right) <= min_length:
        return [0.0] * len(responses)
    shortest = min(right)
    return [
        bonus * (length == shortest and s >= correct_from)
        for length, s in zip(lengths, scores, strict=True)
    ]


def dylr(
    responses: Sequence[str],
    question: Question,
    *,
    scores: Sequence[float],
    fallback_length: float = 750.0,
    max_penalty: float = 0.5,
    correct_from: float = 0.5,
) -> list[float]:
    """Dynamic length reward of VL-Cogito (system 69); range [-max_penalty, 0].

    The target is the mean length of the group's correct responses. A wrong response costs nothing
    at the target, ``max_penalty`` at length 0 and from twice the target on, a cosine between:

        -max_penalty * (1 - cos(pi * min(|length - target| / target, 1))) / 2

    Correct ones get 0, as in the authors' code.
    """
    lengths = [num_words(response) for response in responses]
    right = [length for length, s in zip(lengths, scores, strict=True) if s >= correct_from]
    target = sum(right) / len(right) if right else fallback_length
    target = max(target, 1.0)

    def penalty(length: int) -> float:
        away = min(abs(length - target) / target, 1.0)
        return -max_penalty * (1 - math.cos(math.pi * away)) / 2

    return [
        0.0 if s >= correct_from else penalty(length)
        for length, s in zip(lengths, scores, strict=True)
    ]


def cosine_length(
    responses: Sequence[str],
    question: Question,
    *,
    scores: Sequence[float],
    max_length: int = 512,
    correct: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-1.0, -0.5),
    correct_from: float = 0.5,
) -> list[float]:
    """Cosine between the values at length 0 and at ``max_length`` (Yeo et al. 2025, section 4.2).

    Short is better when correct, long when wrong (keep trying). At ``max_length`` and beyond every
    response counts as wrong and unfinished: ``wrong[0]``.
    """

    def value(length: int, score: float) -> float:
        if length >= max_length:
            return wrong[0]
        start, end = correct if score >= correct_from else wrong
        return end + (start - end) * (1 + math.cos(math.pi * length / max_length)) / 2

    return [value(num_words(r), s) for r, s in zip(responses, scores, strict=True)]


def variance_look(
    responses: Sequence[str],
    question: Question,
    *,
    scores: Sequence[float],
    threshold: float = 0.5,
    min_variance: float = 0.1,
) -> list[float]:
    """How well ``<look>`` names the boxes that the group is not sure of (DIP-R1, system 26).

    Found[g, b] is 1 where response g has an answer box paired with reference b at IoU >=
    ``threshold``. A reference is uncertain where the variance p (1 - p) of its column exceeds
    ``min_variance``. The reward is (look boxes paired with uncertain ones) / max(look boxes,
    uncertain ones): looking everywhere does not pay, and 0 for all where nothing is uncertain.
    The exact form was inferred. Uncertainty can be feigned by answering at random, so this belongs
    beside a reward for the boxes themselves. ``scores`` are not used.

    Args:
        responses: boxes in ``<look>`` and in the answer.
        question: ``data["boxes"]``, the references.
        scores: ignored.
        threshold: IoU at which two boxes are the same.
        min_variance: in (0, 0.25); 0.1 is one of eight responses that differs.
    """
    references = [as_box(box) for box in required(question, "boxes")]
    found = np.zeros((len(responses), len(references)))
    for row, response in enumerate(responses):
        said = several(parse.answer_text(response))
        pairs = paired_at(said, references, threshold=threshold)
        found[row, [column for _, column in pairs]] = 1
    variances = found.var(axis=0)
    unsure = [box for box, v in zip(references, variances, strict=True) if v > min_variance]
    looks = [several(parse.block(response, "look")) for response in responses]
    if not unsure:
        return [0.0] * len(responses)
    pairs = [paired_at(look, unsure, threshold=threshold) for look in looks]
    return [len(p) / max(len(look), len(unsure)) for p, look in zip(pairs, looks, strict=True)]
