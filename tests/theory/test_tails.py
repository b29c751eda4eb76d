"""Tail bounds and the numbers of probes that they ask for."""

import math

import numpy as np
import pytest
import scipy.stats
from layered_matrices import (
    random_symmetric,
    signs,
)

from hesstheory.theory import (
    GAUSSIAN_TAIL,
    RADEMACHER_TAIL,
    SHARP_RADEMACHER_TAIL,
    num_probes_chebyshev,
    num_probes_normal,
    num_probes_subexponential,
    tail_bound,
)


def test_normal_probes_obey_their_exponential_bound():
    """−½log(1−2s) − s ≤ s²/(1−2s) for 0 ≤ s < ½ (and smaller for s < 0) is what the Gaussian
    constants rest on."""
    s = np.linspace(-3, 0.4999, 4000)
    mgf = -0.5 * np.log1p(-2 * s) - s
    assert (mgf <= s**2 / (1 - 2 * np.maximum(s, 0)) + 1e-15).all()


CHAOS = {
    "all ones": np.ones((10, 10)),
    "rank one": np.outer(np.arange(10), np.arange(10)) / 10.0,
    "single pair": np.eye(10)[[1, 0, *range(2, 10)]] - np.diag([0, 0, *[1.0] * 8]),
    "random": random_symmetric(10, 0),
    "minus ones": -np.ones((10, 10)),
}


@pytest.mark.parametrize("name", CHAOS)
def test_sign_probes_obey_their_exponential_bound(name):
    """log E exp(λ zᵀAz) ≤ 2λ²‖A‖²/(1 − 2λ‖A‖₂) on all sign vectors, and its tail lies above the
    exact one."""
    A = CHAOS[name] - np.diag(np.diag(CHAOS[name]))
    q = np.einsum("ki,ij,kj->k", signs(10), A, signs(10))
    F = np.linalg.norm(A)
    s = np.linalg.norm(A, 2)
    lam = np.linspace(1e-3, 0.499, 200) / s
    psi = scipy.special.logsumexp(lam[:, None] * q, axis=1) - math.log(len(q))
    assert (psi <= 2 * lam**2 * F**2 / (1 - 2 * lam * s)).all()
    for error in np.linspace(0.2, 1, 9) * abs(q).max():
        exact = np.mean(abs(q) >= error)
        sharp, published = (
            tail_bound(1, F, s, error, c) for c in (SHARP_RADEMACHER_TAIL, RADEMACHER_TAIL)
        )
        assert exact <= sharp <= published


@pytest.mark.parametrize(
    ("constants", "a", "c"), [(GAUSSIAN_TAIL, 1, 2), (SHARP_RADEMACHER_TAIL, 2, 2)]
)
def test_tail_is_what_the_exponential_bound_gives(constants, a, c):
    """log E e^{λ(q − tr)} ≤ aλ²‖A‖²/(1 − cλ‖A‖₂) and Markov's inequality at λ = ε/(2a‖A‖² +
    cε‖A‖₂)."""
    F = 2.0
    s = 0.7
    for error in (3.0, 10.0, 30.0):
        lam = error / (2 * a * F**2 + c * error * s)
        markov = 2 * math.exp(a * lam**2 * F**2 / (1 - c * lam * s) - lam * error)
        assert np.isclose(tail_bound(1, F, s, error, constants), min(1, markov), rtol=1e-12)
    assert tail_bound(1, F, s, 10.0, constants) < 1


@pytest.mark.parametrize(
    "constants", [GAUSSIAN_TAIL, RADEMACHER_TAIL, SHARP_RADEMACHER_TAIL], ids=repr
)
@pytest.mark.parametrize(("error", "level"), [(0.1, 0.05), (3.0, 1e-6)])
def test_guaranteed_count_is_the_smallest_whose_bound_is_the_level(constants, error, level):
    K = num_probes_subexponential(2.0, 0.7, error, level, constants)
    assert tail_bound(K, 2.0, 0.7, error, constants) <= level
    assert K == 1 or tail_bound(K - 1, 2.0, 0.7, error, constants) > level


def test_counts_from_the_variance():
    assert num_probes_chebyshev(4.0, 0.5, 0.25) == 64
    assert num_probes_normal(4.0, 0.1, 0.05) == math.ceil(scipy.stats.norm.isf(0.025) ** 2 * 400)
    assert num_probes_chebyshev(0.0, 1.0, 0.05) == num_probes_normal(0.0, 1.0, 0.05) == 1
    assert num_probes_subexponential(0.0, 0.0, 1.0, 0.05, RADEMACHER_TAIL) == 1
    assert num_probes_normal(1.0, 0.1, 0.01) < num_probes_subexponential(
        0.5**0.5, 0.5**0.5, 0.1, 0.01, GAUSSIAN_TAIL
    )
