"""What should come out? The closed forms, each one short function in the symbols of its theorem.

Every function takes torch tensors, numpy arrays and sympy matrices alike, so that the formula which sympy proves is the
one which the code uses. Nothing here draws, differentiates or estimates: a prediction is never computed from what it
predicts.

Notation: H symmetric P×P with blocks H_lm over layers l = 1..L; a probe z has independent entries of mean 0, variance 1
and fourth moment κ = E z⁴ (Rademacher 1, Gaussian 3); q_l = z_lᵀ(Hz)_l; ‖·‖ is the Frobenius norm, ‖·‖₂ the spectral
one; b of n samples make a mini-batch B; K probes share a mini-batch. G is the Gauss-Newton matrix, J_nl the Jacobian of
the outputs of sample n in layer l, S_n S_nᵀ its loss Hessian in the outputs. T1 to T20, G5 to G7 are entries of the
catalogue of claims.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Matrix = Any  # a torch tensor, a numpy array (sympy entries too) or a sympy matrix; a list is read as a numpy array
Scalar = Any  # a number, a 0-d tensor or a sympy expression; an array of them where there is only arithmetic


def _require(holds: Any, message: str, *values: Any) -> None:
    """Raise unless `holds`; a relation between free symbols is undecided and passes."""
    if not getattr(holds, "free_symbols", None) and not (holds.all() if hasattr(holds, "all") else holds):
        raise ValueError(message.format(*values))


def _nonnegative(**quantities: Scalar) -> None:
    for name, x in quantities.items():
        _require(x >= 0, "{} must be >= 0, got {}; an estimated variance must be clipped at 0 first", name, x)


def _check_probes(num_probes: Scalar) -> None:
    _require(num_probes >= 1, "num_probes must be >= 1, got {}; use at least one probe", num_probes)


def _array(A: Matrix) -> Matrix:
    """The same entries as a torch tensor or a numpy array, integers as floats."""
    if hasattr(A, "new_zeros"):
        return A if A.is_floating_point() else A.double()
    A = np.array(A.tolist(), dtype=object) if getattr(A, "is_Matrix", False) else np.asarray(A)
    return A.astype(float) if A.dtype.kind in "biu" else A


def _like(A: Matrix, original: Matrix) -> Matrix:
    return type(original)(A) if getattr(original, "is_Matrix", False) else A


def _rows(index: Any) -> Any:
    rows = np.asarray(index.tolist() if hasattr(index, "tolist") else list(index))
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(f"expected row numbers, got {index}; turn a mask into numbers, leave out empty blocks")
    return rows


def _rounding(A: Matrix) -> float:
    """How far from symmetric or positive a matrix may be through rounding alone, relative to its size: √eps."""
    if hasattr(A, "new_zeros"):
        import torch

        return float(torch.finfo(A.dtype).eps ** 0.5)
    return float(np.finfo(A.dtype).eps ** 0.5)


def _eigenvalues(A: Matrix) -> Matrix:
    if hasattr(A, "new_zeros"):
        import torch

        return torch.linalg.eigvalsh(A)
    return np.linalg.eigvalsh(A)


def _symmetric(A: Matrix) -> Matrix:
    """`_array(A)`, checked to be square, finite and symmetric (symbols: entry by entry)."""
    A = _array(A)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or len(A) == 0:
        raise ValueError(f"expected a square matrix, got shape {tuple(A.shape)}; pass H, or one diagonal block H_ll")
    with np.errstate(invalid="ignore"):
        exact = A.dtype == object
        holds = (A == A.T).all() if exact else abs(A - A.T).max() <= _rounding(A) * abs(A).max()
    _require(holds, "the matrix is not symmetric, or not finite; pass a Hessian, or (A + Aᵀ)/2 for the form zᵀAz")
    return A


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
    _require(A.dtype == object or norm2 < math.inf, "NaN, infinite or overflowing entries; check the loss, use float64")
    return norm2


# --- one probe, one matrix: T2 to T6, T17 ---


def _cross_term(H_ll: Matrix, cross_blocks: Iterable[Matrix]) -> Scalar:
    blocks = [_array(B) for B in cross_blocks]
    for B in blocks:
        if B.ndim != 2 or len(B) != len(H_ll):
            raise ValueError(f"H_lm of shape {tuple(B.shape)} beside {len(H_ll)} rows of H_ll; pass H_lm, not H_ml")
    return sum(squared_norm(B) for B in blocks)


def probe_variance(H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Variance of q_l from one full-vector probe.

    Var q_l = 2‖H_ll‖² + (κ−3) Σ_i H_ii² + Σ_{m≠l} ‖H_lm‖²

    Without cross blocks it is the variance of a probe supported on layer l and, for all of H, the classical Var zᵀHz.
    Written as 2‖off-diagonal‖² + (κ−1) Σ H_ii² + …, which cannot cancel. Claim T2.
    """
    H_ll = _symmetric(H_ll)
    _require(kurtosis >= 1, "kurtosis is E z⁴ (Rademacher 1, Gaussian 3), never below 1: got {}, an excess?", kurtosis)
    own = 2 * squared_norm(_off_diagonal(H_ll)) + (kurtosis - 1) * squared_norm(H_ll.diagonal())
    return own + _cross_term(H_ll, cross_blocks)


