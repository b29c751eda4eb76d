"""What should come out? The closed forms, each one short function in the symbols of its theorem.

Every function takes torch tensors, numpy arrays and sympy matrices alike, so that the formula which sympy proves is the formula
which the code uses. Nothing here draws, differentiates or estimates: a prediction is never computed from what it predicts.

Notation: H symmetric P×P with blocks H_lm over layers l = 1..L; a probe z has independent entries of mean 0, variance 1 and fourth
moment κ = E z⁴ (Rademacher 1, Gaussian 3); q_l = z_lᵀ(Hz)_l; ‖·‖ is the Frobenius norm; b samples of n make a mini-batch B;
K probes share one; t_n = tr H_n,ll of sample n. Claims T1–T20 are stated in the catalogue of claims.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Matrix = Any  # a torch tensor, a numpy array (also of sympy entries) or a sympy matrix; lists are read as numpy arrays
Scalar = Any  # a number, a 0-d tensor or a sympy expression; where only arithmetic is done, an array of them


def _require(holds: Any, message: str) -> None:
    """Raise unless `holds`; a relation between free symbols is undecided and passes."""
    if getattr(holds, "free_symbols", None):
        return
    if not (holds.all() if hasattr(holds, "all") else holds):
        raise ValueError(message)


def _nonnegative(**quantities: Scalar) -> None:
    for name, x in quantities.items():
        _require(x >= 0, f"{name} must be >= 0, got {x}; a negative or NaN variance means that it was estimated, not computed")


def _check_probes(num_probes: Scalar) -> None:
    _require(num_probes >= 1, f"num_probes must be >= 1, got {num_probes}; use at least one probe")


def _check_kurtosis(kurtosis: Scalar) -> None:
    _require(
        kurtosis >= 1,
        f"kurtosis must be >= 1, got {kurtosis}; it is E z⁴ of a unit-variance probe (Rademacher 1, Gaussian 3), not the excess",
    )


def _array(A: Matrix) -> Matrix:
    """The same entries as a torch tensor or a numpy array, integers as floats."""
    if hasattr(A, "new_zeros"):
        return A if A.is_floating_point() else A.double()
    A = np.array(A.tolist(), dtype=object) if getattr(A, "is_Matrix", False) else np.asarray(A)
    return A.astype(float) if A.dtype.kind in "biu" else A


def _eps(A: Matrix) -> float:
    if hasattr(A, "new_zeros"):
        import torch

        return torch.finfo(A.dtype).eps
    return float(np.finfo(A.dtype).eps)


def _eigenvalues(A: Matrix) -> Matrix:
    if hasattr(A, "new_zeros"):
        import torch

        return torch.linalg.eigvalsh(A)
    return np.linalg.eigvalsh(A)


def _symmetric(A: Matrix) -> Matrix:
    """`_array(A)` if it is square, finite and symmetric up to rounding (√eps of the largest entry; symbols exactly)."""
    A = _array(A)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or len(A) == 0:
        raise ValueError(f"expected a square matrix, got shape {tuple(A.shape)}; pass the diagonal block H_ll of one layer")
    exact = A.dtype == object
    holds = (A == A.T).all() if exact else abs(A - A.T).max() <= _eps(A) ** 0.5 * abs(A).max()
    _require(holds, "the matrix is not symmetric, or not finite; pass a Hessian, or (A + Aᵀ)/2 if A is any matrix with the same form")
    return A


def _like(array: Matrix, original: Matrix) -> Matrix:
    return type(original)(array) if getattr(original, "is_Matrix", False) else array


def _off_diagonal(A: Matrix) -> Matrix:
    n = len(A)
    return A.reshape(-1)[1:].reshape(n - 1, n + 1)[:, :-1]


def _sqrt(x: Scalar) -> Scalar:
    if hasattr(x, "free_symbols"):
        import sympy

        return sympy.sqrt(x)
    return x**0.5


def squared_norm(A: Matrix) -> Scalar:
    """The squared Frobenius norm ‖A‖² = Σ_ij A_ij²; raises where it is not finite."""
    A = _array(A)
    norm2 = (A * A).sum()
    _require(norm2 * 0 == 0, "the matrix has NaN, infinite or overflowing entries; check the loss, or compute it in float64")
    return norm2


# --- one probe, one matrix: T2 to T6, T17 -------------------------------------------------------------------------------------


def _cross_term(H_ll: Matrix, cross_blocks: Iterable[Matrix]) -> Scalar:
    blocks = [_array(B) for B in cross_blocks]
    for B in blocks:
        if B.ndim != 2 or len(B) != len(H_ll):
            raise ValueError(f"H_lm has shape {tuple(B.shape)} but H_ll has {len(H_ll)} rows; pass H_lm, not its transpose")
    return sum(squared_norm(B) for B in blocks)


def probe_variance(H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Variance of q_l from one full-vector probe.

    Var q_l = 2‖H_ll‖² + (κ−3) Σ_i H_ii² + Σ_{m≠l} ‖H_lm‖²

    Without cross blocks it is the variance of a probe supported on layer l and, for the whole H, the classical Var zᵀHz.
    Written as 2‖off-diagonal‖² + (κ−1) Σ H_ii², which cannot cancel. Claim T2.
    """
    H_ll = _symmetric(H_ll)
    _check_kurtosis(kurtosis)
    diagonal = H_ll.diagonal()
    cross = _cross_term(H_ll, cross_blocks)
    return 2 * squared_norm(_off_diagonal(H_ll)) + (kurtosis - 1) * squared_norm(diagonal) + cross


