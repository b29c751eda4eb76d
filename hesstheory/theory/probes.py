"""Variance and covariance of estimates from probes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hesstheory.theory.matrices import (
    Matrix,
    Scalar,
    as_array,
    block_rows,
    check_num_probes,
    checked_symmetric,
    constant_like,
    cross_term,
    off_diagonal,
    require,
    require_nonnegative,
    squared_norm,
)


def probe_variance(H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Variance of q_l from one full-vector probe.

    Var q_l = 2‖H_ll‖² + (κ−3) Σ_i H_ii² + Σ_{m≠l} ‖H_lm‖²

    Without cross blocks it is the variance of a probe supported on layer l and, for all of H, the classical Var zᵀHz.
    Written as 2‖off-diagonal‖² + (κ−1) Σ H_ii² + …, which cannot cancel. Claim T2.
    """
    H_ll = checked_symmetric(H_ll)
    require(
        kurtosis >= 1,
        "kurtosis is E z⁴ (Rademacher 1, Gaussian 3), never below 1: got {}, an excess?",
        kurtosis,
    )
    own = 2 * squared_norm(off_diagonal(H_ll)) + (kurtosis - 1) * squared_norm(H_ll.diagonal())
    return own + cross_term(H_ll, cross_blocks)


def probe_variance_from_norms(
    squared_norm: Scalar, diagonal_squares: Scalar, cross_squares: Scalar, kurtosis: Scalar
) -> Scalar:
    """`probe_variance` from norms: 2‖H_ll‖² + (κ−3) Σ_i H_ii² + Σ_{m≠l} ‖H_lm‖². Claim T2.

    `cross_squares` is 0 for a probe supported on layer l. Written so that no term cancels for κ ≥ 1.
    """
    off_diagonal_squares = squared_norm - diagonal_squares
    return 2 * off_diagonal_squares + (kurtosis - 1) * diagonal_squares + cross_squares


def probe_covariance(H_lm: Matrix) -> Scalar:
    """Covariance of two layers' estimates from one probe: Cov(q_l, q_m) = ‖H_lm‖² for l ≠ m, whatever κ. Claim T3."""
    return squared_norm(H_lm)


def probe_covariance_matrix(H: Matrix, index: Mapping[str, Any], kurtosis: Scalar) -> Matrix:
    """The L×L covariance of (q_1, …, q_L): T2 on the diagonal, T3 off it; its entries sum to Var zᵀHz.

    `index` maps each block to the rows of H it owns, in any order; raises unless every row is owned exactly once.
    """
    A = checked_symmetric(H)
    rows = [block_rows(i) for i in index.values()]
    if sorted(i for r in rows for i in r.tolist()) != list(range(len(A))):
        raise ValueError(
            f"index must own each of the {len(A)} rows of H exactly once; complete the partition"
        )
    blocks = [[A[i][:, j] for j in rows] for i in rows]
    C = A[: len(rows), : len(rows)] * 0
    for a, row in enumerate(blocks):
        for b, H_ab in enumerate(row):
            C[a, b] = (
                probe_covariance(H_ab)
                if a != b
                else probe_variance(H_ab, row[:a] + row[a + 1 :], kurtosis)
            )
    return constant_like(C, H)


def rademacher_advantage(H_ll: Matrix) -> Scalar:
    """What signs save over normal probes: Var_Gauss q_l − Var_Rademacher q_l = 2 Σ_{i∈l} H_ii² ≥ 0. Claim T4."""
    return 2 * squared_norm(checked_symmetric(H_ll).diagonal())


def sphere_variance(H_ll: Matrix, cross_blocks: Iterable[Matrix], num_params: Scalar) -> Scalar:
    """Variance of q_l for z uniform on the sphere of radius √P in all P parameters.

    Var q_l = P/(P+2)·(2‖H_ll‖² + Σ_{m≠l} ‖H_lm‖²) − 2/(P+2)·(tr H_ll)²

    Written with ‖H_ll‖² = ‖H_ll − (t/p)I‖² + t²/p for a p×p block of trace t, which cannot cancel. Claim T5.
    """
    H_ll, P = checked_symmetric(H_ll), num_params
    p = len(H_ll)
    require(
        p <= P,
        "num_params counts ALL parameters of the probe: got {}, fewer than the {} of this block",
        P,
        p,
    )
    t = H_ll.diagonal().sum()
    spread = (
        squared_norm(off_diagonal(H_ll))
        + squared_norm(H_ll.diagonal() - t / p)
        + (t * t / p - t * t / P)
    )
    return (2 * spread + cross_term(H_ll, cross_blocks)) * P / (P + 2)