def probe_covariance(H_lm: Matrix) -> Scalar:
    """Covariance of two layers' estimates from one probe: Cov(q_l, q_m) = ‖H_lm‖² for l ≠ m, whatever κ. Claim T3."""
    return squared_norm(H_lm)


def probe_covariance_matrix(H: Matrix, index: Mapping[str, Any], kurtosis: Scalar) -> Matrix:
    """The L×L covariance of (q_1, …, q_L): T2 on the diagonal, T3 off it; its entries sum to Var zᵀHz.

    `index` maps each block to the rows of H it owns, in any order; raises unless every row is owned exactly once.
    """
    A = _symmetric(H)
    rows = [_rows(i) for i in index.values()]
    if sorted(i for r in rows for i in r.tolist()) != list(range(len(A))):
        raise ValueError(f"index must own each of the {len(A)} rows of H exactly once; complete the partition")
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

    Written with ‖H_ll‖² = ‖H_ll − (t/p)I‖² + t²/p for a p×p block of trace t, which cannot cancel. Claim T5.
    """
    H_ll, P = _symmetric(H_ll), num_params
    p = len(H_ll)
    _require(p <= P, "num_params counts ALL parameters of the probe: got {}, fewer than the {} of this block", P, p)
    t = H_ll.diagonal().sum()
    spread = squared_norm(_off_diagonal(H_ll)) + squared_norm(H_ll.diagonal() - t / p) + (t * t / p - t * t / P)
    return (2 * spread + _cross_term(H_ll, cross_blocks)) * P / (P + 2)


def crossover_margin(H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar) -> Scalar:
    """How far the full-vector probe is ahead at equal products; negative where separated probes win.

    margin = (L−1)·(2‖H_ll‖² + (κ−3) Σ H_ii²) − Σ_{m≠l} ‖H_lm‖²

    L full-vector probes cost one sweep of separated probes; the margin is L × the difference in variance. Claim T6.
    """
    _require(num_layers >= 1, "num_layers must be >= 1, got {}; count every block, this one included", num_layers)
    H_ll = _symmetric(H_ll)
    return (num_layers - 1) * probe_variance(H_ll, (), kurtosis) - _cross_term(H_ll, cross_blocks)


def full_vector_wins(H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar) -> bool:
    """Whether one full-vector probe beats separated probes at equal products: `crossover_margin` > 0. Claim T6."""
    return bool(crossover_margin(H_ll, cross_blocks, num_layers, kurtosis) > 0)


def quadratic_form(H: Matrix, index_l: Any) -> Matrix:
    """The matrix of the one-product estimate: q_l = zᵀA_l z, A_l = (E_l H + H E_l)/2, E_l the projector on layer l.

    ‖A_l‖² = ‖H_ll‖² + ½ Σ_{m≠l} ‖H_lm‖². A_l is indefinite whenever a cross block is not zero, even for H ⪰ 0, so
    tail bounds for q_l need the norms of A_l, not of H_ll. Claim T17.
    """
    A, index = _symmetric(H), _rows(index_l)
    if not set(index.tolist()) <= set(range(len(A))) or len(set(index.tolist())) < len(index):
        raise ValueError(f"index_l must hold distinct rows of H, 0 to {len(A) - 1}, got {index.tolist()}")
    e = A.diagonal() * 0
    e[index] = 1
    return _like(A * (e[:, None] + e[None, :]) / 2, H)


# --- tied weights: T7, T8 ---


@dataclass(frozen=True)
class Bounds:
    """A closed interval [low, high]."""

    low: Scalar
    high: Scalar


def _unrolled(U: Matrix) -> Matrix:
    U = _array(U)
    if U.ndim != 4 or U.shape[:2] != U.shape[2:]:
        raise ValueError(f"U must have shape (T, n, T, n), got {tuple(U.shape)}; reshape the unrolled Hessian")
    _symmetric(U.reshape(U.shape[0] * U.shape[1], -1))
    return U


def tied_bias(U: Matrix) -> Scalar:
    """Bias of a tied tensor's trace when each of its T instances is estimated by itself, with its own probe.

    E[Σ_r q_r] − tr H_w = Σ_r tr U_rr − Σ_rs tr U_rs = −Σ_{r≠s} tr U_rs

    `U[r, :, s, :]` is the n×n block U_rs of the unrolled Hessian. The sign can be +, − or 0. Claim T7.
    """
    U = _unrolled(U)
    T = len(U)
    return -sum((U[r, :, s, :].trace() for r in range(T) for s in range(T) if r != s), start=0 * U[0, 0, 0, 0])


def tied_bias_bounds(U: Matrix) -> Bounds:
    """Where the bias of T7 lies if U ⪰ 0: −(T−1) Σ_r tr U_rr ≤ bias ≤ Σ_r tr U_rr.

    Raises for an indefinite U, whose bias has no such bounds (symbols are taken on trust). Claim T8.
    """
    U = _unrolled(U)
    T, n = U.shape[:2]
    if U.dtype != object:
        lam = _eigenvalues(U.reshape(T * n, T * n))
        holds = lam.min() >= -_rounding(U) * abs(lam).max()
        _require(holds, "U has the eigenvalue {:.3g} < 0; the bounds need U ⪰ 0, a Gauss-Newton matrix", lam.min())
    own = sum(U[r, :, r, :].trace() for r in range(T))
    return Bounds(low=-(T - 1) * own, high=own)


# --- mini-batches: T10, T11, T13, T15 ---


def finite_population_factor(batch_size: Scalar, num_samples: Scalar, replacement: bool = False) -> Scalar:
    """The factor f with Var(mean of b of n values) = S² f/b, where S² = Σ (x − x̄)²/(n−1).

    f = 1 − b/n without replacement, f = 1 − 1/n with replacement

    Both go with the denominator n−1 of S², and agree at b = 1; with σ² = S²(n−1)/n the second is the usual σ²/b.
    n = ∞, a stream of fresh data, gives 1. Cochran 1977, Theorem 2.2.
    """
    b, n = batch_size, num_samples
    _require(n >= 2, "num_samples must be >= 2, got {}; one sample has no variance between batches", n)
    _require(b >= 1, "batch_size must be >= 1, got {}; draw at least one sample", b)
    _require(replacement or b <= n, "batch_size {} exceeds num_samples {}; draw fewer or set replacement=True", b, n)
    return 1 - 1 / n if replacement else 1 - b / n


def batch_trace_variance(S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False) -> Scalar:
    """Var_B[tr H_B,ll] = S_t² f/b, with S_t² = Σ_n (t_n − t̄)²/(n−1) over the per-sample traces. Claim T10."""
    _nonnegative(S_t2=S_t2)
    return S_t2 * finite_population_factor(b, n, replacement) / b


def total_variance(mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar) -> Scalar:
    """Variance of K probes on one mini-batch: Var = E_B[V_l(H_B)]/K + Var_B[tr H_B,ll]. Claim T10."""
    _check_probes(num_probes)
    _nonnegative(mean_batch_probe_variance=mean_batch_probe_variance, batch_variance=batch_variance)
    return mean_batch_probe_variance / num_probes + batch_variance


def fresh_batch_variance(mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar) -> Scalar:
    """Variance of K probes, each on its own independent mini-batch: (E_B[V_l(H_B)] + Var_B)/K; no floor. Claim T15."""
    _check_probes(num_probes)
    _nonnegative(mean_batch_probe_variance=mean_batch_probe_variance, batch_variance=batch_variance)
    return (mean_batch_probe_variance + batch_variance) / num_probes


def mean_batch_probe_variance(
    V_of_mean: Scalar, S_q: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """The probe variance of a random mini-batch: E_B[V(H_B)] = V(H̄) + S_q f/b, S_q = Σ_n V(H_n − H̄)/(n−1).

    Exact because V is a quadratic form in the matrix; never below V(H̄), the variance on the full batch. Claim T11.
    """
    _nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    return V_of_mean + S_q * finite_population_factor(b, n, replacement) / b


def critical_num_probes(probe_variance: Scalar, batch_variance: Scalar) -> Scalar:
    """The count at which probe noise equals batch noise: K* = E_B[V_l(H_B)]/Var_B[tr H_B,ll].

    `probe_variance` is the MEAN over batches; V of the full-batch Hessian makes K* too small. Raises where the batch
    variance is 0, as on the full batch: there is no floor and K* = ∞. Claim T11.
    """
    _nonnegative(probe_variance=probe_variance)
    _require(batch_variance > 0, "batch_variance must be > 0, got {}; on the full batch K* is infinite", batch_variance)
    return probe_variance / batch_variance


def critical_num_probes_of_batch(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """K* over the batch size: K* = (b·V(H̄)/f + S_q)/S_t², growing with b; raises at f = 0, where K* = ∞. Claim T11."""
    f = finite_population_factor(b, n, replacement)
    _nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    _require(f > 0, "a batch of {} is the whole data set and K* is infinite; ask for b < n", b)
    _require(S_t2 > 0, "S_t2 must be > 0, got {}; where all samples have one trace K* is infinite", S_t2)
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
    _require(budget > 0, "budget must be > 0, got {}; give it in the units of the costs", budget)
    _nonnegative(overhead=overhead, cost_per_probe=cost_per_probe)
    return total_variance_curve(floor, critical, num_probes) * (overhead + cost_per_probe * num_probes) / budget


def cost_optimal_num_probes(overhead: Scalar, cost_per_probe: Scalar, critical: Scalar) -> Scalar:
    """The K that minimises `budget_variance`: √(c0/c1 · K*).

    Not rounded: the variance is convex in K, so the best count is a neighbouring whole number, or 1 below 1. Claim T13.
    """
    _nonnegative(overhead=overhead, critical=critical)
    _require(cost_per_probe > 0, "cost_per_probe must be > 0, got {}; free probes have no optimum", cost_per_probe)
    return _sqrt(overhead / cost_per_probe * critical)


# --- K* from data: T14 ---


@dataclass(frozen=True)
class Anova:
    """Estimates of σ_w² = E_B V, σ_b² = Var_B and K* = σ_w²/σ_b² from batches × probes.

    `between` may be negative; `critical_num_probes` is then ∞. K̂* has no finite mean, since its denominator (F − 1)/K
    crosses zero with positive density. 1/K̂* has one; `corrected_inverse` is free of bias for normal data.
    """

    within: Scalar
    between: Scalar
    critical_num_probes: Scalar
    inverse_critical: Scalar
    inverse_critical_bias: Scalar
    corrected_inverse: Scalar


def anova(q: Matrix) -> Anova:
    """Estimate K* from q[m, k], probe k of independent mini-batch m, by one-way analysis of variance.

    within = Σ (q_mk − q̄_m)²/ν₂, between = (MSB − within)/K, 1/K̂* = between/within = (F − 1)/K, F = MSB/within

    With ν₂ = M(K−1), 2F/(ν₂K) estimates the bias of 1/K̂* without bias. Raises for fewer than 3×2 or 2×3 numbers, and
    without any probe noise (K* = 0). Claim T14; Searle, Casella & McCulloch 1992, chapter 3.
    """
    q = _array(q)
    if q.ndim != 2 or min(q.shape) < 2 or q.shape[0] * (q.shape[1] - 1) <= 2:
        raise ValueError(f"q must be batches × probes, 3×2 or 2×3 at least, got shape {tuple(q.shape)}; draw more")
    M, K = q.shape
    nu2, means = M * (K - 1), q.mean(1)
    within = squared_norm(q - means[:, None]) / nu2
    _require(within > 0, "the probes of each batch all agree: K* = 0, one probe will do; or were they one probe?")
    F = K * squared_norm(means - means.mean()) / (M - 1) / within
    inverse, bias = (F - 1) / K, 2 * F / (nu2 * K)
    critical = 1 / inverse if inverse > 0 else within * math.inf
    return Anova(within, inverse * within, critical, inverse, bias, inverse - bias)


def anova_inverse_bias(rho: Scalar, num_batches: Scalar, num_probes: Scalar) -> Scalar:
    """Bias of 1/K̂* for normal data, with ρ = 1/K* = σ_b²/σ_w² and ν₂ = M(K−1).

    E[1/K̂*] − ρ = 2(1 + Kρ)/(K(ν₂ − 2)), from E F = (1 + Kρ)·ν₂/(ν₂ − 2)

    Raises for ν₂ ≤ 2, where F has no mean. Claim T14.
    """
    nu2 = num_batches * (num_probes - 1)
    _nonnegative(rho=rho)
    _require(nu2 > 2, "M(K−1) must be > 2, got {}; with less F has no mean: use more batches or probes", nu2)
    return 2 * (1 + num_probes * rho) / (num_probes * (nu2 - 2))


# --- other designs: T19, T20 ---


def per_sample_probe_variance(sample_variances: Matrix) -> Scalar:
    """Probe variance of the mean over N samples when every sample has its own probe: (1/N²) Σ_n V_l(H_n).

    One probe for all has V(H̄) = (1/N²) Σ_nm V(H_n, H_m), where V(A, B) = Cov(zᵀAz, zᵀBz) may be negative, so that
    neither design is always the better one: see `per_sample_probes_win`. Claim T19.
    """
    V = _array(sample_variances)
    if V.ndim != 1 or len(V) == 0:
        raise ValueError(f"sample_variances must list V_l(H_n), one per sample, got shape {tuple(V.shape)}")
    return V.sum() / len(V) ** 2


def per_sample_probes_win(V_of_mean: Scalar, S_q: Scalar, num_samples: Scalar) -> bool:
    """Whether a probe per sample has less variance than one probe for all N: S_q < N·V(H̄).

    (1/N²) Σ_n V(H_n) = (V(H̄) + S_q (N−1)/N)/N, S_q = Σ_n V(H_n − H̄)/(N−1): at best N times less than V(H̄), and
    without bound more where the curvature of the samples cancels, as for H_2 = −H_1. Claim T19.
    """
    _nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    _require(num_samples >= 2, "num_samples must be >= 2, got {}; with one the designs are the same", num_samples)
    return bool(S_q < num_samples * V_of_mean)


def orthogonal_probe_variance(probe_variance: Scalar, num_probes: Scalar, num_params: Scalar) -> Scalar:
    """Variance of the mean of K orthogonal, exchangeable probes of norm √P: V/K·(P−K)/(P−1), V that of ONE probe.

    V is T5 for columns of √P × a Haar orthogonal matrix, and T2 with κ = 1 for signs × random columns of a Hadamard
    matrix. All P columns together give P·tr H_ll exactly, so each pair has covariance −V/(P−1). P counts the parameters
    in which the probes are orthogonal: K ≪ P gains nothing, K = P is exact. Claim T20.
    """
    K, P = num_probes, num_params
    _check_probes(K)
    _nonnegative(probe_variance=probe_variance)
    _require(P >= 2, "num_params must be >= 2, got {}; the trace of one parameter needs one sign", P)
    _require(K <= P, "num_probes {} exceeds num_params {}; at most P probes are orthogonal", K, P)
    return probe_variance / K * (P - K) / (P - 1)


# --- logit space: G5 to G7 ---


def logit_probe_variance(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Variance of tr G_ll from one logit probe u_n = S_n ε_n for each of N samples, ‖J_nlᵀu_n‖² summed over them.

    (1/N²) Σ_n [2(‖M_n‖² − ‖diag M_n‖²) + (κ−1)‖diag M_n‖²], M_n = S_nᵀJ_nl J_nlᵀS_n

    S_n is the root of the sample's own loss Hessian, so that batches of any sizes weigh alike. For signs it is 0 where
    S_n has one column, as with two classes. Claim G5.
    """
    variances = [probe_variance(M, (), kurtosis) for M in grams]
    _require(len(variances) >= 1, "grams is empty; pass M_n of every sample")
    return sum(variances) / len(variances) ** 2


