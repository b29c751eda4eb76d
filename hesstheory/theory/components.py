"""The estimate of K* from batches × probes by analysis of variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hesstheory.theory.matrices import (
    Matrix,
    Scalar,
    as_array,
    require,
    require_nonnegative,
    squared_norm,
)


@dataclass(frozen=True)
class Anova:
    """Estimates of both parts of K* from batches × probes.

    Parameters
    ----------
    within
        Estimate of σ_w² = E_B[V_l(H_B)].
    between
        Estimate of σ_b² = Var_B[tr H_B,ll]; may be negative.
    critical_num_probes
        K̂* = within/between, ∞ where `between` ≤ 0. It has no finite mean, since its
        denominator (F − 1)/K crosses zero with positive density.
    inverse_critical
        1/K̂*, which has a mean.
    inverse_critical_bias
        An estimate without bias of the bias of 1/K̂*, for normal data.
    corrected_inverse
        1/K̂* less that bias.
    """

    within: Scalar
    between: Scalar
    critical_num_probes: Scalar
    inverse_critical: Scalar
    inverse_critical_bias: Scalar
    corrected_inverse: Scalar


def anova(q: Matrix) -> Anova:
    """Estimates K* by one-way analysis of variance.

    within = Σ (q_mk − q̄_m)²/ν₂, between = (MSB − within)/K,
    1/K̂* = between/within = (F − 1)/K, F = MSB/within, ν₂ = M(K−1)

    Parameters
    ----------
    q
        q[m, k] of probe k on the independent mini-batch m, M×K.

    Returns
    -------
    Anova
        Its `inverse_critical_bias` is 2F/(ν₂K).

    Raises
    ------
    ValueError
        Fewer than 3×2 or 2×3 numbers, or no probe noise at all (K* = 0).

    Notes
    -----
    Claim T14; Searle, Casella & McCulloch 1992, chapter 3.

    Examples
    --------
    >>> from hesstheory import theory
    >>> found = theory.anova([[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]])
    >>> float(found.within), float(found.between), float(found.critical_num_probes)
    (2.0, 15.0, 0.13333333333333333)
    """
    q = as_array(q)
    if q.ndim != 2 or min(q.shape) < 2 or q.shape[0] * (q.shape[1] - 1) <= 2:
        raise ValueError(
            "q must be batches × probes, 3×2 or 2×3 at least, "
            f"got shape {tuple(q.shape)}; draw more"
        )
    M, K = q.shape
    nu2 = M * (K - 1)
    means = q.mean(1)
    within = squared_norm(q - means[:, None]) / nu2
    require(
        within > 0,
        "the probes of each batch all agree: K* = 0, one probe will do; or were they one probe?",
    )
    F = K * squared_norm(means - means.mean()) / (M - 1) / within
    inverse = (F - 1) / K
    bias = 2 * F / (nu2 * K)
    critical = 1 / inverse if inverse > 0 else within * math.inf
    return Anova(within, inverse * within, critical, inverse, bias, inverse - bias)


def anova_inverse_bias(rho: Scalar, num_batches: Scalar, num_probes: Scalar) -> Scalar:
    """Bias of the estimate 1/K̂* for normal data.

    E[1/K̂*] − ρ = 2(1 + Kρ)/(K(ν₂ − 2)), ν₂ = M(K−1), from E F = (1 + Kρ)·ν₂/(ν₂ − 2)

    Parameters
    ----------
    rho
        ρ = 1/K* = σ_b²/σ_w².
    num_batches, num_probes
        M and K.

    Returns
    -------
    Scalar
        Bias, in the unit of 1/K*.

    Raises
    ------
    ValueError
        ρ < 0, or ν₂ ≤ 2, where F has no mean.

    Notes
    -----
    Claim T14.a.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.anova_inverse_bias(0.5, num_batches=10, num_probes=2)
    0.25
    """
    nu2 = num_batches * (num_probes - 1)
    require_nonnegative(rho=rho)
    require(
        nu2 > 2,
        "M(K−1) must be > 2, got {}; with less F has no mean: use more batches or probes",
        nu2,
    )
    return 2 * (1 + num_probes * rho) / (num_probes * (nu2 - 2))
