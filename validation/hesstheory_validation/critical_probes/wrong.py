"""Wrong values of K*."""

from __future__ import annotations

from hesstheory import theory
from hesstheory.theory.matrices import Scalar


def full_batch_plugged_in(
    V_of_mean: Scalar, S_q: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Plugs in the full-batch Hessian for that of the mini-batch."""
    return V_of_mean


def spread_of_hessians_not_corrected(
    V_of_mean: Scalar, S_q: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Leaves the finite-population factor out of the spread of the per-sample Hessians."""
    return V_of_mean + S_q / b


def spread_of_hessians_not_averaged(
    V_of_mean: Scalar, S_q: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Forgets that a batch averages the spread of the per-sample Hessians."""
    return V_of_mean + S_q * theory.finite_population_factor(b, n, replacement)


def mean_probe_variance_just_outside_rounding(
    V_of_mean: Scalar, S_q: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.mean_batch_probe_variance(V_of_mean, S_q, b, n, replacement) * (1 + 2**-30)


def ratio_inverted(probe_variance: Scalar, batch_variance: Scalar) -> Scalar:
    """Divides the batch noise by the probe noise."""
    return theory.critical_num_probes(batch_variance, probe_variance)


def ratio_of_standard_deviations(probe_variance: Scalar, batch_variance: Scalar) -> Scalar:
    """Compares standard deviations where variances add."""
    return theory.critical_num_probes(probe_variance, batch_variance) ** 0.5


def share_of_total(probe_variance: Scalar, batch_variance: Scalar) -> Scalar:
    """Divides by the whole variance instead of the floor."""
    return theory.critical_num_probes(probe_variance, probe_variance + batch_variance)


def critical_just_outside_rounding(probe_variance: Scalar, batch_variance: Scalar) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.critical_num_probes(probe_variance, batch_variance) * (1 + 2**-30)


def full_batch_numerator(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Puts the probe variance of the full-batch Hessian over the batch noise."""
    return theory.critical_num_probes(
        V_of_mean, theory.batch_trace_variance(S_t2, b, n, replacement)
    )


def batch_size_ignored(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Reports the count of single samples whatever the batch size."""
    return theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2, b / b, n, replacement)


def infinite_population(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Drops the finite-population factor."""
    return (b * V_of_mean + S_q) / S_t2


def spread_of_traces_not_squared(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Divides by the standard deviation of the per-sample traces instead of their variance."""
    return theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2**0.5, b, n, replacement)


def critical_of_batch_just_outside_rounding(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2, b, n, replacement) * (
        1 + 2**-30
    )


def clipped_to_published_range(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Reports the published 5 to 10 whatever the data say."""
    return min(
        max(theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2, b, n, replacement), 5.0), 10.0
    )
