"""Wrong p-values of a count of alarms."""

from __future__ import annotations

from statistics import NormalDist


def alarms_in_lower_tail(alarms: int, runs: int, rate: float) -> float:
    """Looks at the tail of too few alarms."""
    from scipy.stats import binom

    return float(binom.cdf(alarms, runs, rate))


def alarms_with_largest_variance(alarms: int, runs: int, rate: float) -> float:
    """Uses the normal approximation with the variance of a rate of one half."""
    return 2 * NormalDist().cdf(-abs(alarms - runs * rate) / (runs / 4) ** 0.5)


def alarms_corrected_for_runs(alarms: int, runs: int, rate: float) -> float:
    """Multiplies the p-value by the number of runs, although the rate is one of runs already."""
    from scipy.stats import binomtest

    return min(1.0, runs * float(binomtest(alarms, runs, rate).pvalue))


def alarms_as_standard_deviations(alarms: int, runs: int, rate: float) -> float:
    """Reads the count as a number of standard deviations."""
    return 2 * NormalDist().cdf(-alarms)