def probe_covariance(H_lm: Matrix) -> Scalar:
    """Covariance of the estimates of two layers that share a probe: Cov(q_l, q_m) = ‖H_lm‖², l ≠ m, whatever κ. Claim T3."""
    return squared_norm(H_lm)


def probe_covariance_matrix(H: Matrix, index: Mapping[str, Any], kurtosis: Scalar) -> Matrix:
    """The L×L covariance of (q_1, …, q_L): T2 on the diagonal, T3 off it; its entries sum to Var zᵀHz.

    `index` maps each block name to the rows of H it owns, in any order; raises unless every row is owned exactly once.
    """
    A = _symmetric(H)
    rows = [np.asarray(i.tolist() if hasattr(i, "tolist") else list(i), dtype=int) for i in index.values()]
    if sorted(np.concatenate([*rows, np.empty(0, int)]).tolist()) != list(range(len(A))) or not all(map(len, rows)):
        raise ValueError(f"index must own each of the {len(A)} rows of H exactly once, no block empty; complete the partition")
    blocks = [[A[i][:, j] for j in rows] for i in rows]
    C = A[: len(rows), : len(rows)] * 0
    for a, row in enumerate(blocks):
        for b, H_ab in enumerate(row):
            C[a, b] = probe_covariance(H_ab) if a != b else probe_variance(H_ab, row[:a] + row[a + 1 :], kurtosis)
    return _like(C, H)


def rademacher_advantage(H_ll: Matrix) -> Scalar:
    """What signs save over normal probes: Var_Gauss q_l − Var_Rademacher q_l = 2 Σ_{i∈l} H_ii² ≥ 0. Claim T4."""
    return 2 * squared_norm(_symmetric(H_ll).diagonal())


def sphere_variance(H_ll: Matrix, cross_blocks: Iterable[Matrix], num_params: Scalar) -> Scalar:
    """Variance of q_l for z uniform on the sphere of radius √P in all P parameters.

    Var q_l = P/(P+2)·(2‖H_ll‖² + Σ_{m≠l} ‖H_lm‖²) − 2/(P+2)·(tr H_ll)²

    Written around the mean eigenvalue t/p of the p×p block, ‖H_ll‖² = ‖H_ll − (t/p)I‖² + t²/p, which cannot cancel. Claim T5.
    """
    H_ll, P, p = _symmetric(H_ll), num_params, len(H_ll)
    _require(p <= P, f"num_params must count ALL parameters that the probe covers: got {P}, fewer than the {p} of this block")
    t = H_ll.diagonal().sum()
    spread = squared_norm(_off_diagonal(H_ll)) + squared_norm(H_ll.diagonal() - t / p) + (t * t / p - t * t / P)
    return (2 * spread + _cross_term(H_ll, cross_blocks)) * P / (P + 2)


