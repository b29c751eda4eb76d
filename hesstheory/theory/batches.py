"""Probe noise and batch noise, K* and its estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hesstheory.theory.matrices import (
    Matrix,
    Scalar,
    as_array,
    check_num_probes,
    require,
    require_nonnegative,
    sqrt_of,
    squared_norm,
)


def finite_population_factor(
    batch_size: Scalar, num_samples: Scalar, replacement: bool = False
) -> Scalar:
    """The factor f with Var(mean of b of n values) = S² f/b, where S² = Σ (x − x̄)²/(n−1).

    f = 1 − b/n without replacement, f = 1 − 1/n with replacement

    Both go with the denominator n−1 of S², and agree at b = 1; with σ² = S²(n−1)/n the second is the usual σ²/b.
    n = ∞, a stream of fresh data, gives 1. Cochran 1977, Theorem 2.2.
    """
    b, n = batch_size, num_samples
    require(
        n >= 2, "num_samples must be >= 2, got {}; one sample has no variance between batches", n
    )
    require(b >= 1, "batch_size must be >= 1, got {}; draw at least one sample", b)
    require(
        replacement or b <= n,
        "batch_size {} exceeds num_samples {}; draw fewer or set replacement=True",
        b,
        n,
    )
    return 1 - 1 / n if replacement else 1 - b / n


def batch_trace_variance(S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False) -> Scalar:
    """Var_B[tr H_B,ll] = S_t² f/b, with S_t² = Σ_n (t_n − t̄)²/(n−1) over the per-sample traces. Claim T10."""
    require_nonnegative(S_t2=S_t2)
    return S_t2 * finite_population_factor(b, n, replacement) / b


def total_variance(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Variance of K probes on one mini-batch: Var = E_B[V_l(H_B)]/K + Var_B[tr H_B,ll]. Claim T10."""
    check_num_probes(num_probes)
    require_nonnegative(
        mean_batch_probe_variance=mean_batch_probe_variance, batch_variance=batch_variance
    )
    return mean_batch_probe_variance / num_probes + batch_variance


def fresh_batch_variance(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Variance of K probes, each on its own independent mini-batch: (E_B[V_l(H_B)] + Var_B)/K; no floor. Claim T15."""
    check_num_probes(num_probes)
    require_nonnegative(
        mean_batch_probe_variance=mean_batch_probe_variance, batch_variance=batch_variance
    )
    return (mean_batch_probe_variance + batch_variance) / num_probes


def mean_batch_probe_variance(
    V_of_mean: Scalar, S_q: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """The probe variance of a random mini-batch: E_B[V(H_B)] = V(H̄) + S_q f/b, S_q = Σ_n V(H_n − H̄)/(n−1).

    Exact because V is a quadratic form in the matrix; never below V(H̄), the variance on the full batch. Claim T11.
    """
    require_nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    return V_of_mean + S_q * finite_population_factor(b, n, replacement) / b


def critical_num_probes(probe_variance: Scalar, batch_variance: Scalar) -> Scalar:
    """The count at which probe noise equals batch noise: K* = E_B[V_l(H_B)]/Var_B[tr H_B,ll].

    `probe_variance` is the MEAN over batches; V of the full-batch Hessian makes K* too small. Raises where the batch
    variance is 0, as on the full batch: there is no floor and K* = ∞. Claim T11.
    """
    require_nonnegative(probe_variance=probe_variance)
    require(
        batch_variance > 0,
        "batch_variance must be > 0, got {}; on the full batch K* is infinite",
        batch_variance,
    )
    return probe_variance / batch_variance


def critical_num_probes_of_batch(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """K* over the batch size: K* = (b·V(H̄)/f + S_q)/S_t², growing with b; raises at f = 0, where K* = ∞. Claim T11."""
    f = finite_population_factor(b, n, replacement)
    require_nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    require(f > 0, "a batch of {} is the whole data set and K* is infinite; ask for b < n", b)
    require(
        S_t2 > 0, "S_t2 must be > 0, got {}; where all samples have one trace K* is infinite", S_t2
    )
    return (b * V_of_mean / f + S_q) / S_t2


def total_variance_curve(floor: Scalar, critical: Scalar, num_probes: Scalar) -> Scalar:
    """The total variance over K: floor·(1 + K*/K), exactly twice the floor at K = K*. Claim T11."""
    check_num_probes(num_probes)
    require_nonnegative(floor=floor, critical=critical)
    return floor * (1 + critical / num_probes)


def budget_variance(
    floor: Scalar,
    critical: Scalar,
    num_probes: Scalar,
    overhead: Scalar,
    cost_per_probe: Scalar,
    budget: Scalar,
) -> Scalar:
    """Variance of the mean over the C/(c0 + c1·K) independent mini-batches that a budget C buys.

    Var = floor·(1 + K*/K)·(c0 + c1·K)/C, with c0 per batch and c1 per probe in the units of C. Claim T13.
    """
    require(budget > 0, "budget must be > 0, got {}; give it in the units of the costs", budget)
    require_nonnegative(overhead=overhead, cost_per_probe=cost_per_probe)
    return (
        total_variance_curve(floor, critical, num_probes)
        * (overhead + cost_per_probe * num_probes)
        / budget
    )


def cost_optimal_num_probes(overhead: Scalar, cost_per_probe: Scalar, critical: Scalar) -> Scalar:
    """The K that minimises `budget_variance`: √(c0/c1 · K*).

    Not rounded: the variance is convex in K, so the best count is a neighbouring whole number, or 1 below 1. Claim T13.
    """
    require_nonnegative(overhead=overhead, critical=critical)
    require(
        cost_per_probe > 0,
        "cost_per_probe must be > 0, got {}; free probes have no optimum",
        cost_per_probe,
    )
    return sqrt_of(overhead / cost_per_probe * critical)


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
    q = as_array(q)
    if q.ndim != 2 or min(q.shape) < 2 or q.shape[0] * (q.shape[1] - 1) <= 2:
        raise ValueError(
            f"q must be batches × probes, 3×2 or 2×3 at least, got shape {tuple(q.shape)}; draw more"
        )
    M, K = q.shape
    nu2, means = M * (K - 1), q.mean(1)
    within = squared_norm(q - means[:, None]) / nu2
    require(
        within > 0,
        "the probes of each batch all agree: K* = 0, one probe will do; or were they one probe?",
    )
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
    require_nonnegative(rho=rho)
    require(
        nu2 > 2,
        "M(K−1) must be > 2, got {}; with less F has no mean: use more batches or probes",
        nu2,
    )
    return 2 * (1 + num_probes * rho) / (num_probes * (nu2 - 2))
