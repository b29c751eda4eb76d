"""Wrong formulas of the probe trade-off: batches, K*, cost, ANOVA."""

from __future__ import annotations

from hesstheory import theory
from hesstheory.theory.matrices import Scalar


def floor_averaged_away(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Averages the batch noise over the probes too, as if each had a batch of its own."""
    return theory.fresh_batch_variance(mean_batch_probe_variance, batch_variance, num_probes)


def floor_forgotten(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Omits the batch noise: the error bar of the probes alone."""
    return mean_batch_probe_variance / num_probes


def probe_noise_not_averaged(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Forgets to divide the probe noise by the number of probes."""
    return mean_batch_probe_variance + batch_variance


def total_just_outside_rounding(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.total_variance(mean_batch_probe_variance, batch_variance, num_probes) * (
        1 + 2**-30
    )


def batch_kept_for_all_probes(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Uses the variance of one batch for all probes where every probe has its own."""
    return theory.total_variance(mean_batch_probe_variance, batch_variance, num_probes)


def batch_noise_forgotten(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Omits the batch noise of fresh batches."""
    return mean_batch_probe_variance / num_probes


def fresh_just_outside_rounding(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.fresh_batch_variance(mean_batch_probe_variance, batch_variance, num_probes) * (
        1 + 2**-30
    )


def no_finite_population_correction(
    S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Takes S²/b, as if the data set were infinite."""
    return S_t2 / b


def replacement_swapped(S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False) -> Scalar:
    """Takes draws with replacement for draws without, and the other way round."""
    return theory.batch_trace_variance(S_t2, b, n, not replacement)


def denominator_n(S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False) -> Scalar:
    """Divides the per-sample sum of squares by n where the formula wants n − 1."""
    return theory.batch_trace_variance(S_t2 * (n - 1) / n, b, n, replacement)


def batch_variance_just_outside_rounding(
    S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.batch_trace_variance(S_t2, b, n, replacement) * (1 + 2**-30)


def root_forgotten(overhead: Scalar, cost_per_probe: Scalar, critical: Scalar) -> Scalar:
    """Forgets the square root of the cost-optimal count."""
    return overhead / cost_per_probe * critical


def costs_swapped(overhead: Scalar, cost_per_probe: Scalar, critical: Scalar) -> Scalar:
    """Takes c0 for c1."""
    return theory.cost_optimal_num_probes(cost_per_probe, overhead, critical)


def critical_count_whatever_the_cost(
    overhead: Scalar, cost_per_probe: Scalar, critical: Scalar
) -> Scalar:
    """Recommends K* itself, whatever a batch costs."""
    return critical


def optimum_just_outside_rounding(
    overhead: Scalar, cost_per_probe: Scalar, critical: Scalar
) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.cost_optimal_num_probes(overhead, cost_per_probe, critical) * (1 + 2**-30)
