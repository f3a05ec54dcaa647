"""Statistics of subsets ("segments") of a flat tensor, without a Python loop.

A segment is the set of entries with the same index; the axes are ``X`` entries and ``S`` segments.
Sums run in float64, so that the deviations of equal float32 numbers vanish instead of being
rounding noise that a division by a tiny standard deviation would blow up.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(x: Tensor, index: Tensor, *, num_segments: int) -> Tensor:
    """Sum of each segment.

    Args:
        x: ``[X]`` numbers.
        index: ``[X]`` int64 in [0, num_segments).
        num_segments: S.

    Returns:
        ``[S]`` float64.
    """
    zeros = torch.zeros(num_segments, dtype=torch.float64, device=x.device)
    return zeros.index_add_(0, index, x.double())


def segment_moments(
    x: Tensor, index: Tensor, *, num_segments: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased standard deviation and count of each segment.

    Args:
        x: ``[X]`` numbers.
        index: ``[X]`` int64 in [0, num_segments).
        num_segments: S.

    Returns:
        (mean, std, count), ``[S]`` float64 each; mean is 0 for an empty segment, std is 0 for one
        with fewer than two entries.
    """
    count = segment_sum(torch.ones_like(x), index, num_segments=num_segments)
    mean = segment_sum(x, index, num_segments=num_segments) / count.clamp(min=1)
    squares = (x.double() - mean[index]).square()
    variance = segment_sum(squares, index, num_segments=num_segments) / (count - 1).clamp(min=1)
    return mean, variance.sqrt(), count


def segment_range(x: Tensor, index: Tensor, *, num_segments: int) -> tuple[Tensor, Tensor]:
    """Least and greatest entry of each segment.

    Args:
        x: ``[X]`` numbers.
        index: ``[X]`` int64 in [0, num_segments); every segment has at least one entry.
        num_segments: S.

    Returns:
        (low, high), ``[S]`` each, dtype of ``x``.
    """
    empty = torch.zeros(num_segments, dtype=x.dtype, device=x.device)
    low = empty.scatter_reduce(0, index, x, "amin", include_self=False)
    high = empty.scatter_reduce(0, index, x, "amax", include_self=False)
    return low, high
