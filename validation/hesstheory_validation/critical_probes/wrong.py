"""Wrong values of K* and of its estimate from variance components."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hesstheory import theory


def full_batch_plugged_in(
    V_of_mean: Any, S_q: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Plugs in the full-batch Hessian for that of the mini-batch."""
    return V_of_mean


def spread_of_hessians_not_corrected(
    V_of_mean: Any, S_q: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Leaves the finite-population factor out of the spread of the per-sample Hessians."""
    return V_of_mean + S_q / b


def spread_of_hessians_not_averaged(
    V_of_mean: Any, S_q: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Forgets that a batch averages the spread of the per-sample Hessians."""
    return V_of_mean + S_q * theory.finite_population_factor(b, n, replacement)


def mean_probe_variance_just_outside_rounding(
    V_of_mean: Any, S_q: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Is off by one part in 10⁹."""
    return theory.mean_batch_probe_variance(V_of_mean, S_q, b, n, replacement) * (1 + 2**-30)


def ratio_inverted(probe_variance: Any, batch_variance: Any) -> Any:
    """Divides the batch noise by the probe noise."""
    return theory.critical_num_probes(batch_variance, probe_variance)


def ratio_of_standard_deviations(probe_variance: Any, batch_variance: Any) -> Any:
    """Compares standard deviations where variances add."""
    return theory.critical_num_probes(probe_variance, batch_variance) ** 0.5


def share_of_total(probe_variance: Any, batch_variance: Any) -> Any:
    """Divides by the whole variance instead of the floor."""
    return theory.critical_num_probes(probe_variance, probe_variance + batch_variance)


def critical_just_outside_rounding(probe_variance: Any, batch_variance: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.critical_num_probes(probe_variance, batch_variance) * (1 + 2**-30)


def full_batch_numerator(
    V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Puts the probe variance of the full-batch Hessian over the batch noise."""
    return theory.critical_num_probes(
        V_of_mean, theory.batch_trace_variance(S_t2, b, n, replacement)
    )


def batch_size_ignored(
    V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Reports the count of single samples whatever the batch size."""
    return theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2, b / b, n, replacement)


def infinite_population(
    V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Drops the finite-population factor."""
    return (b * V_of_mean + S_q) / S_t2


def spread_of_traces_not_squared(
    V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Divides by the standard deviation of the per-sample traces instead of their variance."""
    return theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2**0.5, b, n, replacement)


def critical_of_batch_just_outside_rounding(
    V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Is off by one part in 10⁹."""
    return theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2, b, n, replacement) * (
        1 + 2**-30
    )


def clipped_to_published_range(
    V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Reports the published 5 to 10 whatever the data say."""
    return min(
        max(theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2, b, n, replacement), 5.0), 10.0
    )


def between_holds_probe_noise(q: Any) -> theory.Anova:
    """Reports the variance of the batch means as the batch noise, without subtracting within/K."""
    right = theory.anova(q)
    return replace(right, between=right.between + right.within / q.shape[1])


def between_clipped_at_zero(q: Any) -> theory.Anova:
    """Replaces a negative between component by 0."""
    right = theory.anova(q)
    return replace(right, between=max(right.between, 0.0))


def within_of_all_numbers(q: Any) -> theory.Anova:
    """Takes the variance of all numbers for the probe noise."""
    return replace(theory.anova(q), within=q.var(ddof=1))


def within_divided_by_count(q: Any) -> theory.Anova:
    """Divides the sum of squares within batches by MK instead of M(K−1)."""
    right, probes = theory.anova(q), q.shape[1]
    return replace(right, within=right.within * (probes - 1) / probes)


def components_just_outside_rounding(q: Any) -> theory.Anova:
    """Reports both components off by one part in 10⁹."""
    right = theory.anova(q)
    return replace(right, within=right.within * (1 + 2**-30), between=right.between * (1 + 2**-30))


def inverse_bias_without_signal(rho: Any, num_batches: Any, num_probes: Any) -> Any:
    """Takes the bias of 1/K̂* to be the same whatever K*."""
    return theory.anova_inverse_bias(0 * rho, num_batches, num_probes)


def inverse_bias_of_many_batches(rho: Any, num_batches: Any, num_probes: Any) -> Any:
    """Uses the leading term 2(1 + Kρ)/(Kν₂), which only many batches justify."""
    return 2 * (1 + num_probes * rho) / (num_probes * num_batches * (num_probes - 1))


def inverse_bias_denied(rho: Any, num_batches: Any, num_probes: Any) -> Any:
    """Takes 1/K̂* for unbiased, because both components are."""
    return 0 * theory.anova_inverse_bias(rho, num_batches, num_probes)


def inverse_bias_just_outside_rounding(rho: Any, num_batches: Any, num_probes: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.anova_inverse_bias(rho, num_batches, num_probes) * (1 + 2**-30)


def critical_count_of_clipped_noise(q: Any) -> theory.Anova:
    """Keeps the between component above a tenth of the within one, which makes K̂* at most 10."""
    right = theory.anova(q)
    return replace(right, critical_num_probes=right.within / max(right.between, right.within / 10))


def critical_count_by_absolute_value(q: Any) -> theory.Anova:
    """Drops the sign of a negative between component."""
    right = theory.anova(q)
    return replace(
        right,
        critical_num_probes=abs(right.within / right.between) if right.between else float("inf"),
    )


def critical_count_zero_without_signal(q: Any) -> theory.Anova:
    """Reports K̂* = 0 where no batch noise is seen, as if no probe were needed."""
    right = theory.anova(q)
    return right if right.between > 0 else replace(right, critical_num_probes=0.0)
