"""Statistical checks: a sequential test of equivalence with a declared margin and power."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hesstheory.evidence.budget import level_of_look
from hesstheory.evidence.checks import Check, Kind, Status
from hesstheory.evidence.exact import Array, as_array

if TYPE_CHECKING:
    import torch

# One number, or one for each of several draws at once.
Numbers: TypeAlias = "float | Array"

Draw: TypeAlias = "Callable[[int, torch.Generator], object]"


@dataclass(frozen=True)
class Tail:
    """What is known of a draw X beforehand (Bernstein 1946).

    P(|mean of n draws − E X| ≥ ε) ≤ 2 exp(−nε²/(2(v + cε))), with `variance` v, which bounds the
    variance, and `scale` c. With both known, the level of a test is guaranteed at every n. A normal
    approximation does not do that at 1e-8.

    Parameters
    ----------
    variance
        v in the squared units of X; an array for several draws at once.
    scale
        c in the units of X.

    Examples
    --------
    >>> coin = Tail.bounded(variance=0.25, bound=0.5)
    >>> round(float(coin.half_width(1000, alpha=1e-9)), 3)
    0.107
    """

    variance: Numbers
    scale: Numbers

    @classmethod
    def bounded(cls, variance: object, bound: object) -> Tail:
        """|X − E X| ≤ bound: c = bound/3."""
        return cls(as_array(variance), as_array(bound) / 3)

    @classmethod
    def gaussian_form(cls, frobenius: object, spectral: object) -> Tail:
        """X = zᵀAz, z normal: v = 2‖A‖², c = 2‖A‖₂ (Laurent and Massart 2000, lemma 1)."""
        return cls(2 * as_array(frobenius) ** 2, 2 * as_array(spectral))

    @classmethod
    def sign_form(cls, frobenius: object, spectral: object) -> Tail:
        """X = zᵀBz, z signs, B without its diagonal: v = 4‖B‖², c = 4‖B‖₂.

        Source: Cortinovis and Kressner 2021, theorem 2.
        """
        return cls(4 * as_array(frobenius) ** 2, 4 * as_array(spectral))

    def half_width(self, num_draws: int, alpha: float) -> Numbers:
        """Half the width of the two-sided interval of level 1 − α from n draws, in units of X."""
        L = math.log(2 / alpha)
        # The positive root ε of nε² = 2L(v + cε), at which the bound on the tail is α.
        drift = self.scale * L / num_draws
        width: Numbers = drift + np.sqrt(drift**2 + 2 * self.variance * L / num_draws)
        return width


@dataclass(frozen=True)
class SequentialTest:
    """Equivalence test of E X = target against |E X − target| ≥ margin.

    The sample doubles at every look. A look draws an interval of level 1 − α/looks. The statement
    fails where the interval excludes the target, and passes where it lies inside the margin. The
    last look is so large that one of them must happen. Hence a true statement fails, and one
    outside the margin passes, each with probability at most α, whatever the number of looks.

    Parameters
    ----------
    margin
        In the units of X; an array for several targets at once.
    alpha
        Level of the whole test.
    tail
        What is known of the draws beforehand.
    first
        Number of draws at the first look.
    power
        Probability with which a discrepancy of the size `detectable` is found.
    max_draws
        A test that would need more is refused: at 50 million it takes minutes.

    Examples
    --------
    >>> import numpy as np
    >>> test = SequentialTest(np.float64(0.1), alpha=1e-9, tail=Tail.bounded(0.25, 0.5))
    >>> test.looks
    (1024, 2048, 4096, 8192)
    """

    margin: Numbers
    alpha: float
    tail: Tail
    first: int = 1024
    power: float = 0.999
    max_draws: int = 50_000_000

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Sample sizes, doubling until the interval reaches half the margin on each side."""
        for count in range(1, 64):  # 2⁶³ draws are never reached
            largest = self.first * 2 ** (count - 1)
            if largest > self.max_draws:
                raise ValueError(
                    f"margin {self.margin} needs over {largest:,} draws: "
                    f"widen the margin or lower the variance"
                )
            width = self.tail.half_width(largest, level_of_look(self.alpha, count))
            if np.all(width <= np.asarray(self.margin) / 2):
                return tuple(self.first * 2**look for look in range(count))
        raise AssertionError("unreachable")

    def half_width(self, num_draws: int) -> Numbers:
        """Half the width of the interval at a look."""
        return self.tail.half_width(num_draws, level_of_look(self.alpha, len(self.looks)))

    @property
    def detectable(self) -> Numbers:
        """Smallest |E X − target| that fails with the declared power, whatever the others are.

        To miss d, the mean must err by more than d − e at a look that accepts errors up to e. Every
        look that can accept gets an equal share of 1 − power. Early looks count where the margins
        of all entries leave room: they may agree before the last one could differ.
        """
        widths = {n: self.half_width(n) for n in self.looks}
        accepted = {n: np.minimum(self.margin - width, width) for n, width in widths.items()}
        accepted = {n: e for n, e in accepted.items() if np.all(e >= 0)}
        # Twice, since a miss errs to one side and half_width spends its level on both.
        share = 2 * (1 - self.power) / len(accepted)
        ends = [e + self.tail.half_width(n, share) for n, e in accepted.items()]
        furthest: Numbers = np.max(ends, axis=0)
        return furthest

    def decide(self, error: Array, num_draws: int) -> Status | None:
        """Outcome of a look from |mean − target|, or None to go on."""
        width = self.half_width(num_draws)
        if not np.all(error <= width):  # also where the mean is NaN
            return Status.FAILED
        return Status.PASSED if np.all(error + width <= self.margin) else None

    def run(
        self, draw: Draw, target: object, generator: torch.Generator
    ) -> tuple[Status, Array, int, Numbers]:
        """Draws until a look decides.

        Returns
        -------
        tuple
            Status (passed or failed), mean, number of draws and half width of that look.
        """
        expected = as_array(target)
        total = np.zeros(expected.shape)
        done = 0
        for n in self.looks:
            drawn = as_array(draw(n - done, generator))
            if drawn.shape != (n - done, *expected.shape):
                raise ValueError(
                    f"{n - done} draws of shape {expected.shape} were asked for, "
                    f"not an array of {drawn.shape}"
                )
            total = total + drawn.sum(axis=0)
            done = n
            mean = total / n
            if status := self.decide(np.abs(mean - expected), n):
                return status, mean, n, self.half_width(n)
        raise AssertionError("the last look decides: half_width <= margin/2")