def crossover_margin(H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar) -> Scalar:
    """How far the full-vector probe is ahead at equal products, in units of variance; negative where separated probes win.

    margin = (L−1)·(2‖H_ll‖² + (κ−3) Σ H_ii²) − Σ_{m≠l} ‖H_lm‖²

    L full-vector probes cost what one sweep of separated probes does; the margin is L times the difference of the variances. Claim T6.
    """
    _require(num_layers >= 1, f"num_layers must be >= 1, got {num_layers}; count the blocks of the partition, this one included")
    H_ll = _symmetric(H_ll)
    return (num_layers - 1) * probe_variance(H_ll, (), kurtosis) - _cross_term(H_ll, cross_blocks)


def full_vector_wins(H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar) -> bool:
    """Whether one full-vector probe beats separated probes for this layer at equal products: `crossover_margin` > 0. Claim T6."""
    return bool(crossover_margin(H_ll, cross_blocks, num_layers, kurtosis) > 0)


def quadratic_form(H: Matrix, index_l: Any) -> Matrix:
    """The symmetric matrix of the one-product estimate: q_l = zᵀA_l z with A_l = (E_l H + H E_l)/2, E_l the projector on layer l.

    ‖A_l‖² = ‖H_ll‖² + ½ Σ_{m≠l} ‖H_lm‖². Indefinite whenever a cross block is not zero, even for H ⪰ 0, so that tail bounds
    for q_l need the norms of A_l, not of H_ll. Claim T17.
    """
    A = _symmetric(H)
    index = np.asarray(index_l.tolist() if hasattr(index_l, "tolist") else list(index_l), dtype=int)
    if len(index) == 0 or len(set(index.tolist())) < len(index) or index.min() < 0 or index.max() >= len(A):
        raise ValueError(f"index_l must hold distinct rows of H between 0 and {len(A) - 1}, got {index.tolist()}")
    e = A.diagonal() * 0
    e[index] = 1
    return _like(A * (e[:, None] + e[None, :]) / 2, H)


# --- tied weights: T7, T8 -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """A closed interval [low, high]."""

    low: Scalar
    high: Scalar


def _unrolled(U: Matrix) -> Matrix:
    U = _array(U)
    if U.ndim != 4 or U.shape[:2] != U.shape[2:]:
        raise ValueError(f"expected U of shape (T, n, T, n), got {tuple(U.shape)}; reshape the (Tn)×(Tn) unrolled Hessian")
    _symmetric(U.reshape(U.shape[0] * U.shape[1], -1))
    return U


def tied_bias(U: Matrix) -> Scalar:
    """Bias of the trace of a tied tensor when each of its T instances is estimated on its own, with its own probe.

    E[Σ_r q_r] − tr H_w = Σ_r tr U_rr − Σ_{rs} tr U_rs = −Σ_{r≠s} tr U_rs

    `U[r, :, s, :]` is the n×n block U_rs of the unrolled Hessian. Claim T7; the sign can be +, − or 0.
    """
    U = _unrolled(U)
    T = len(U)
    return -sum((U[r, :, s, :].trace() for r in range(T) for s in range(T) if r != s), start=0 * U[0, 0, 0, 0])


def tied_bias_bounds(U: Matrix) -> Bounds:
    """Where the bias of T7 must lie if the unrolled Hessian is positive semi-definite.

    −(T−1) Σ_r tr U_rr ≤ bias ≤ +Σ_r tr U_rr

    Raises for an indefinite U, whose bias has no such bounds (symbols are taken on trust). Claim T8.
    """
    U = _unrolled(U)
    T, n = U.shape[:2]
    if U.dtype != object:
        eigenvalues = _eigenvalues(U.reshape(T * n, T * n))
        _require(
            eigenvalues.min() >= -(_eps(U) ** 0.5) * abs(eigenvalues).max(),
            f"U is indefinite (smallest eigenvalue {eigenvalues.min():.3g}); the bounds need U ⪰ 0, such as a Gauss-Newton matrix",
        )
    own = sum(U[r, :, r, :].trace() for r in range(T))
    return Bounds(low=-(T - 1) * own, high=own)


# --- mini-batches: T10, T11, T13, T15 -----------------------------------------------------------------------------------------


