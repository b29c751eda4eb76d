"""Matrices with layers, in symbols and in numbers, and expectations over probes of every kind."""

import itertools

import numpy as np
import sympy as sp

from hesstheory.theory import expectation

MU3, KAPPA = sp.symbols("mu3 kappa", real=True)
ANY_PROBE = {1: 0, 2: 1, 3: MU3, 4: KAPPA}
NORMAL = {1: 0, 2: 1, 3: 0, 4: 3}
PARTITIONS = [(3, 2, 1), (2, 2), (1, 3), (4,), (1, 1, 1)]


def blocks_of(sizes):
    """Consecutive row numbers of each block."""
    ends = list(itertools.accumulate(sizes))
    return [list(range(e - s, e)) for s, e in zip(sizes, ends, strict=True)]


def cut(H, blocks, a):
    """The diagonal block of layer a and its cross blocks, of a sympy matrix or an array."""
    pick = (
        (lambda i, j: H.extract(i, j))
        if isinstance(H, sp.MatrixBase)
        else (lambda i, j: H[i][:, j])
    )
    return pick(blocks[a], blocks[a]), [pick(blocks[a], m) for b, m in enumerate(blocks) if b != a]


def single_estimates(H, z, blocks):
    """q_l = z_lᵀ(Hz)_l of every block."""
    return [sp.expand(sum(z[i] * (H.row(i) * z)[0] for i in block)) for block in blocks]


def variance(q, z, moments):
    """Var q over probes of these moments."""
    return sp.expand(expectation(q**2, z, moments) - expectation(q, z, moments) ** 2)


def sphere_expectation(quartic, z):
    """E over the sphere of radius √P of a form of degree 4: that over normal z is E‖z‖⁴/P² =
    (P+2)/P times as large."""
    return expectation(quartic, z, NORMAL) * sp.Rational(len(z), len(z) + 2)


def is_zero(x):
    """Whether sympy simplifies x to 0."""
    return sp.simplify(x) == 0


def signs(n):
    """All sign vectors, 2ⁿ×n."""
    return np.array(list(itertools.product([-1.0, 1.0], repeat=n)))


def random_symmetric(n, seed, rank=None):
    """A symmetric matrix; with a rank, a positive one of that rank."""
    A = np.random.default_rng(seed).normal(size=(n, n if rank is None else rank))
    return A + A.T if rank is None else A @ A.T
