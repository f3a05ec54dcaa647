"""Two attempts (SRPO, system 56) and stated confidence (Prompt4Trust, system 66)."""

from __future__ import annotations

import math
from typing import Literal

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import clamp
from embodied_rl.rewards.length import num_words
from embodied_rl.rewards.match import is_correct
from embodied_rl.types import Question

CLOSED = {(True, True): 1.0, (False, True): 0.75, (True, False): 0.25, (False, False): 0.0}
SRPO = {(True, True): 0.75, (False, True): 1.0, (True, False): 0.25, (False, False): 0.0}
SINGLE = 0.5


def reflection_transition(
    response: str, question: Question, *, scheme: Literal["closed", "srpo"] = "closed"
) -> float:
    """Worth of (first attempt right, second right); attempts are two ``<answer>`` blocks.

    SRPO pays wrong -> right 1 and right -> right 0.75: a policy that gets its first answer right
    gains by spoiling it (0.8 against 0.6 for a skill of 0.8). ``closed`` swaps the two: whatever
    the second attempt does, a right first one is never worth less than a wrong one. One answer
    alone is worth 0.5 if right; three or more, or unfinished ones, nothing.

    Raises:
        ValueError: an unknown scheme.
    """
    if scheme not in ("closed", "srpo"):
        raise ValueError(f"scheme is {scheme!r}; use 'closed' or 'srpo'")
    attempts = parse.blocks(response, "answer")
    if not attempts or len(attempts) > 2:
        return 0.0
    right = [is_correct(attempt.strip() or None, question) for attempt in attempts]
    if len(right) == 1:
        return SINGLE * right[0]
    return (CLOSED if scheme == "closed" else SRPO)[right[0], right[1]]


def reflection_length(response: str, question: Question) -> float:
    """exp(-((L - 2 l) / (0.5 l))^2): L words in all, l up to the end of the first answer (SRPO).

    0 without exactly two answers. The paper's weight is 0.1. What l is was inferred.
    """
    attempts = parse.blocks(response, "answer")
    if attempts is None or len(attempts) != 2 or not all(a.strip() for a in attempts):
        return 0.0
    words = response.casefold().split()
    if 2 * len(set(words)) < len(words):  # filler of a few repeated words
        return 0.0
    first = num_words(response.partition("</answer>")[0])
    return math.exp(-(((num_words(response) - 2 * first) / (0.5 * first)) ** 2))


def calibration_log(response: str, question: Question, *, min_probability: float = 0.01) -> float:
    """Log score of a stated confidence (Prompt4Trust, system 66); range [ln(min) - 1, 0].

    ln p if the answer is right, ln(1 - p) - 1 if it is wrong, ln(``min_probability``) - 1 if there
    is no answer or no confidence, so that silence is never better than any answer. p is the one
    number in ``<confidence>``, a share or a percentage, limited to [min, 1 - min]; the expected
    value is largest at the true probability of being right.
    """
    worst = math.log(min_probability) - 1
    stated = parse.block(parse.after_thinking(response), "confidence")
    answer = parse.answer_text(response)
    said = parse.only_number(stated) if stated is not None else None
    if answer is None or said is None or parse.block(response, "answer") is None:
        return worst
    assert stated is not None
    share = said / 100 if "%" in stated else said
    if not 0 <= share <= 1:
        return worst
    p = clamp(share, low=min_probability, high=1 - min_probability)
    return math.log(p) if is_correct(answer, question) else math.log(1 - p) - 1
