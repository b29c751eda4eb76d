"""Wrong estimates of K* from variance components."""

from __future__ import annotations

from dataclasses import replace

from hesstheory import theory
from hesstheory.theory.matrices import Matrix, Scalar


def between_holds_probe_noise(q: Matrix) -> theory.Anova:
    """Reports the variance of the batch means as the batch noise, without subtracting within/K."""
    right = theory.anova(q)
    return replace(right, between=right.between + right.within / q.shape[1])


def between_clipped_at_zero(q: Matrix) -> theory.Anova:
    """Replaces a negative between component by 0."""
    right = theory.anova(q)
    return replace(right, between=max(right.between, 0.0))


def within_of_all_numbers(q: Matrix) -> theory.Anova:
    """Takes the variance of all numbers for the probe noise."""
    return replace(theory.anova(q), within=q.var(ddof=1))


def within_divided_by_count(q: Matrix) -> theory.Anova:
    """Divides the sum of squares within batches by MK instead of M(K−1)."""
    right = theory.anova(q)
    probes = q.shape[1]
    return replace(right, within=right.within * (probes - 1) / probes)


def components_just_outside_rounding(q: Matrix) -> theory.Anova:
    """Reports both components off by one part in 10⁹."""
    right = theory.anova(q)
    return replace(right, within=right.within * (1 + 2**-30), between=right.between * (1 + 2**-30))


def inverse_bias_without_signal(rho: Scalar, num_batches: Scalar, num_probes: Scalar) -> Scalar:
    """Takes the bias of 1/K̂* to be the same whatever K*."""
    return theory.anova_inverse_bias(0 * rho, num_batches, num_probes)


def inverse_bias_of_many_batches(rho: Scalar, num_batches: Scalar, num_probes: Scalar) -> Scalar:
    """Uses the leading term 2(1 + Kρ)/(Kν₂), which only many batches justify."""
    return 2 * (1 + num_probes * rho) / (num_probes * num_batches * (num_probes - 1))


def inverse_bias_denied(rho: Scalar, num_batches: Scalar, num_probes: Scalar) -> Scalar:
    """Takes 1/K̂* for unbiased, because both components are."""
    return 0 * theory.anova_inverse_bias(rho, num_batches, num_probes)


def inverse_bias_just_outside_rounding(
    rho: Scalar, num_batches: Scalar, num_probes: Scalar
) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.anova_inverse_bias(rho, num_batches, num_probes) * (1 + 2**-30)


def critical_count_of_clipped_noise(q: Matrix) -> theory.Anova:
    """Keeps the between component above a tenth of the within one, which makes K̂* at most 10."""
    right = theory.anova(q)
    return replace(right, critical_num_probes=right.within / max(right.between, right.within / 10))


def critical_count_by_absolute_value(q: Matrix) -> theory.Anova:
    """Drops the sign of a negative between component."""
    right = theory.anova(q)
    return replace(
        right,
        critical_num_probes=abs(right.within / right.between) if right.between else float("inf"),
    )


def critical_count_zero_without_signal(q: Matrix) -> theory.Anova:
    """Reports K̂* = 0 where no batch noise is seen, as if no probe were needed."""
    right = theory.anova(q)
    return right if right.between > 0 else replace(right, critical_num_probes=0.0)
