"""Do they agree? Four kinds of check, strongest first: symbolic, exact, statistical, empirical."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Rows = Sequence[Mapping[str, Any]]


class Verdict(StrEnum):
    """What the evidence says of a claim."""

    HOLDS = "HOLDS"
    CONDITIONAL = "CONDITIONAL"
    REFUTED = "REFUTED"
    INCONCLUSIVE = "INCONCLUSIVE"
    STALE = "STALE"
    UNTESTED = "UNTESTED"


class Kind(StrEnum):
    """Kinds of check, strongest first."""

    SYMBOLIC = "symbolic"
    EXACT = "exact"
    STATISTICAL = "statistical"
    EMPIRICAL = "empirical"


class Status(StrEnum):
    """Outcome of one check; `reported` says something without deciding anything."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    REPORTED = "reported"


@dataclass(frozen=True)
class Check:
    """One comparison and its outcome.

    `discrepancy` and `bound` are in the units of what is compared; `alpha` is the probability of a false alarm,
    `detectable` the smallest discrepancy found with probability `power`. `rows` are records for the figure that shows
    `table`. A failed check with a `condition` does not refute the claim: it holds only under that condition.
    """

    name: str
    kind: Kind
    status: Status
    detail: str = ""
    discrepancy: float | None = None
    bound: float | None = None
    alpha: float | None = None
    power: float | None = None
    detectable: float | None = None
    num_draws: int | None = None
    condition: str = ""
    table: str | None = None
    rows: Rows = field(default=(), repr=False)

    def showing(self, table: str, rows: Rows) -> Check:
        """The same check with records for a figure."""
        return replace(self, table=table, rows=tuple(rows))

    def unless(self, condition: str) -> Check:
        """The same check, whose failure only limits the claim to a condition."""
        return replace(self, condition=condition)


def verdict(checks: Sequence[Check]) -> Verdict:
    """Verdict of the checks alone, before the mutants have their say."""
    statuses = {check.status for check in checks}
    if any(check.status is Status.FAILED and not check.condition for check in checks):
        return Verdict.REFUTED
    if Status.INCONCLUSIVE in statuses:  # it might refute what the others leave standing under a condition
        return Verdict.INCONCLUSIVE
    if Status.FAILED in statuses:
        return Verdict.CONDITIONAL if Status.PASSED in statuses else Verdict.REFUTED
    return Verdict.HOLDS if Status.PASSED in statuses else Verdict.INCONCLUSIVE


# --- symbolic -------------------------------------------------------------------------------------------------------


def symbolic(name: str, left: Any, right: Any) -> Check:
    """Proves left = right for sympy expressions, or for arrays of them, by simplifying every difference to 0.

    A floating-point number in them counts as the binary fraction that it is.
    """
    import sympy

    sides = np.asarray(left, dtype=object), np.asarray(right, dtype=object)
    if sides[0].shape != sides[1].shape or not sides[0].size:
        raise ValueError(f"{name}: the sides have shapes {sides[0].shape} and {sides[1].shape}")
    for a, b in zip(*map(np.ravel, sides), strict=True):
        difference = _with_fractions(sympy.sympify(a)) - _with_fractions(sympy.sympify(b))
        if (difference := sympy.expand(difference)) == 0:
            continue
        if point := _where_not_zero(difference):
            return Check(name, Kind.SYMBOLIC, Status.FAILED, f"the sides differ {point}")
        # Bringing a rational function to one fraction decides it, at a tenth of what the search of simplify costs.
        if (rest := sympy.cancel(difference)) != 0 and (rest := sympy.simplify(rest)) != 0:
            return Check(name, Kind.SYMBOLIC, Status.FAILED, f"the sides differ by {rest}")
    return Check(name, Kind.SYMBOLIC, Status.PASSED, "the difference simplifies to 0")


def _with_fractions(expression: Any) -> Any:
    import sympy

    return expression.xreplace({number: sympy.Rational(number) for number in expression.atoms(sympy.Float)})


def _where_not_zero(difference: Any) -> str:
    """A point at which an expression is a rational number other than 0, or nothing: squared primes have roots, too."""
    import sympy

    point = {x: sympy.Integer(sympy.prime(10 + n)) ** 2 for n, x in enumerate(sorted(difference.free_symbols, key=str))}
    value = difference.xreplace(point)
    if not value.is_Rational or value == 0:
        return ""
    shown = value if len(str(value)) <= 20 else f"{float(value):.6g}"
    return f"by {shown} at " + ", ".join(f"{x} = {square}" for x, square in point.items())


# --- exact ----------------------------------------------------------------------------------------------------------


