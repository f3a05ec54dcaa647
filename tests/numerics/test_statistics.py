"""Intervals against scipy and against how often they really cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from embodied_rl.statistics import bootstrap_interval, wilson_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("trials", [1, 7, 200])
def test_wilson_equals_scipy(trials: int, confidence: float) -> None:
    for successes in range(trials + 1):
        expected = stats.binomtest(successes, trials).proportion_ci(confidence, "wilson")
        ours = wilson_interval(successes, trials, confidence=confidence)
        assert ours == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_ends_are_exact_and_never_empty() -> None:
    assert wilson_interval(0, 200)[0] == 0.0
    assert wilson_interval(200, 200)[1] == 1.0
    assert wilson_interval(200, 200)[0] == pytest.approx(0.981, abs=1e-3)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="count at least one trial"):
        wilson_interval(successes, trials)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap_interval(values, num_resamples=20_000)
    assert ours == pytest.approx((expected.low, expected.high), abs=0.01)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        values = generator.normal(3.0, 2.0, size=50)
        low, high = bootstrap_interval(values, confidence=0.9, num_resamples=500, seed=seed)
        covered += low <= 3.0 <= high
    assert 0.82 * 200 < covered < 0.97 * 200


def test_bootstrap_is_repeatable_and_of_one_value_is_the_value() -> None:
    assert bootstrap_interval([1.0, 2.0, 4.0]) == bootstrap_interval([1.0, 2.0, 4.0])
    assert bootstrap_interval([0.7]) == (0.7, 0.7)


def test_bootstrap_refuses_nothing_and_certainty() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match=r"use 0\.95"):
        bootstrap_interval([1.0], confidence=1.0)