def finite_population_factor(batch_size: Scalar, num_samples: Scalar, replacement: bool = False) -> Scalar:
    """The factor f with Var(mean of b of n values) = S² f/b, where S² = Σ (x − x̄)²/(n−1).

    f = 1 − b/n without replacement, f = 1 − 1/n with replacement

    Both belong to the n−1 denominator and agree at b = 1; with the population variance σ² = S²(n−1)/n the second is σ²/b.
    n = ∞ (a stream of fresh data) gives 1. Cochran 1977, Theorem 2.2.
    """
    _require(num_samples >= 2, f"num_samples must be >= 2, got {num_samples}; one sample has no variance between batches")
    _require(batch_size >= 1, f"batch_size must be >= 1, got {batch_size}; draw at least one sample per batch")
    if replacement:
        return 1 - 1 / num_samples
    _require(
        batch_size <= num_samples,
        f"batch_size {batch_size} exceeds num_samples {num_samples}; draw at most all samples, or say replacement=True",
    )
    return 1 - batch_size / num_samples


def batch_trace_variance(S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False) -> Scalar:
    """Var_B[tr H_B,ll] = S_t² f/b, with S_t² = Σ_n (t_n − t̄)²/(n−1) the variance of the per-sample traces. Claim T10."""
    _nonnegative(S_t2=S_t2)
    return S_t2 * finite_population_factor(b, n, replacement) / b


def total_variance(mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar) -> Scalar:
    """Variance of K probes on one mini-batch: Var = E_B[V_l(H_B)]/K + Var_B[tr H_B,ll]. Claim T10."""
    _check_probes(num_probes)
    _nonnegative(mean_batch_probe_variance=mean_batch_probe_variance, batch_variance=batch_variance)
    return mean_batch_probe_variance / num_probes + batch_variance


def fresh_batch_variance(mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar) -> Scalar:
    """Variance of K probes, each on its own independent mini-batch: (E_B[V_l(H_B)] + Var_B)/K, without a floor. Claim T15."""
    _check_probes(num_probes)
    _nonnegative(mean_batch_probe_variance=mean_batch_probe_variance, batch_variance=batch_variance)
    return (mean_batch_probe_variance + batch_variance) / num_probes


def mean_batch_probe_variance(V_of_mean: Scalar, S_q: Scalar, b: Scalar, n: Scalar, replacement: bool = False) -> Scalar:
    """The probe variance of a random mini-batch: E_B[V(H_B)] = V(H̄) + S_q f/b, S_q = Σ_n V(H_n − H̄)/(n−1).

    Exact because V is a quadratic form in the matrix; never below V(H̄), the variance on the full batch. Claim T11.
    """
    _nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    return V_of_mean + S_q * finite_population_factor(b, n, replacement) / b


def critical_num_probes(probe_variance: Scalar, batch_variance: Scalar) -> Scalar:
    """The probe count at which probe noise equals batch noise: K* = E_B[V_l(H_B)]/Var_B[tr H_B,ll].

    The numerator is the MEAN over batches; V of the full-batch Hessian gives a smaller K*. Raises without batch variance. Claim T11.
    """
    _nonnegative(probe_variance=probe_variance)
    _require(batch_variance > 0, f"batch_variance must be > 0, got {batch_variance}; on the full batch there is no floor: K* = ∞")
    return probe_variance / batch_variance