def exact(name: str, left: Any, right: Any, *, magnitude: Any = None, terms: int = 1, detail: str = "") -> Check:
    """Compares float64 results of two routes up to rounding: |left − right| ≤ terms · eps · magnitude, entry by entry.

    `terms` counts the roundings that an entry goes through; `magnitude` bounds the sum of absolute values that it is
    made of (default: the largest |right|), as in Higham (2002), section 4.2.
    """
    a, b = _array(left), _array(right)
    if a.shape != b.shape:
        raise ValueError(f"{name}: the two routes have shapes {a.shape} and {b.shape}")
    scale = np.max(np.abs(b), initial=0.0) if magnitude is None else _array(magnitude)
    bound = np.broadcast_to(terms * np.finfo(np.float64).eps * scale, a.shape)
    if not a.size:
        raise ValueError(f"{name}: nothing to compare")
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        error = np.abs(a - b)
        excess = np.where(np.isfinite(bound), error - bound, np.nan)
    worst = int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))
    passed = bool(np.all(excess <= 0))
    shown = f"{np.ravel(a)[worst]:.17g} against {np.ravel(b)[worst]:.17g}" + (f"; {detail}" if detail else "")
    status = Status.PASSED if passed else Status.FAILED
    return Check(name, Kind.EXACT, status, shown, float(np.ravel(error)[worst]), float(np.ravel(bound)[worst]))


def holds(name: str, statement: bool, detail: str, *, kind: Kind = Kind.EXACT) -> Check:
    """A yes-or-no fact that arithmetic decides: an inequality, a sign, a membership; the detail gives the numbers."""
    return Check(name, kind, Status.PASSED if statement else Status.FAILED, detail)


def _array(value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)


# --- statistical ----------------------------------------------------------------------------------------------------


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
        return cls(_array(variance), _array(bound) / 3)

    @classmethod
    def gaussian_form(cls, frobenius: Any, spectral: Any) -> Tail:
        """X = zᵀAz, z normal: v = 2‖A‖², c = 2‖A‖₂ (Laurent and Massart 2000, lemma 1)."""
        return cls(2 * _array(frobenius) ** 2, 2 * _array(spectral))

    @classmethod
    def sign_form(cls, frobenius: Any, spectral: Any) -> Tail:
        """X = zᵀBz, z signs, B without its diagonal: v = 4‖B‖², c = 4‖B‖₂ (Cortinovis and Kressner 2021, theorem 2)."""
        return cls(4 * _array(frobenius) ** 2, 4 * _array(spectral))

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
                self.tail.half_width(self.first * 2 ** (count - 1), self.alpha / count) <= np.asarray(self.margin) / 2
            ):
                return tuple(self.first * 2**look for look in range(count))
        raise AssertionError("unreachable")

    def half_width(self, num_draws: int) -> Any:
        """Half the width of the interval at a look."""
        return self.tail.half_width(num_draws, self.alpha / len(self.looks))

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
        total, done, shape = 0.0, 0, np.shape(_array(target))
        for n in self.looks:
            drawn = _array(draw(n - done, generator))
            if drawn.shape != (n - done, *shape):
                raise ValueError(f"{n - done} draws of shape {shape} were asked for, not an array of {drawn.shape}")
            total = total + drawn.sum(axis=0)
            done, mean = n, total / n
            if status := self.decide(np.abs(mean - _array(target)), n):
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
    test = SequentialTest(_array(margin), alpha / _array(target).size, tail, first)
    status, mean, n, width = test.run(draw, target, generator)
    error = np.ravel(np.abs(mean - _array(target)))
    worst = int(
        np.argmax(np.where(np.isfinite(error), error / np.ravel(np.broadcast_to(test.margin, error.shape)), np.inf))
    )

    def at(values: Any) -> float:
        return float(np.ravel(np.broadcast_to(values, error.shape))[worst])

    detail = f"mean {at(mean):.6g} ± {at(width):.2g} from {n} draws, expected {at(_array(target)):.6g}"
    return Check(
        name, Kind.STATISTICAL, status, detail, float(error[worst]), at(test.margin), alpha, test.power,
        at(test.detectable), n,
    )  # fmt: skip


# --- empirical ------------------------------------------------------------------------------------------------------


def empirical(name: str, detail: str, *, statement: bool | None = None) -> Check:
    """A study's outcome with its effect sizes in the detail; without a statement it only reports."""
    status = Status.REPORTED if statement is None else Status.PASSED if statement else Status.FAILED
    return Check(name, Kind.EMPIRICAL, status, detail)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a probability (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


# --- budget ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """The probability that a whole run goes falsely red, shared equally by its statistical tests.

    A test of the subject may falsely fail, a test of a mutant falsely pass: both are paid for.
    """

    num_tests: int
    suite_alpha: float = 1e-6

    @property
    def alpha(self) -> float:
        """Level of one test."""
        return self.suite_alpha / max(self.num_tests, 1)

    @classmethod
    def of(cls, tests_per_claim: Iterable[tuple[int, int]], suite_alpha: float = 1e-6) -> Budget:
        """From pairs (statistical tests, mutants) of the registered claims."""
        return cls(sum(tests * (1 + mutants) for tests, mutants in tests_per_claim), suite_alpha)
