"""Statistical checks: a sequential test of equivalence with a declared margin and power."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hesstheory.evidence.budget import level_of_look
from hesstheory.evidence.checks import Check, Kind, Status
from hesstheory.evidence.exact import as_array

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tail:
    """What is known of a draw X beforehand: P(|mean of n − E X| ≥ ε) ≤ 2 exp(−nε²/(2(v + cε))) (Bernstein 1946).

    `variance` v bounds the variance, `scale` c the tail; arrays for several draws at once. With these known, the level
    of a test is guaranteed at every n, which a normal approximation does not do at 1e-8.
    """

    variance: Any
    scale: Any

    @classmethod
    def bounded(cls, variance: Any, bound: Any) -> Tail:
        """|X − E X| ≤ bound: c = bound/3."""
        return cls(as_array(variance), as_array(bound) / 3)

    @classmethod
    def gaussian_form(cls, frobenius: Any, spectral: Any) -> Tail:
        """X = zᵀAz, z normal: v = 2‖A‖², c = 2‖A‖₂ (Laurent and Massart 2000, lemma 1)."""
        return cls(2 * as_array(frobenius) ** 2, 2 * as_array(spectral))

    @classmethod
    def sign_form(cls, frobenius: Any, spectral: Any) -> Tail:
        """X = zᵀBz, z signs, B without its diagonal: v = 4‖B‖², c = 4‖B‖₂ (Cortinovis and Kressner 2021, theorem 2)."""
        return cls(4 * as_array(frobenius) ** 2, 4 * as_array(spectral))

    def half_width(self, num_draws: int, alpha: float) -> Any:
        """Half the width of the two-sided interval of level 1 − α from n draws, in the units of X."""
        L = math.log(2 / alpha)
        drift = self.scale * L / num_draws
        return drift + np.sqrt(drift**2 + 2 * self.variance * L / num_draws)


@dataclass(frozen=True)
class SequentialTest:
    """Equivalence test of E X = target against |E X − target| ≥ margin, doubling the sample at every look.

    At each look an interval of level 1 − α/looks is drawn. `differs` when it excludes the target, `agrees` when it lies
    inside the margin; the last look is large enough that one of them must happen. Hence a true statement is called
    false, and one outside the margin true, each with probability at most α, whatever the number of looks.
    """

    margin: Any
    alpha: float
    tail: Tail
    first: int = 1024
    power: float = 0.999
    max_draws: int = 50_000_000

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Sample sizes of the looks, doubling until the interval is half the margin wide on each side."""
        for count in range(1, 64):
            if self.first * 2 ** (count - 1) > self.max_draws:
                needed = self.first * 2 ** (count - 1)
                raise ValueError(
                    f"margin {self.margin} needs over {needed:,} draws: widen the margin or lower the variance"
                )
            if np.all(
                self.tail.half_width(self.first * 2 ** (count - 1), level_of_look(self.alpha, count))
                <= np.asarray(self.margin) / 2
            ):
                return tuple(self.first * 2**look for look in range(count))
        raise AssertionError("unreachable")

    def half_width(self, num_draws: int) -> Any:
        """Half the width of the interval at a look."""
        return self.tail.half_width(num_draws, level_of_look(self.alpha, len(self.looks)))

    @property
    def detectable(self) -> Any:
        """A |E X − target| that is called different with at least the declared power, whatever the other entries are.

        To miss it, the mean must err by more than d − e at a look that accepts errors up to e; every look that can
        accept is given an equal share of 1 − power. Early looks count, where the margins of all entries leave room:
        they may agree before the last one could differ.
        """
        widths = {n: self.half_width(n) for n in self.looks}
        accepted = {n: np.minimum(self.margin - width, width) for n, width in widths.items()}
        accepted = {n: e for n, e in accepted.items() if np.all(e >= 0)}
        share = 2 * (1 - self.power) / len(accepted)
        return np.max([e + self.tail.half_width(n, share) for n, e in accepted.items()], axis=0)

    def decide(self, error: Any, num_draws: int) -> Status | None:
        """Outcome of a look from |mean − target|, or None to go on."""
        width = self.half_width(num_draws)
        if not np.all(error <= width):  # also where the mean is NaN
            return Status.FAILED
        return Status.PASSED if np.all(error + width <= self.margin) else None

    def run(
        self, draw: Callable[[int, torch.Generator], Any], target: Any, generator: torch.Generator
    ) -> tuple[Status, Any, int, Any]:
        """Status (passed or failed), mean, number of draws and half width of the look that decided."""
        total, done, shape = 0.0, 0, np.shape(as_array(target))
        for n in self.looks:
            drawn = as_array(draw(n - done, generator))
            if drawn.shape != (n - done, *shape):
                raise ValueError(
                    f"{n - done} draws of shape {shape} were asked for, not an array of {drawn.shape}"
                )
            total = total + drawn.sum(axis=0)
            done, mean = n, total / n
            if status := self.decide(np.abs(mean - as_array(target)), n):
                return status, mean, n, self.half_width(n)
        raise AssertionError("the last look decides: half_width <= margin/2")


def statistical(
    name: str,
    draw: Callable[[int, torch.Generator], Any],
    target: Any,
    *,
    margin: Any,
    tail: Tail,
    alpha: float,
    generator: torch.Generator,
    first: int = 1024,
) -> Check:
    """Decides E X = target within a margin by a sequential test.

    `draw(n, generator)` returns n draws, or n rows of them; several targets at once share the level.
    """
    test = SequentialTest(as_array(margin), alpha / as_array(target).size, tail, first)
    status, mean, n, width = test.run(draw, target, generator)
    error = np.ravel(np.abs(mean - as_array(target)))
    worst = int(
        np.argmax(
            np.where(
                np.isfinite(error),
                error / np.ravel(np.broadcast_to(test.margin, error.shape)),
                np.inf,
            )
        )
    )

    def at(values: Any) -> float:
        return float(np.ravel(np.broadcast_to(values, error.shape))[worst])

    detail = (
        f"mean {at(mean):.6g} ± {at(width):.2g} from {n} draws, expected {at(as_array(target)):.6g}"
    )
    return Check(
        name, Kind.STATISTICAL, status, detail, float(error[worst]), at(test.margin), alpha, test.power,
        at(test.detectable), n,
    )  # fmt: skip
