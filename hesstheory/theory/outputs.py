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
    """Variance of the estimate of tr G_ll from one logit probe for each of N samples.

    Var (1/N) Σ_n ‖J_nlᵀS_nε_n‖²
    = (1/N²) Σ_n [2(‖M_n‖² − ‖diag M_n‖²) + (κ−1)‖diag M_n‖²]

    For signs it is 0 where S_n has one column, as with two classes.

    Parameters
    ----------
    grams
        M_n = S_nᵀJ_nl J_nlᵀS_n of every sample. S_n is the root of the sample's own loss
        Hessian, so that batches of any sizes weigh alike.
    kurtosis
        κ = E ε⁴ of the entries of ε_n.

    Returns
    -------
    Scalar
        Variance, in the units of G squared.

    Raises
    ------
    ValueError
        There is no sample.

    Notes
    -----
    Claim G5.

    Examples
    --------
    >>> from hesstheory import theory
    >>> float(theory.logit_probe_variance([[[1.0, 2.0], [2.0, 4.0]]] * 2, kurtosis=1))
    8.0
    """
    variances = [probe_variance(M, (), kurtosis) for M in grams]
    require(len(variances) >= 1, "grams is empty; pass M_n of every sample")
    return sum(variances) / len(variances) ** 2


def summed_logit_probe_variance(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Variance of the estimate of tr G_ll from logit probes added up over each batch.

    Var Σ_b ‖Σ_{n∈b} J_nlᵀu_n‖²
    = Σ_b [2(‖M_b‖² − ‖diag M_b‖²) + (κ−1)‖diag M_b‖²]

    One batch and normal probes give 2‖M‖² = 2‖G_ll‖². The parts across batches drop out, so
    that several batches have less variance.

    Parameters
    ----------
    grams
        M_b, the part of the dual Gram matrix that belongs to batch b, for every batch.
    kurtosis
        κ = E ε⁴ of the entries of ε.

    Returns
    -------
    Scalar
        Variance, in the units of G squared.

    Raises
    ------
    ValueError
        There is no batch.

    Notes
    -----
    Claim G7.

    Examples
    --------
    >>> from hesstheory import theory
    >>> float(theory.summed_logit_probe_variance([[[1.0, 2.0], [2.0, 4.0]]], kurtosis=3))
    50.0
    """
    variances = [probe_variance(M, (), kurtosis) for M in grams]
    require(len(variances) >= 1, "grams is empty; pass M_b of every batch")
    return sum(variances)


def ggn_squared_norm(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Squared norm of a block of the Gauss-Newton matrix from the dual Gram matrices.

    ‖G_lm‖² = ⟨M_l, M_m⟩ ≥ 0, M_l = B_l B_lᵀ, B_l = (S_nᵀJ_nl/√N)_n, G_lm = B_lᵀB_m

    Parameters
    ----------
    M_l, M_m
        Symmetric, a row for every column of every sample's root.

    Returns
    -------
    Scalar
        In the units of G squared.

    Raises
    ------
    ValueError
        The matrices belong to different samples.

    Notes
    -----
    Claim G6.

    Examples
    --------
    >>> from hesstheory import theory
    >>> float(theory.ggn_squared_norm([[1.0, 0.0], [0.0, 2.0]], [[3.0, 1.0], [1.0, 1.0]]))
    5.0
    """
    M_l = checked_symmetric(M_l)
    M_m = checked_symmetric(M_m)
    require(
        M_l.shape == M_m.shape,
        "Gram matrices of shapes {} and {}; use the same samples",
        M_l.shape,
        M_m.shape,
    )
    return (M_l * M_m).sum()


def ggn_coupling(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Squared coupling of two blocks of G, the cosine between their dual Gram matrices.

    C² = ‖G_lm‖²/(‖G_ll‖ ‖G_mm‖) = ⟨M_l, M_m⟩/(‖M_l‖ ‖M_m‖) ∈ [0, 1]

    Parameters
    ----------
    M_l, M_m
        As in `ggn_squared_norm`. They are tangent kernels of the layers.

    Returns
    -------
    Scalar
        C², without a unit.

    Raises
    ------
    ValueError
        A block is 0.

    Notes
    -----
    Claim G6.a.

    Examples
    --------
    >>> from hesstheory import theory
    >>> M = [[3.0, 0.0], [0.0, 4.0]]
    >>> float(theory.ggn_coupling(M, M)), float(theory.ggn_coupling(M, [[5.0, 0.0], [0.0, 0.0]]))
    (1.0, 0.6)
    """
    norms2 = squared_norm(M_l) * squared_norm(M_m)
    require(norms2 > 0, "a block of G is 0 and has no coupling; leave dead layers out")
    return ggn_squared_norm(M_l, M_m) / sqrt_of(norms2)