def crossover_margin(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar
) -> Scalar:
    """How far the full-vector probe is ahead at equal products; negative where separated probes win.

    margin = (L−1)·(2‖H_ll‖² + (κ−3) Σ H_ii²) − Σ_{m≠l} ‖H_lm‖²

    L full-vector probes cost one sweep of separated probes; the margin is L × the difference in variance. Claim T6.
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
    """Whether one full-vector probe beats separated probes at equal products: `crossover_margin` > 0. Claim T6."""
    return bool(crossover_margin(H_ll, cross_blocks, num_layers, kurtosis) > 0)


def quadratic_form(H: Matrix, index_l: Any) -> Matrix:
    """The matrix of the one-product estimate: q_l = zᵀA_l z, A_l = (E_l H + H E_l)/2, E_l the projector on layer l.

    ‖A_l‖² = ‖H_ll‖² + ½ Σ_{m≠l} ‖H_lm‖². A_l is indefinite whenever a cross block is not zero, even for H ⪰ 0, so
    tail bounds for q_l need the norms of A_l, not of H_ll. Claim T17.
    """
    A, index = checked_symmetric(H), block_rows(index_l)
    if not set(index.tolist()) <= set(range(len(A))) or len(set(index.tolist())) < len(index):
        raise ValueError(
            f"index_l must hold distinct rows of H, 0 to {len(A) - 1}, got {index.tolist()}"
        )
    e = A.diagonal() * 0
    e[index] = 1
    return constant_like(A * (e[:, None] + e[None, :]) / 2, H)


def per_sample_probe_variance(sample_variances: Matrix) -> Scalar:
    """Probe variance of the mean over N samples when every sample has its own probe: (1/N²) Σ_n V_l(H_n).

    One probe for all has V(H̄) = (1/N²) Σ_nm V(H_n, H_m), where V(A, B) = Cov(zᵀAz, zᵀBz) may be negative, so that
    neither design is always the better one: see `per_sample_probes_win`. Claim T19.
    """
    V = as_array(sample_variances)
    if V.ndim != 1 or len(V) == 0:
        raise ValueError(
            f"sample_variances must list V_l(H_n), one per sample, got shape {tuple(V.shape)}"
        )
    return V.sum() / len(V) ** 2


def per_sample_probes_win(V_of_mean: Scalar, S_q: Scalar, num_samples: Scalar) -> bool:
    """Whether a probe per sample has less variance than one probe for all N: S_q < N·V(H̄).

    (1/N²) Σ_n V(H_n) = (V(H̄) + S_q (N−1)/N)/N, S_q = Σ_n V(H_n − H̄)/(N−1): at best N times less than V(H̄), and
    without bound more where the curvature of the samples cancels, as for H_2 = −H_1. Claim T19.
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
    """Variance of the mean of K orthogonal, exchangeable probes of norm √P: V/K·(P−K)/(P−1), V that of ONE probe.

    V is T5 for columns of √P × a Haar orthogonal matrix, and T2 with κ = 1 for signs × random columns of a Hadamard
    matrix. All P columns together give P·tr H_ll exactly, so each pair has covariance −V/(P−1). P counts the parameters
    in which the probes are orthogonal: K ≪ P gains nothing, K = P is exact. Claim T20.
    """
    K, P = num_probes, num_params
    check_num_probes(K)
    require_nonnegative(probe_variance=probe_variance)
    require(P >= 2, "num_params must be >= 2, got {}; the trace of one parameter needs one sign", P)
    require(K <= P, "num_probes {} exceeds num_params {}; at most P probes are orthogonal", K, P)
    return probe_variance / K * (P - K) / (P - 1)
