"""Repeated estimates of one problem, and what can be said of their mean and spread at a given level.

Nothing is known of the draws of a stranger's estimator. A run averages `num_probes` probes and a look takes at least 64
runs, so that the means of runs are nearly normal and Student's and Fisher's laws, with degrees of freedom from the
measured fourth moment, hold far enough into the tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats

from hesstheory.conformance.answers import TOTAL, Answer, Estimator, ask
from hesstheory.execution import stream
from hesstheory.problem import Problem

FIRST_LOOK, LAST_LOOK = 64, 8192


@dataclass
class Runs:
    """Estimates of one problem, run r from random stream r; more are made when they are asked for."""

    estimator: Estimator
    problem: Problem
    num_probes: int
    seed: int
    name: str
    interrupt: Callable[[], None] = lambda: None
    answers: list[Answer] = field(default_factory=list)

    def first(self, count: int) -> list[Answer]:
        """The first `count` runs."""
        while len(self.answers) < count:
            self.interrupt()
            generator = self.generator(len(self.answers))
            self.answers.append(ask(self.estimator, self.problem, self.num_probes, generator))
        return self.answers[:count]

    def generator(self, run: int) -> torch.Generator:
        return stream(self.seed, self.name, str(self.num_probes), str(run))

    def values(self, count: int) -> dict[str, np.ndarray]:
        """Values by block and in total."""
        answers = self.first(count)
        blocks = [] if answers[0].is_total else list(answers[0].values)
        found = {block: np.array([answer.values[block] for answer in answers]) for block in blocks}
        if len(blocks) != 1:
            found[TOTAL] = np.array([answer.total for answer in answers])
        return found

    def errors(self, count: int) -> dict[str, np.ndarray] | None:
        """Claimed standard errors by block."""
        answers = self.first(count)
        if answers[0].stderr is None:
            return None
        return {b: np.array([(answer.stderr or {})[b] for answer in answers]) for b in answers[0].stderr}


@dataclass(frozen=True)
class Interval:
    """An estimate of an effect with its interval."""

    effect: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.effect:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


def looks() -> list[int]:
    """Numbers of runs at which is looked."""
    return [FIRST_LOOK * 2**k for k in range(int(math.log2(LAST_LOOK / FIRST_LOOK)) + 1)]


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
