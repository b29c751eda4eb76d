"""Intervals of probabilities, means and ratios of variances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a probability (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


@dataclass(frozen=True)
class Interval:
    """An estimate of an effect with its interval."""

    effect: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Distance of the ends."""
        return self.high - self.low

    def __str__(self) -> str:
        return f"{self.effect:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


def mean_interval(values: np.ndarray, alpha: float) -> Interval:
    """Student's interval of the mean of the draws."""
    half = stats.t.isf(alpha / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    mean = float(values.mean())
    return Interval(mean, mean - float(half), mean + float(half))


def degrees_of_freedom(values: np.ndarray) -> float:
    """Those of the χ² law that the sample variance follows: 2(n − 1)/(kurtosis − 1); 2(n − 1)/2 for normal draws."""
    kurtosis = float(stats.kurtosis(values, fisher=False)) if values.std() > 0 else 3.0
    return 2 * (len(values) - 1) / (max(kurtosis, 3.0) - 1)


def variance_ratio(top: tuple[float, float], bottom: tuple[float, float], alpha: float) -> Interval:
    """Interval of the ratio of two variances, each given with the degrees of freedom of its estimate (inf: known)."""
    (a, m), (b, n) = top, bottom
    if a <= 0 or b <= 0:
        same = 1.0 if a == b else math.inf if b <= 0 else 0.0
        return Interval(same, same, same)
    law = stats.f(min(m, 1e9), min(n, 1e9))
    return Interval(a / b, a / b / float(law.isf(alpha / 2)), a / b / float(law.ppf(alpha / 2)))


def satterthwaite(squares: np.ndarray) -> tuple[float, float]:
    """Mean of claimed squared errors and the degrees of freedom that its scatter is worth (Satterthwaite 1946)."""
    mean, scatter = float(squares.mean()), float(squares.var(ddof=1)) / len(squares)
    return mean, 2 * mean**2 / scatter if scatter > 0 else math.inf
