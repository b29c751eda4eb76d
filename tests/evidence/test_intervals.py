"""Intervals of means, variances and probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hesstheory.evidence.budget import level_of_look
from hesstheory.evidence.intervals import (
    clopper_pearson,
    mean_interval,
    satterthwaite,
    variance_ratio,
)


def test_intervals_cover_at_their_level():
    draws = np.random.default_rng(0).normal(size=(4000, 64))
    misses = sum(
        not interval.low <= 0 <= interval.high
        for interval in (mean_interval(x, 0.05) for x in draws)
    )
    assert 140 <= misses <= 260  # 200 expected, standard deviation 14
    other = np.random.default_rng(1).normal(size=(4000, 64))
    ratios = (
        variance_ratio((x.var(ddof=1), 63), (y.var(ddof=1), 63), 0.05)
        for x, y in zip(draws, other, strict=True)
    )
    misses = sum(not ratio.low <= 1 <= ratio.high for ratio in ratios)
    assert 140 <= misses <= 260


def test_constant_squares_are_known_exactly():
    assert satterthwaite(np.full(9, 4.0)) == (4.0, np.inf)
    assert variance_ratio((0.0, 9), (0.0, 9), 0.05).effect == 1
    assert variance_ratio((0.0, 9), (1.0, 9), 0.05).high == 0


def test_a_width_is_the_distance_of_the_ends():
    found = mean_interval(np.arange(9.0), 0.05)
    assert found.width == pytest.approx(found.high - found.low)


def test_every_look_spends_an_equal_share():
    assert level_of_look(1e-6, 8) * 8 == pytest.approx(1e-6)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999, 1 - 1e-8])
@pytest.mark.parametrize("trials", [1, 2, 19, 120, 1000])
def test_clopper_pearson_is_the_quantile_of_beta(trials, level):
    """A second route to the same ends, which the library's own code once took."""
    tail = (1 - level) / 2
    for k in sorted({0, 1, trials // 3, trials - 1, trials}):
        low = stats.beta.ppf(tail, k, trials - k + 1) if k else 0.0
        high = stats.beta.isf(tail, k + 1, trials - k) if k < trials else 1.0
        # The library's root finder stops at 2e-12.
        assert np.allclose(clopper_pearson(k, trials, level), (low, high), rtol=1e-7, atol=4e-12)


@pytest.mark.parametrize("p", [0.0, 0.02, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_clopper_pearson_covers(p, level):
    """Summed over all outcomes of 30 trials, the interval contains p with at least its level."""
    covering = [
        k
        for k in range(31)
        if clopper_pearson(k, 30, level)[0] <= p <= clopper_pearson(k, 30, level)[1]
    ]
    assert stats.binom.pmf(covering, 30, p).sum() >= level - 1e-12