def summed_logit_probe_variance(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Variance of tr G_ll from logit probes added up over each batch, Σ_b ‖Σ_{n∈b} J_nlᵀu_n‖².

    Σ_b [2(‖M_b‖² − ‖diag M_b‖²) + (κ−1)‖diag M_b‖²], M_b the batch's part of the dual Gram matrix

    One batch and normal probes: 2‖M‖² = 2‖G_ll‖². The parts across batches drop out, so that several batches have less
    variance. Claim G7.
    """
    variances = [probe_variance(M, (), kurtosis) for M in grams]
    _require(len(variances) >= 1, "grams is empty; pass M_b of every batch")
    return sum(variances)


def ggn_squared_norm(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Squared norm of a Gauss-Newton block from the dual Gram matrices: ‖G_lm‖² = ⟨M_l, M_m⟩, never negative.

    M_l = B_l B_lᵀ has a row for every column of every sample's root: B_l = (S_nᵀJ_nl/√N)_n, G_lm = B_lᵀB_m. Claim G6.
    """
    M_l, M_m = _symmetric(M_l), _symmetric(M_m)
    _require(M_l.shape == M_m.shape, "Gram matrices of shapes {} and {}; use the same samples", M_l.shape, M_m.shape)
    return (M_l * M_m).sum()


def ggn_coupling(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Squared coupling of two blocks of G, the cosine between their dual Gram (tangent kernel) matrices, in [0, 1].

    C² = ‖G_lm‖²/(‖G_ll‖ ‖G_mm‖) = ⟨M_l, M_m⟩/(‖M_l‖ ‖M_m‖)

    Raises where a block is 0. Claim G6.
    """
    norms2 = squared_norm(M_l) * squared_norm(M_m)
    _require(norms2 > 0, "a block of G is 0 and has no coupling; leave dead layers out")
    return ggn_squared_norm(M_l, M_m) / _sqrt(norms2)


# --- sample sizes ---


@dataclass(frozen=True)
class TailConstants:
    """A tail P(|mean of K − tr A| ≥ ε) ≤ 2 exp(−Kε²/(c_F‖A‖² + c_2 ε‖A‖₂)); `off_diagonal`: norms without diag A."""

    frobenius: float
    spectral: float
    off_diagonal: bool


# Normal probes, from −½log(1−2s) − s ≤ s²/(1−2s) on every eigenvalue. Cortinovis & Kressner 2021, Theorem 1.
GAUSSIAN_TAIL = TailConstants(frobenius=4, spectral=4, off_diagonal=False)

# Signs, for which the diagonal adds no noise. Cortinovis & Kressner 2021.
RADEMACHER_TAIL = TailConstants(frobenius=8, spectral=8, off_diagonal=True)

# Signs, with half the spectral constant (ours). For ψ(λ) = log E exp(λ zᵀAz), λ > 0, diag A = 0, s = ‖A‖₂:
#   the log-Sobolev inequality on signs (Boucheron, Lugosi & Massart 2013, Theorem 5.1) gives
#   h := λψ′ − ψ ≤ 2λ² E[‖Az‖² e^{λzᵀAz}] e^{−ψ};
#   the variational formula of entropy bounds that mean by (h + log E e^{θ‖Az‖²})/θ ≤ h/θ + ‖A‖²/(1 − 2θs²);
#   θ = λ/s gives (ψ/λ)′ = h/λ² ≤ 2‖A‖²/(1 − 2λs)², hence ψ ≤ 2λ²‖A‖²/(1 − 2λs), which is the tail.
SHARP_RADEMACHER_TAIL = TailConstants(frobenius=8, spectral=4, off_diagonal=True)


def _check_request(error: float, level: float) -> None:
    _require(error > 0, "error must be > 0, got {}; it is absolute: for 1 % of a trace t give 0.01·|t|", error)
    _require(0 < level < 1, "level must lie in (0, 1), got {}; it is the chance of failure, 0.05 for 95 %", level)


def num_probes_chebyshev(variance: float, error: float, level: float) -> int:
    """Probes that keep |estimate − trace| < ε except with probability δ, for any distribution: ⌈V/(δε²)⌉.

    `variance` is that of one probe (T2), `error` the absolute ε (0.01·|trace| for one per cent), `level` δ. Chebyshev.
    """
    _check_request(error, level)
    _nonnegative(variance=variance)
    return max(1, math.ceil(variance / (level * error**2)))


def num_probes_normal(variance: float, error: float, level: float) -> int:
    """The same count if the mean were normal: ⌈z²V/ε²⌉, z the 1 − δ/2 quantile; an approximation, no guarantee."""
    _check_request(error, level)
    _nonnegative(variance=variance)
    return max(1, math.ceil(NormalDist().inv_cdf(level / 2) ** 2 * variance / error**2))


def _tail_scale(frobenius_norm: float, spectral_norm: float, error: float, constants: TailConstants) -> float:
    holds = 0 <= spectral_norm <= frobenius_norm * (1 + 1e-6) < math.inf
    _require(holds, "need 0 <= spectral {} <= frobenius_norm {}; swapped or squared?", spectral_norm, frobenius_norm)
    return float(constants.frobenius * frobenius_norm**2 + constants.spectral * error * spectral_norm)


def num_probes_subexponential(
    frobenius_norm: float, spectral_norm: float, error: float, level: float, constants: TailConstants
) -> int:
    """The guaranteed count ⌈(c_F‖A‖² + c_2 ε‖A‖₂)/ε² · log(2/δ)⌉ for Gaussian or Rademacher probes.

    The norms are those of A = `quadratic_form(H, l)` for a layer from one product (T17), of H_ll for separated probes;
    without the diagonal where `constants.off_diagonal`. ε absolute, δ = `level`. Cortinovis & Kressner 2021.
    """
    _check_request(error, level)
    scale = _tail_scale(frobenius_norm, spectral_norm, error, constants)
    return max(1, math.ceil(scale / error**2 * math.log(2 / level)))


def tail_bound(
    num_probes: int, frobenius_norm: float, spectral_norm: float, error: float, constants: TailConstants
) -> float:
    """The bound on P(|estimate − trace| ≥ ε) that `num_probes_subexponential` inverts, at most 1; 0 for A = 0."""
    _check_probes(num_probes)
    _check_request(error, 0.5)
    scale = _tail_scale(frobenius_norm, spectral_norm, error, constants)
    return min(1.0, 2 * math.exp(-num_probes * error**2 / scale)) if scale > 0 else 0.0


# --- the algebra of proofs ---


def symmetric_symbols(P: int, name: str = "h") -> Any:
    """The symmetric P×P sympy matrix of real symbols `name`_i_j, i ≤ j."""
    import sympy

    _require(P >= 1, "P must be >= 1, got {}; ask for at least one row", P)
    return sympy.Matrix(P, P, lambda i, j: sympy.Symbol(f"{name}_{min(i, j)}_{max(i, j)}", real=True))


def expectation(polynomial: Any, z: Sequence[Any], moments: Mapping[int, Any]) -> Any:
    """E of a polynomial in independent entries z_i with E z_i^k = `moments[k]`: Σ coefficient · Π_i moments[k_i].

    Expanded, so that equal expectations subtract to zero. Raises if a power occurs whose moment is not given.
    """
    import sympy

    terms = sympy.Poly(polynomial, *z).terms()
    missing = {k for powers, _ in terms for k in powers if k} - set(moments)
    if missing:
        raise ValueError(f"the polynomial needs E z^k for k = {sorted(missing)}; add them to moments")
    return sympy.expand(sum(c * math.prod(moments[k] for k in powers if k) for powers, c in terms))
