"""Bernstein tails bound what they say, each probability computed where it can be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from hesstheory.evidence.sequential import Tail


@dataclass(frozen=True)
class Draws:
    """Draws whose mean of n has a known distribution: `outside(n, w)` is P(|mean − E X| > w)."""

    name: str
    tail: Tail
    outside: object

    def __str__(self):
        return self.name


def of_binomial(p):
    def outside(n, width):
        low, high = math.ceil(n * (p - width)) - 1, math.floor(n * (p + width))
        return stats.binom.cdf(low, n, p) + stats.binom.sf(high, n, p)

    return Draws(f"Bernoulli, p = {p}", Tail.bounded(p * (1 - p), max(p, 1 - p)), outside)


def of_normal_form(eigenvalue, size):
    """zᵀAz of A = λI, λ times a χ² of as many degrees of freedom."""

    def outside(n, width):
        chi2, centre = stats.chi2(n * size), n * size
        return chi2.sf(centre + n * width / abs(eigenvalue)) + chi2.cdf(
            centre - n * width / abs(eigenvalue)
        )

    return Draws(
        f"{size} × {size} normal form",
        Tail.gaussian_form(abs(eigenvalue) * size**0.5, abs(eigenvalue)),
        outside,
    )


def of_sign_form(size):
    """zᵀBz = (Σz)² − m of B = 11ᵀ − I."""
    heads = np.arange(size + 1)
    values, weights = (2 * heads - size) ** 2 - size, stats.binom.pmf(heads, size, 0.5)
    one = np.zeros(size**2 + 1)
    np.add.at(one, values + size, weights)  # index = value + m, as many as n·m for n draws

    def outside(n, width):
        pmf = one
        for _ in range(n - 1):
            pmf = np.convolve(pmf, one)
        return pmf[np.abs(np.arange(len(pmf)) / n - size) > width].sum()

    B = np.ones((size, size)) - np.eye(size)
    return Draws(
        f"{size} × {size} sign form",
        Tail.sign_form(np.linalg.norm(B), np.linalg.norm(B, 2)),
        outside,
    )


NORMAL = Draws("normal", Tail(4.0, 0.0), lambda n, width: 2 * stats.norm.sf(width * n**0.5 / 2))
DRAWS = [
    NORMAL,
    *(of_binomial(p) for p in (0.5, 0.1, 0.9, 0.001)),
    *(of_normal_form(eigenvalue, size) for eigenvalue, size in ((1.0, 1), (-2.0, 3), (0.5, 100))),
    *(of_sign_form(size) for size in (2, 3, 8)),
]


@pytest.mark.parametrize("alpha", [0.3, 0.01, 1e-8])
@pytest.mark.parametrize("num_draws", [1, 2, 7, 40])
@pytest.mark.parametrize("draws", DRAWS, ids=str)
def test_tail_probability_is_below_the_level(draws, num_draws, alpha):
    """The exact probability that the mean leaves the interval is at most α, for every n."""
    assert draws.outside(num_draws, draws.tail.half_width(num_draws, alpha)) <= alpha * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [0.3, 1e-3, 1e-8])
@pytest.mark.parametrize("num_draws", [1, 10, 10**6])
@pytest.mark.parametrize(
    ("variance", "scale"), [(1.0, 0.0), (0.25, 3.0), (1e-12, 1.0), (np.ones(3), np.arange(3.0))]
)
def test_half_width_solves_bernstein(variance, scale, num_draws, alpha):
    """2 exp(−nε²/(2(v + cε))) = α at ε: no narrower interval is guaranteed and no wider one is
    needed."""
    width = Tail(variance, scale).half_width(num_draws, alpha)
    assert np.allclose(
        2 * np.exp(-num_draws * width**2 / (2 * (variance + scale * width))),
        alpha,
        rtol=1e-9,
        atol=0,
    )


def test_half_width_of_normal_draws_is_nearly_theirs():
    """Without it a constant too large by 2 would pass every guarantee."""
    for alpha in (1e-4, 1e-8, 1e-12):
        ratio = NORMAL.tail.half_width(9, alpha) / (stats.norm.isf(alpha / 2) * 2 / 3)
        assert 1 < ratio < 1.2


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [((10, 1e-3), (11, 1e-3)), ((10, 1e-4), (10, 1e-3)), ((1, 1e-8), (10**6, 1e-8))],
    ids=["more draws", "higher level", "many draws"],
)
def test_half_width_falls(wide, narrow):
    tail = Tail.bounded(np.array([1.0, 2.0]), 5.0)
    assert (tail.half_width(*wide) > tail.half_width(*narrow)).all()
