"""Intervals around what was measured.

Wilson's score interval of a success rate p = s / n at the normal quantile z (E. B. Wilson 1927):

    (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

It stays inside [0, 1] and is not empty at 0 or n successes. For means of anything else: quantiles
of the means of samples drawn with replacement (B. Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def wilson_interval(
    successes: float, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a success probability.

    Args:
        successes: s, from 0 to ``trials``.
        trials: n, at least 1.
        confidence: e.g. 0.95.

    Returns:
        (low, high) in [0, 1].

    Raises:
        ValueError: no trials, or a number out of its range.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials: count at least one trial")
    _check_confidence(confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    centre = rate + z**2 / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    # At the ends the bound is exactly 0 or 1; rounding would leave it a little off.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` [n].

    With few values (three seeds) it spans little more than the values themselves and is narrower
    than its confidence says.

    Args:
        values: one number per seed or episode, at least one.
        confidence: e.g. 0.95.
        num_resamples: samples drawn with replacement.
        seed: of the drawing.

    Returns:
        (low, high); equal for a single value.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"an interval needs a list of at least one value, got shape {array.shape}")
    _check_confidence(confidence)
    picks = np.random.default_rng(seed).integers(array.size, size=(num_resamples, array.size))
    tail = (1 - confidence) / 2
    low, high = np.quantile(array[picks].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is no probability: use 0.95")
