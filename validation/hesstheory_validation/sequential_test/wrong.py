"""Sequential tests that do not keep their level or their power."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import torch

from hesstheory.evidence.checks import Status
from hesstheory.evidence.sequential import SequentialTest, Tail

Draw = Callable[[int, torch.Generator], np.ndarray]

# Status, mean, number of draws and half width.
Outcome = tuple[Status, np.ndarray, int, np.ndarray]


class ZTestFirstLook(SequentialTest):
    """Takes the mean of a first look of ten draws for normal."""

    def half_width(self, num_draws: int) -> np.ndarray:
        level = self.alpha / len(self.looks)
        return -NormalDist().inv_cdf(level / 2) * (self.tail.variance / num_draws) ** 0.5


class NoSpendingForLooks(SequentialTest):
    """Tests at the full level at every look, as if there were one."""

    def half_width(self, num_draws: int) -> np.ndarray:
        return self.tail.half_width(num_draws, self.alpha)


class ZTestAtEveryLook(SequentialTest):
    """Takes every mean for normal and tests at the full level at every look."""

    def half_width(self, num_draws: int) -> np.ndarray:
        return -NormalDist().inv_cdf(self.alpha / 2) * (self.tail.variance / num_draws) ** 0.5


class SubGaussianTail(SequentialTest):
    """Drops the scale of the tail, as if all draws had tails like a normal."""

    def half_width(self, num_draws: int) -> np.ndarray:
        return Tail(self.tail.variance, 0.0).half_width(num_draws, self.alpha / len(self.looks))


class PilotForTarget(SequentialTest):
    """Takes the mean of a pilot of ten draws for the exact target."""

    def run(self, draw: Draw, target: np.ndarray, generator: torch.Generator) -> Outcome:
        return super().run(draw, np.mean(draw(10, generator), axis=0), generator)


class StudentErrorBar(SequentialTest):
    """Judges the mean by its own standard error instead of by what is known beforehand."""

    def run(self, draw: Draw, target: np.ndarray, generator: torch.Generator) -> Outcome:
        seen: list[np.ndarray] = []
        for n in self.looks:
            seen.extend(np.asarray(draw(n - len(seen), generator)))
            mean = np.mean(seen, axis=0)
            spread = np.std(seen, axis=0, ddof=1)
            width = -NormalDist().inv_cdf(self.alpha / len(self.looks) / 2) * spread / n**0.5
            if np.abs(mean - target) > width:
                return Status.FAILED, mean, n, width
        return Status.PASSED, mean, n, width


class DetectableAtTheLastLook(SequentialTest):
    """Forgets that an early look may agree with what the last one could tell apart."""

    @property
    def detectable(self) -> np.ndarray:
        return self.half_width(self.looks[-1]) + self.tail.half_width(
            self.looks[-1], 2 * (1 - self.power)
        )


class NotRejectedMeansEqual(SequentialTest):
    """Agrees at the first look that does not reject."""

    def decide(self, error: np.ndarray, num_draws: int) -> Status | None:
        return super().decide(error, num_draws) or Status.PASSED


class MeanInsideMarginMeansEqual(SequentialTest):
    """Agrees as soon as the mean lies inside the margin, whatever the width of the interval."""

    def decide(self, error: np.ndarray, num_draws: int) -> Status | None:
        outcome = super().decide(error, num_draws)
        return Status.PASSED if outcome is None and np.all(error <= self.margin) else outcome


class MarginDoubled(SequentialTest):
    """Agrees within twice the margin that it declares."""

    def decide(self, error: np.ndarray, num_draws: int) -> Status | None:
        outcome = super().decide(error, num_draws)
        agrees = np.all(error + self.half_width(num_draws) <= 2 * self.margin)
        return Status.PASSED if outcome is None and agrees else outcome
