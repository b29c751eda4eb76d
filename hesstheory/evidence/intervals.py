"""Intervals of probabilities, means and ratios of variances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from hesstheory.evidence.exact import Array


def check_level(
    level: object, name: str = "level", cure: str = "pass a probability, such as 0.95"
) -> None:
    """Raises ValueError unless it is a number strictly between 0 and 1."""
    if not isinstance(level, Real) or not 0 < float(level) < 1:
        raise ValueError(f"{name} is {level!r}: {cure}")


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a probability (Clopper and Pearson 1934).

    Returns
    -------
    tuple of float
        Lower and upper end. The interval covers the probability at least with `level`.

    Examples
    --------
    >>> low, high = clopper_pearson(16, 120)
    >>> print(f"{low:.4f} to {high:.4f}")
    0.0782 to 0.2075
    """
    from scipy import stats

    found = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


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


def mean_interval(values: Array, alpha: float) -> Interval:
    """Student's interval of level 1 − α of the mean of independent draws.

    Examples
    --------
    >>> import numpy as np
    >>> print(mean_interval(np.array([1.0, 2.0, 3.0]), alpha=0.05))
    +2 [-0.484, +4.48]
    """
    from scipy import stats

    # From the tail itself: 1 − α/2 loses its digits at the levels of a suite, near 1e-9.
    half = stats.t.isf(alpha / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    mean = float(values.mean())
    return Interval(mean, mean - float(half), mean + float(half))


def degrees_of_freedom(values: Array) -> float:
    """Degrees of freedom of the χ² law that the sample variance follows: 2(n − 1)/(kurtosis − 1).

    Normal draws have n − 1. A sample kurtosis below theirs is taken as theirs, since it is likelier
    to be an accident.
    """
    from scipy import stats

    # Equal values have no kurtosis: it is 0/0.
    kurtosis = float(stats.kurtosis(values, fisher=False)) if values.std() > 0 else 3.0
    return 2 * (len(values) - 1) / (max(kurtosis, 3.0) - 1)


def variance_ratio(top: tuple[float, float], bottom: tuple[float, float], alpha: float) -> Interval:
    """Interval of level 1 − α of the ratio of two variances.

    Parameters
    ----------
    top, bottom
        A variance and the degrees of freedom of its estimate, infinite where it is known.
    alpha
        Probability that the interval misses the ratio.

    Returns
    -------
    Interval
        Of no width where a variance is 0.

    Examples
    --------
    >>> print(variance_ratio((2.0, 20), (1.0, 20), alpha=0.05))
    +2 [+0.812, +4.93]
    """
    from scipy import stats

    a, m = top
    b, n = bottom
    if a <= 0 or b <= 0:
        same = 1.0 if a == b else math.inf if b <= 0 else 0.0
        return Interval(same, same, same)
    # 1e9 degrees of freedom stand for a known variance: scipy's F has no infinite ones.
    law = stats.f(min(m, 1e9), min(n, 1e9))
    return Interval(a / b, a / b / float(law.isf(alpha / 2)), a / b / float(law.ppf(alpha / 2)))


def satterthwaite(squares: Array) -> tuple[float, float]:
    """Mean of claimed squared errors, and the degrees of freedom that its scatter is worth.

    A χ² law with ν degrees of freedom has variance 2 mean²/ν (Satterthwaite 1946).
    """
    mean = float(squares.mean())
    scatter = float(squares.var(ddof=1)) / len(squares)
    return mean, 2 * mean**2 / scatter if scatter > 0 else math.inf