def statistical(
    name: str,
    draw: Draw,
    target: object,
    *,
    margin: object,
    tail: Tail,
    alpha: float,
    generator: torch.Generator,
    first: int = 1024,
) -> Check:
    """Decides E X = target within a margin by a sequential test.

    Parameters
    ----------
    name
        Name of the check, of its own within the claim.
    draw
        `draw(n, generator)` returns n draws, or n rows of them.
    target
        What E X should be: a number, or one for each column. Several share the level equally.
    margin
        In the units of X. A discrepancy of this size passes with probability at most `alpha`.
    tail
        What is known of the draws beforehand.
    alpha
        Probability that a true statement fails.
    generator
        The stream of random numbers.
    first
        Number of draws at the first look.

    Returns
    -------
    Check
        Of kind `statistical`, with the entry that errs most in margins.

    Raises
    ------
    ValueError
        If the margin needs more draws than can be had, or the draws have another shape.

    Examples
    --------
    >>> import torch
    >>> check = statistical(
    ...     "a fair coin",
    ...     lambda n, generator: torch.randint(2, (n,), generator=generator),
    ...     0.5,
    ...     margin=0.1,
    ...     tail=Tail.bounded(variance=0.25, bound=0.5),
    ...     alpha=1e-9,
    ...     generator=torch.Generator().manual_seed(0),
    ... )
    >>> print(check.status, check.num_draws)
    passed 2048
    """
    expected = as_array(target)
    test = SequentialTest(as_array(margin), alpha / expected.size, tail, first)
    status, mean, n, width = test.run(draw, target, generator)
    error = np.ravel(np.abs(mean - expected))
    worst = _worst(error, test.margin)

    def at(values: Numbers) -> float:
        return float(np.ravel(np.broadcast_to(values, error.shape))[worst])

    found = f"mean {at(mean):.6g} ± {at(width):.2g} from {n} draws"
    return Check(
        name,
        Kind.STATISTICAL,
        status,
        f"{found}, expected {at(expected):.6g}",
        discrepancy=float(error[worst]),
        bound=at(test.margin),
        alpha=alpha,
        power=test.power,
        detectable=at(test.detectable),
        num_draws=n,
    )


def _worst(error: Array, margin: Numbers) -> int:
    """Index of the entry that errs most in margins; one that is no number errs most of all."""
    in_margins = error / np.ravel(np.broadcast_to(margin, error.shape))
    return int(np.argmax(np.where(np.isfinite(error), in_margins, np.inf)))
