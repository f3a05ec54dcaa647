"""The pairing of predictions with references that is worth most; each is used at most once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embodied_rl.rewards.base import library

MAX_ITEMS = 256
"""More predictions than this score 0: no task here has so many, and the matching is cubic."""


def best_pairs(gains: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Rows and columns of the assignment with the largest sum (Hungarian method, scipy).

    Args:
        gains: ``[predictions][references]``.

    Returns:
        ``min(predictions, references)`` pairs (prediction, reference).
    """
    table = np.asarray(gains, dtype=np.float64)
    if table.size == 0:
        return []
    assign = library("scipy.optimize", extra="vqa").linear_sum_assignment
    rows, columns = assign(table, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
