"""Length and repetition of one response; lengths in words (runs of non-spaces).

Terms that never pay, only cost, range over [-1, 0]: an empty response is then worth as much as an
honest one, so they belong beside a reward for being right.
"""

from __future__ import annotations

import re
from collections import Counter

from embodied_rl.rewards.base import clamp
from embodied_rl.types import Question


def num_words(text: str) -> int:
    """Runs of non-spaces."""
    return len(text.split())


def overlong(
    response: str, question: Question, *, max_length: int = 512, margin: int = 128
) -> float:
    """DAPO's soft overlong punishment (Yu et al. 2025, eq. 13; system 4); range [-1, 0].

    0 up to ``max_length - margin`` words, then a straight line to -1 at ``max_length``.
    """
    if not 0 < margin <= max_length:
        raise ValueError(f"margin={margin} must lie in (0, max_length={max_length}]")
    return -clamp((num_words(response) - (max_length - margin)) / margin)


def ngram_repetition(response: str, question: Question, *, n: int = 3) -> float:
    """Minus the share of n-grams of words that occurred before (systems 21, 69); range [-1, 0].

    0 for fewer than ``n`` words.
    """
    words = response.casefold().split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(grams.values())
    return len(grams) / total - 1.0 if total else 0.0


def nonrepeat(response: str, question: Question) -> float:
    """1 if the response says something and no sentence of it twice (Affordance-R1, system 64)."""
    pieces = (" ".join(s.casefold().split()) for s in re.split(r"[.!?;\n]", response))
    sentences = [piece for piece in pieces if piece]
    words = response.casefold().split()
    says_something = len(set(words)) > len(words) / 2
    copied = response.strip() == question.prompt.strip()
    return float(says_something and not copied and len(set(sentences)) == len(sentences))