def critical_num_probes_of_batch(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """K* as a function of the batch size: K* = (b·V(H̄)/f + S_q)/S_t², growing with b. Raises at b = n, where K* = ∞. Claim T11."""
    f = finite_population_factor(b, n, replacement)
    _nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    _require(f > 0, f"batch_size {b} is the whole data set: no floor and K* = ∞; ask for b < n")
    _require(S_t2 > 0, f"S_t2 must be > 0, got {S_t2}; where all samples have one trace there is no floor: K* = ∞")
    return (b * V_of_mean / f + S_q) / S_t2


def total_variance_curve(floor: Scalar, critical: Scalar, num_probes: Scalar) -> Scalar:
    """The total variance over K: floor·(1 + K*/K), exactly twice the floor at K = K*. Claim T11."""
    _check_probes(num_probes)
    _nonnegative(floor=floor, critical=critical)
    return floor * (1 + critical / num_probes)


def budget_variance(
    floor: Scalar, critical: Scalar, num_probes: Scalar, overhead: Scalar, cost_per_probe: Scalar, budget: Scalar
) -> Scalar:
    """Variance of the mean over the C/(c0 + c1·K) independent mini-batches that a budget C buys.

    Var = floor·(1 + K*/K)·(c0 + c1·K)/C, with c0 per batch and c1 per probe in the units of C. Claim T13.
    """
    _require(budget > 0, f"budget must be > 0, got {budget}; give it in the units of the costs")
    _nonnegative(overhead=overhead, cost_per_probe=cost_per_probe)
    return total_variance_curve(floor, critical, num_probes) * (overhead + cost_per_probe * num_probes) / budget


def cost_optimal_num_probes(overhead: Scalar, cost_per_probe: Scalar, critical: Scalar) -> Scalar:
    """The K that minimises `budget_variance`: √(c0/c1 · K*).

    Not rounded: the variance is convex in K, so the best whole number is one of the two neighbours, and 1 if it is below 1. Claim T13.
    """
    _nonnegative(overhead=overhead, critical=critical)
    _require(cost_per_probe > 0, f"cost_per_probe must be > 0, got {cost_per_probe}; with free probes take as many as you can")
    return _sqrt(overhead / cost_per_probe * critical)


# --- K* from data: T14 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anova:
    """One-way analysis of variance of batches × probes; the estimates of σ_w² = E_B V, σ_b² = Var_B and K* = σ_w²/σ_b².

    `between` may be negative and `critical_num_probes` is then ∞. K̂* has no finite mean: its denominator (F − 1)/K crosses zero
    with positive density. 1/K̂* has one, and `corrected_inverse` is its exactly unbiased version for normal data.
    """

    within: Scalar
    between: Scalar
    critical_num_probes: Scalar
    inverse_critical: Scalar
    inverse_critical_bias: Scalar
    corrected_inverse: Scalar


def anova(q: Matrix) -> Anova:
    """Estimate K* from q[m, k], probe k on independent mini-batch m.

    within = Σ (q_mk − q̄_m)²/(M(K−1)), between = (MSB − within)/K, 1/K̂* = between/within = (F − 1)/K, F = MSB/within

    The bias of 1/K̂* is estimated without bias by 2F/(ν₂K), so the corrected inverse is ((ν₂−2)/ν₂·F − 1)/K, ν₂ = M(K−1).
    Raises below 2 batches or 2 probes, at ν₂ ≤ 2, and without any probe noise. Claim T14; Searle, Casella & McCulloch 1992, ch. 3.
    """
    q = _array(q)
    if q.ndim != 2 or min(q.shape) < 2 or q.shape[0] * (q.shape[1] - 1) <= 2:
        raise ValueError(f"q must be batches × probes, at least 3×2 or 2×3, got shape {tuple(q.shape)}; draw more of them")
    M, K = q.shape
    nu2 = M * (K - 1)
    means = q.mean(1)
    within = squared_norm(q - means[:, None]) / nu2
    F_numerator = K * squared_norm(means - means.mean()) / (M - 1)
    _require(within > 0, "all probes of each batch agree: there is no probe noise, one probe suffices (K* = 0); check the probes vary")
    F, between = F_numerator / within, (F_numerator - within) / K
    bias = 2 * F / (nu2 * K)
    critical = within / between if between > 0 else within * math.inf
    return Anova(within, between, critical, (F - 1) / K, bias, (F - 1) / K - bias)


def anova_inverse_bias(rho: Scalar, num_batches: Scalar, num_probes: Scalar) -> Scalar:
    """Bias of 1/K̂* for normal data, ρ = σ_b²/σ_w² = 1/K*.

    E[1/K̂*] − ρ = 2(1 + Kρ)/(K(ν₂ − 2)), ν₂ = M(K−1), from E[F] = (1 + Kρ)·ν₂/(ν₂ − 2)

    Raises at ν₂ ≤ 2, where 1/K̂* has no mean. Claim T14.
    """
    nu2 = num_batches * (num_probes - 1)
    _nonnegative(rho=rho)
    _require(nu2 > 2, f"M(K−1) must be > 2, got {nu2}; below it F has no mean: use more batches or more probes")
    return 2 * (1 + num_probes * rho) / (num_probes * (nu2 - 2))


# --- other designs: T19, T20 --------------------------------------------------------------------------------------------------


def per_sample_probe_variance(sample_variances: Matrix) -> Scalar:
    """Probe variance of the mean over N samples when every sample has its own probe: (1/N²) Σ_n V_l(H_n).

    One probe for all has V(H̄) = (1/N²) Σ_nm V(H_n, H_m), with V(A, B) = Cov(zᵀAz, zᵀBz). These cross terms may be negative,
    so neither design is always better: see `per_sample_probes_win`. Claim T19.
    """
    V = _array(sample_variances)
    if V.ndim != 1 or len(V) == 0:
        raise ValueError(f"sample_variances must be a list of V_l(H_n), one per sample, got shape {tuple(V.shape)}")
    return V.sum() / len(V) ** 2


def per_sample_probes_win(V_of_mean: Scalar, S_q: Scalar, num_samples: Scalar) -> bool:
    """Whether a probe per sample has less variance than one probe for all: S_q < N·V(H̄).

    (1/N²) Σ_n V(H_n) = (V(H̄) + S_q (N−1)/N)/N, S_q = Σ_n V(H_n − H̄)/(N−1): at best N times less than V(H̄), and infinitely
    more where the samples' curvature cancels, as for H_2 = −H_1. Claim T19, whose 'always' is false.
    """
    _nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    _require(num_samples >= 2, f"num_samples must be >= 2, got {num_samples}; with one sample the two designs are the same")
    return bool(S_q < num_samples * V_of_mean)


def orthogonal_probe_variance(probe_variance: Scalar, num_probes: Scalar, num_params: Scalar) -> Scalar:
    """Variance of the mean of K orthogonal probes of norm √P that are exchangeable: V/K · (P−K)/(P−1).

    V is the variance of ONE probe: T5 for columns of √P times a Haar orthogonal matrix, T2 with κ = 1 for random distinct columns
    of a Hadamard matrix with random signs by row. Over all P columns the sum of the q_l is P·tr H_ll, so every covariance is
    −V/(P−1). P counts the parameters in which the probes are orthogonal: K ≪ P gains nothing, K = P is exact. Claim T20.
    """
    _check_probes(num_probes)
    _nonnegative(probe_variance=probe_variance)
    _require(num_params >= 2, f"num_params must be >= 2, got {num_params}; one parameter has an exact trace with one sign")
    _require(num_probes <= num_params, f"num_probes {num_probes} exceeds num_params {num_params}; at most P probes are orthogonal")
    return probe_variance / num_probes * (num_params - num_probes) / (num_params - 1)


# --- sample sizes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TailConstants:
    """The constants of P(|mean − tr A| ≥ ε) ≤ 2 exp(−Kε²/(c_F‖A‖² + c_2 ε‖A‖₂)); `off_diagonal`: A without its diagonal."""

    frobenius: float
    spectral: float
    off_diagonal: bool


GAUSSIAN_TAIL = TailConstants(frobenius=4, spectral=4, off_diagonal=False)
"""Normal probes; from −½log(1−2s) − s ≤ s²/(1−2s) on every eigenvalue. Cortinovis & Kressner 2021, Theorem 1."""

RADEMACHER_TAIL = TailConstants(frobenius=8, spectral=8, off_diagonal=True)
"""Signs; A is the matrix without its diagonal, which adds no noise. Cortinovis & Kressner 2021."""

SHARP_RADEMACHER_TAIL = TailConstants(frobenius=8, spectral=4, off_diagonal=True)
"""Signs, with half the spectral constant (ours).

For ψ = log E exp(λ zᵀAz) the logarithmic Sobolev inequality on signs (Boucheron, Lugosi & Massart 2013, Theorem 5.1) gives
λψ′ − ψ ≤ 2λ² E[‖Az‖² e^{λzᵀAz}]/e^ψ; the variational formula of entropy with θ = λ/‖A‖₂ and
log E exp(θ‖Az‖²) ≤ θ‖A‖²/(1 − 2θ‖A‖₂²) give (ψ/λ)′ ≤ 2‖A‖²/(1 − 2λ‖A‖₂)², hence ψ ≤ 2λ²‖A‖²/(1 − 2λ‖A‖₂).
"""


def _check_request(error: float, level: float) -> None:
    _require(error > 0, f"error must be > 0, got {error}; it is absolute: for 1 % of a trace t give 0.01·|t|")
    _require(0 < level < 1, f"level must lie in (0, 1), got {level}; it is the probability of failure, 0.05 for 95 % confidence")


def _check_norms(frobenius_norm: float, spectral_norm: float) -> None:
    _require(
        0 <= spectral_norm <= frobenius_norm * (1 + 1e-6),
        f"need 0 <= spectral_norm <= frobenius_norm, got {spectral_norm} and {frobenius_norm}; they may be swapped or squared",
    )


def num_probes_chebyshev(variance: float, error: float, level: float) -> int:
    """Probes that keep |estimate − trace| below `error` except with probability δ, for any distribution: ⌈V/(δε²)⌉.

    `variance` is that of one probe (T2), `error` absolute (0.01·|trace| for one per cent), `level` δ. Chebyshev's inequality.
    """
    _check_request(error, level)
    _nonnegative(variance=variance)
    return max(1, math.ceil(variance / (level * error**2)))


def num_probes_normal(variance: float, error: float, level: float) -> int:
    """The same count if the mean of the probes is normal: ⌈z²V/ε²⌉ with z the 1 − δ/2 quantile; an approximation, no guarantee."""
    _check_request(error, level)
    _nonnegative(variance=variance)
    return max(1, math.ceil(NormalDist().inv_cdf(level / 2) ** 2 * variance / error**2))


def num_probes_subexponential(
    frobenius_norm: float, spectral_norm: float, error: float, level: float, constants: TailConstants
) -> int:
    """The guaranteed count ⌈(c_F‖A‖² + c_2 ε‖A‖₂)/ε² · log(2/δ)⌉ for Gaussian or Rademacher probes.

    The norms are those of A = `quadratic_form(H, l)` for a layer by one product (T17), of H_ll for separated probes, without the
    diagonal where `constants.off_diagonal`; `error` is absolute, `level` δ. Cortinovis & Kressner 2021.
    """
    _check_request(error, level)
    _check_norms(frobenius_norm, spectral_norm)
    scale = constants.frobenius * frobenius_norm**2 + constants.spectral * error * spectral_norm
    return max(1, math.ceil(scale / error**2 * math.log(2 / level)))


def tail_bound(
    num_probes: int, frobenius_norm: float, spectral_norm: float, error: float, constants: TailConstants
) -> float:
    """The bound that `num_probes_subexponential` inverts: min(1, 2 exp(−Kε²/(c_F‖A‖² + c_2 ε‖A‖₂))); 0 for A = 0."""
    _check_probes(num_probes)
    _check_request(error, 0.5)
    _check_norms(frobenius_norm, spectral_norm)
    scale = constants.frobenius * frobenius_norm**2 + constants.spectral * error * spectral_norm
    return min(1.0, 2 * math.exp(-num_probes * error**2 / scale)) if scale > 0 else 0.0


# --- the algebra of proofs ----------------------------------------------------------------------------------------------------


def symmetric_symbols(P: int, name: str = "h") -> Any:
    """The symmetric P×P sympy matrix of real symbols `name`_ij, i ≤ j."""
    import sympy

    _require(P >= 1, f"P must be >= 1, got {P}; ask for at least one row")
    return sympy.Matrix(P, P, lambda i, j: sympy.Symbol(f"{name}_{min(i, j)}_{max(i, j)}", real=True))


def expectation(polynomial: Any, z: Sequence[Any], moments: Mapping[int, Any]) -> Any:
    """E of a polynomial in independent entries z_i, each with moments E z_i^k = `moments[k]`: Σ coefficient · Π_i E z_i^{k_i}.

    Expanded, so that equal expectations subtract to zero. Raises if a power occurs whose moment is not given.
    """
    import sympy

    terms = sympy.Poly(polynomial, *z).terms()
    missing = {k for powers, _ in terms for k in powers if k} - set(moments)
    if missing:
        raise ValueError(f"the polynomial needs E z^k for k = {sorted(missing)}; add them to moments")
    return sympy.expand(sum(c * math.prod(moments[k] for k in powers if k) for powers, c in terms))
