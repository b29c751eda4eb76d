"""Logit probes and Gram matrices."""

from __future__ import annotations

from collections.abc import Iterable

from hesstheory.theory.matrices import (
    Matrix,
    Scalar,
    checked_symmetric,
    require,
    sqrt_of,
    squared_norm,
)
from hesstheory.theory.probes import probe_variance


def logit_probe_variance(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Variance of tr G_ll from one logit probe u_n = S_n ε_n for each of N samples, ‖J_nlᵀu_n‖² summed over them.

    (1/N²) Σ_n [2(‖M_n‖² − ‖diag M_n‖²) + (κ−1)‖diag M_n‖²], M_n = S_nᵀJ_nl J_nlᵀS_n

    S_n is the root of the sample's own loss Hessian, so that batches of any sizes weigh alike. For signs it is 0 where
    S_n has one column, as with two classes. Claim G5.
    """
    variances = [probe_variance(M, (), kurtosis) for M in grams]
    require(len(variances) >= 1, "grams is empty; pass M_n of every sample")
    return sum(variances) / len(variances) ** 2


def summed_logit_probe_variance(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Variance of tr G_ll from logit probes added up over each batch, Σ_b ‖Σ_{n∈b} J_nlᵀu_n‖².

    Σ_b [2(‖M_b‖² − ‖diag M_b‖²) + (κ−1)‖diag M_b‖²], M_b the batch's part of the dual Gram matrix

    One batch and normal probes: 2‖M‖² = 2‖G_ll‖². The parts across batches drop out, so that several batches have less
    variance. Claim G7.
    """
    variances = [probe_variance(M, (), kurtosis) for M in grams]
    require(len(variances) >= 1, "grams is empty; pass M_b of every batch")
    return sum(variances)


def ggn_squared_norm(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Squared norm of a Gauss-Newton block from the dual Gram matrices: ‖G_lm‖² = ⟨M_l, M_m⟩, never negative.

    M_l = B_l B_lᵀ has a row for every column of every sample's root: B_l = (S_nᵀJ_nl/√N)_n, G_lm = B_lᵀB_m. Claim G6.
    """
    M_l, M_m = checked_symmetric(M_l), checked_symmetric(M_m)
    require(
        M_l.shape == M_m.shape,
        "Gram matrices of shapes {} and {}; use the same samples",
        M_l.shape,
        M_m.shape,
    )
    return (M_l * M_m).sum()


def ggn_coupling(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Squared coupling of two blocks of G, the cosine between their dual Gram (tangent kernel) matrices, in [0, 1].

    C² = ‖G_lm‖²/(‖G_ll‖ ‖G_mm‖) = ⟨M_l, M_m⟩/(‖M_l‖ ‖M_m‖)

    Raises where a block is 0. Claim G6.
    """
    norms2 = squared_norm(M_l) * squared_norm(M_m)
    require(norms2 > 0, "a block of G is 0 and has no coupling; leave dead layers out")
    return ggn_squared_norm(M_l, M_m) / sqrt_of(norms2)
