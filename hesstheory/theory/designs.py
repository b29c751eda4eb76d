"""Designs of probes compared: by layer, by sample, orthogonal."""

from __future__ import annotations

from collections.abc import Iterable

from hesstheory.theory.matrices import (
    Matrix,
    Scalar,
    as_array,
    check_num_probes,
    checked_symmetric,
    cross_term,
    require,
    require_nonnegative,
)
from hesstheory.theory.probes import probe_variance


def crossover_margin(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar
) -> Scalar:
    """How far the full-vector probe is ahead of separated probes at equal cost.

    margin = (L−1)·(2‖H_ll‖² + (κ−3) Σ H_ii²) − Σ_{m≠l} ‖H_lm‖²

    L full-vector probes cost as many products as one sweep of separated probes.
    The margin is L times the difference of the two variances.

    Parameters
    ----------
    H_ll
        Diagonal block, p×p and symmetric.
    cross_blocks
        H_lm for every other layer m.
    num_layers
        L, this layer included.
    kurtosis
        κ = E z⁴ of the probe's entries.

    Returns
    -------
    Scalar
        Positive where the full-vector probe has less variance; in the units of H squared.

    Raises
    ------
    ValueError
        L < 1.

    Notes
    -----
    Claim T6.

    Examples
    --------
    >>> from hesstheory import theory
    >>> H_ll, H_lm = [[1.0, 2.0], [2.0, 4.0]], [[3.0], [0.0]]
    >>> float(theory.crossover_margin(H_ll, [H_lm], num_layers=2, kurtosis=1))
    7.0
    """
    require(
        num_layers >= 1,
        "num_layers must be >= 1, got {}; count every block, this one included",
        num_layers,
    )
    H_ll = checked_symmetric(H_ll)
    return (num_layers - 1) * probe_variance(H_ll, (), kurtosis) - cross_term(H_ll, cross_blocks)


def full_vector_wins(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar
) -> bool:
    """Whether one full-vector probe beats separated probes at equal cost.

    Takes the arguments of `crossover_margin`, and raises as it does.

    Returns
    -------
    bool
        `crossover_margin` > 0.

    Notes
    -----
    Claim T6.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.full_vector_wins([[1.0, 2.0], [2.0, 4.0]], [[[3.0], [0.0]]], 2, kurtosis=1)
    True
    """
    return bool(crossover_margin(H_ll, cross_blocks, num_layers, kurtosis) > 0)


def per_sample_probe_variance(sample_variances: Matrix) -> Scalar:
    """Variance of the mean over N samples when every sample has a probe of its own.

    Var = (1/N²) Σ_n V_l(H_n)

    One probe for all samples has V_l(H̄). Neither design is always the better one, see
    `per_sample_probes_win`: the covariances of zᵀH_n z and zᵀH_m z may be negative.

    Parameters
    ----------
    sample_variances
        V_l(H_n) of every sample, length N.

    Returns
    -------
    Scalar
        Variance, in the units of H squared.

    Raises
    ------
    ValueError
        The list is empty, or not a vector.

    Notes
    -----
    Claim T19.

    Examples
    --------
    >>> from hesstheory import theory
    >>> float(theory.per_sample_probe_variance([4.0, 8.0]))
    3.0
    """
    V = as_array(sample_variances)
    if V.ndim != 1 or len(V) == 0:
        raise ValueError(
            f"sample_variances must list V_l(H_n), one per sample, got shape {tuple(V.shape)}"
        )
    return V.sum() / len(V) ** 2


def per_sample_probes_win(V_of_mean: Scalar, S_q: Scalar, num_samples: Scalar) -> bool:
    """Whether a probe for every sample has less variance than one probe for all N.

    (1/N²) Σ_n V(H_n) = (V(H̄) + S_q (N−1)/N)/N < V(H̄) exactly where S_q < N·V(H̄)

    At best the variance is N times less. At worst it is more without bound: the curvature of
    the samples may cancel, as for H_2 = −H_1.

    Parameters
    ----------
    V_of_mean
        V(H̄), the variance of one probe on the mean matrix.
    S_q
        Σ_n V(H_n − H̄)/(N−1), the spread of the samples' matrices.
    num_samples
        N ≥ 2.

    Returns
    -------
    bool
        S_q < N·V(H̄).

    Raises
    ------
    ValueError
        A variance is negative, or N < 2.

    Notes
    -----
    Claim T19.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.per_sample_probes_win(1.0, 4.9, 5), theory.per_sample_probes_win(1.0, 5.1, 5)
    (True, False)
    """
    require_nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    require(
        num_samples >= 2,
        "num_samples must be >= 2, got {}; with one the designs are the same",
        num_samples,
    )
    return bool(S_q < num_samples * V_of_mean)


def orthogonal_probe_variance(
    probe_variance: Scalar, num_probes: Scalar, num_params: Scalar
) -> Scalar:
    """Variance of the mean of K orthogonal, exchangeable probes of norm √P.

    Var = V/K·(P−K)/(P−1)

    All P columns together give P·tr H_ll exactly, so two of them have the covariance −V/(P−1).
    K ≪ P therefore gains nothing, and K = P is exact.

    Parameters
    ----------
    probe_variance
        V of ONE probe: T5 for columns of √P times a Haar orthogonal matrix, T2 with κ = 1 for
        signs times random columns of a Hadamard matrix.
    num_probes
        K ≤ P.
    num_params
        P, the parameters in which the probes are orthogonal.

    Returns
    -------
    Scalar
        Variance of the mean, in the units of V.

    Raises
    ------
    ValueError
        V < 0, P < 2 or K > P.

    Notes
    -----
    Claim T20.

    Examples
    --------
    >>> from hesstheory import theory
    >>> [theory.orthogonal_probe_variance(6.0, K, 4) for K in (1, 2, 4)]
    [6.0, 2.0, 0.0]
    """
    K = num_probes
    P = num_params
    check_num_probes(K)
    require_nonnegative(probe_variance=probe_variance)
    require(P >= 2, "num_params must be >= 2, got {}; the trace of one parameter needs one sign", P)
    require(K <= P, "num_probes {} exceeds num_params {}; at most P probes are orthogonal", K, P)
    return probe_variance / K * (P - K) / (P - 1)
