"""Claims E1 and E2: the level and the power of the sequential test that decides every statistical
check."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special, stats

from hesstheory.claims.context import Context
from hesstheory.claims.registry import claim
from hesstheory.evidence.checks import Check, Kind, Status, empirical, holds
from hesstheory.evidence.intervals import clopper_pearson
from hesstheory.evidence.sequential import SequentialTest, Tail
from hesstheory_validation.sequential_test import wrong


# --- draws whose means have a known distribution --------------------------------------------------
@dataclass(frozen=True)
class Draws:
    """A distribution of draws and what a test may know of it;

    `below(n, x)` is P(mean of n draws < x), `above` > x.
    """

    name: str
    mean: float
    tail: Tail
    below: Callable[[int, float], float]
    above: Callable[[int, float], float]

    @property
    def deviation(self) -> float:
        return float(self.tail.variance) ** 0.5

    def outside(self, n: int, low: float, high: float) -> float:
        """P(mean of n draws lies outside [low, high])."""
        return float(self.below(n, low) + self.above(n, high))

    def inside(self, n: int, low: float, high: float) -> float:
        """P(mean of n draws lies in [low, high]); of two ways the one that does not cancel."""
        if low > self.mean:
            return max(float(self.above(n, low) - self.above(n, high)), 0.0)
        return max(float(self.below(n, high) - self.below(n, low)), 0.0)


RARE = 1e-3

NORMAL = Draws(
    "normal",
    0.0,
    Tail(np.float64(1), np.float64(0)),
    lambda n, x: special.ndtr(x * n**0.5),
    lambda n, x: special.ndtr(-x * n**0.5),
)

CHAOS = Draws(
    "χ²₁ = z²",
    1.0,
    Tail.gaussian_form(1, 1),
    lambda n, x: special.gammainc(n / 2, max(n * x / 2, 0.0)),
    lambda n, x: special.gammaincc(n / 2, max(n * x / 2, 0.0)),
)

EXPONENTIAL = Draws(
    "exponential = (z₁² + z₂²)/2",
    1.0,
    Tail.gaussian_form(0.5**0.5, 0.5),
    lambda n, x: special.gammainc(n, max(n * x, 0.0)),
    lambda n, x: special.gammaincc(n, max(n * x, 0.0)),
)

EVENTS = Draws(
    "one in a thousand",
    RARE,
    Tail.bounded(RARE * (1 - RARE), 1 - RARE),
    lambda n, x: stats.binom.cdf(math.ceil(n * x) - 1, n, RARE),
    lambda n, x: stats.binom.sf(math.floor(n * x), n, RARE),
)

CLOSED_FORM = (NORMAL, CHAOS, EXPONENTIAL, EVENTS)

LEVELS = (1e-9, 1e-6, 0.05)

ROUNDING = 1 + 2**-30  # the distribution functions of scipy are right to about ten digits


def designs(test: type[SequentialTest], draws: Draws, alpha: float) -> Iterator[SequentialTest]:
    """Tests with few and with many looks; margins in standard deviations."""
    for first, margin in ((10, 0.5), (1024, 0.1), (1, 0.003)):
        yield test(np.float64(margin * draws.deviation), alpha, draws.tail, first, max_draws=2**40)


def false_alarm_bound(test: SequentialTest, draws: Draws) -> float:
    """Σ over the looks of P(|mean − E X| > half width): at least the probability of a false
    alarm."""
    widths = ((n, float(test.half_width(n))) for n in test.looks)
    return sum(draws.outside(n, draws.mean - width, draws.mean + width) for n, width in widths)


# --- draws whose totals are whole numbers: the test itself, followed exactly ----------------------
@dataclass(frozen=True)
class Counts:
    """Draws in {0, 1, 2, ...}: `total(n, k)` is P(sum of n of them = k), `ones`: none exceeds 1."""

    name: str
    mean: float
    tail: Tail
    total: Callable[[int, np.ndarray], np.ndarray]
    ones: bool = True

    def probabilities(self, n: int) -> np.ndarray:
        """P(total = 0, 1, ...), up to n or to where a Poisson total has nothing left in float64."""
        return np.asarray(self.total(n, np.arange(n + 1 if self.ones else 20 * n + 400)))

    def realised(self, n: int, total: int) -> np.ndarray:
        """n draws of a given total."""
        draws = np.zeros(n)
        draws[: total if self.ones else 1] = 1.0 if self.ones else total
        return draws


def coin(name: str, rate: float) -> Counts:
    """Events of one probability."""
    tail = Tail.bounded(rate * (1 - rate), max(rate, 1 - rate))
    return Counts(name, rate, tail, lambda n, k: stats.binom.pmf(k, n, rate))


# E e^{λ(X−1)} = exp(e^λ − 1 − λ) ≤ exp(λ²/2/(1 − λ/3)): a Bernstein tail although X is not bounded.
POISSON = Counts(
    "Poisson",
    1.0,
    Tail(np.float64(1), np.float64(1 / 3)),
    lambda n, k: stats.poisson.pmf(k, n),
    ones=False,
)

COUNTS = (coin("fair coin", 0.5), coin("one in twenty", 0.05), POISSON)


class _NeedsMore(Exception):
    """The test asks for draws beyond the given ones."""


def outcome_after(
    test: SequentialTest, counts: Counts, target: float, totals: list[int]
) -> Status | None:
    """What the test says when its looks bring the given totals, or None where it goes on."""
    left = iter(totals)

    def draw(n: int, generator: torch.Generator) -> np.ndarray:
        total = next(left, None)
        if total is None:
            raise _NeedsMore
        return counts.realised(n, total)

    try:
        return Status(test.run(draw, target, torch.Generator())[0])
    except _NeedsMore:
        return None


def outcome_probabilities(test: SequentialTest, counts: Counts, bias: float) -> Counter[Status]:
    """P(passed) and P(failed) when E X = target + bias, exactly.

    The test sees the draws through their totals, so the total is a Markov chain: every total that
    goes on is followed from one history that leads to it.
    """
    found: Counter[Status] = Counter()
    alive = np.ones(1)
    histories = {0: []}
    done = 0
    for n in test.looks:
        step = counts.probabilities(n - done)
        before = alive
        done = n
        alive = np.convolve(before, step)
        histories = _extended(before, step, histories)
        for total in np.flatnonzero(alive):
            history = histories.get(int(total))
            status = outcome_after(test, counts, counts.mean - bias, history) if history else None
            if history and status is None:
                continue
            if status is not None:
                found[status] += float(alive[total])
            alive[total] = 0.0
    return found


def _extended(
    before: np.ndarray, step: np.ndarray, histories: dict[int, list[int]]
) -> dict[int, list[int]]:
    """For every total that the next look can show with more than 1e-25, the likeliest history that
    leads to it."""
    best: dict[int, tuple[float, int]] = {}
    for start in histories:
        if before[start] > 0:
            for increment in np.flatnonzero(before[start] * step > 1e-25):
                total = start + int(increment)
                p = before[start] * step[increment]
                best[total] = max(best.get(total, (0.0, 0)), (p, int(increment)))
    return {
        total: [*histories[total - increment], increment] for total, (_, increment) in best.items()
    }


def small_designs(test: type[SequentialTest], counts: Counts) -> Iterator[SequentialTest]:
    """Tests of few draws, at levels at which the normal approximation is bad and at which it is
    not."""
    deviation = float(counts.tail.variance) ** 0.5
    for alpha, margin in ((0.05, 0.75), (1e-6, 1.5)):
        yield test(np.float64(margin * deviation), alpha, counts.tail, 10)


# --- E1: the level --------------------------------------------------------------------------------
@claim(
    "E1",
    "A statistical check calls a true statement false with probability at most its level α. That "
    "holds at every sample size, for any number of looks, and for skewed draws.",
    formula=r"\sum_{j=1}^{J}\Pr\bigl(|\bar X_{n_j}-\mathbb{E}X|>w_{n_j}\bigr)\le\alpha",
    reason="Bernstein's inequality at every look, at level α/J",
    subject=SequentialTest,
    mutants=[
        wrong.ZTestFirstLook,
        wrong.NoSpendingForLooks,
        wrong.SubGaussianTail,
        wrong.StudentErrorBar,
    ],
)
def false_alarms_stay_below_the_level(
    test: type[SequentialTest], context: Context
) -> Iterator[Check]:
    """Sums over the looks, and small tests followed exactly."""
    for draws in CLOSED_FORM:
        for alpha in LEVELS:
            bounds = [false_alarm_bound(design, draws) for design in designs(test, draws, alpha)]
            yield holds(
                f"{draws.name}: looks together, α = {alpha:g}",
                max(bounds) <= alpha * ROUNDING,
                f"at most {max(bounds) / alpha:.3g} α",
            )
    for counts in COUNTS if context.profile != "smoke" else COUNTS[1:2]:
        for design in small_designs(test, counts):
            p = outcome_probabilities(design, counts, 0.0)
            yield holds(
                f"{counts.name}: the test followed exactly, α = {design.alpha:g}",
                p[Status.FAILED] <= design.alpha,
                f"P(false alarm) = {p[Status.FAILED]:.3g}, P(agrees) = {p[Status.PASSED]:.9g}, "
                f"looks {design.looks}",
            )
    yield _normal_approximation()


def _normal_approximation() -> Check:
    """What the quantile of a normal really gives at 1e-6, where it would be used."""
    levels = {}
    for draws in (CHAOS, EXPONENTIAL, EVENTS):
        for n in (10, 1000):
            width = stats.norm.isf(5e-7) * draws.deviation / n**0.5
            levels[draws.name, n] = draws.outside(n, draws.mean - width, draws.mean + width)
    detail = ", ".join(f"{name} n = {n}: {level:.2g}" for (name, n), level in levels.items())
    return holds(
        "a normal quantile of nominal 1e-6 is not one", min(levels.values()) > 1e-6, detail
    )


# --- E1.a: the level by simulation ----------------------------------------------------------------
Sampler = Callable[[int, torch.Generator], np.ndarray]


@dataclass(frozen=True)
class Simulated:
    """Draws f(z) of a normal z cut to a range, their mean and the tail that their range gives."""

    name: str
    mean: float
    tail: Tail
    sample: Sampler


def _of_quantiles(name: str, quantile: Callable[[np.ndarray], np.ndarray]) -> Simulated:
    """Draws quantile(u), u one of the M mid-points of (0, 1): all moments are plain means, and it
    is bounded."""
    values = quantile((np.arange(4096) + 0.5) / 4096)
    mean = values.mean()
    largest = np.abs(values - values.mean()).max()

    def sample(n: int, generator: torch.Generator) -> np.ndarray:
        return values[torch.randint(len(values), (n,), generator=generator).numpy()]

    return Simulated(name, float(mean), Tail.bounded(values.var(), largest), sample)


def simulated_draws() -> tuple[Simulated, ...]:
    """Skewed and heavy-tailed draws, cut at their extreme quantiles."""
    return (
        _of_quantiles("log-normal", lambda u: np.exp(1.5 * stats.norm.ppf(u))),
        _of_quantiles("Student t, 2 degrees", lambda u: stats.t.ppf(u, 2)),
        _of_quantiles("one in 256", lambda u: (u < 1 / 256).astype(float)),
    )


NUM_RUNS = 1000


def rate_at_most(name: str, hits: int, runs: int, bound: float, alpha: float) -> Check:
    """Decides that a probability is at most `bound` from the exact interval of level 1 − α of its
    frequency."""
    low, high = clopper_pearson(hits, runs, 1 - alpha)
    status = (
        Status.PASSED if high <= bound else Status.FAILED if low > bound else Status.INCONCLUSIVE
    )
    # The lower end grows with the number of hits, so the first above the bound is found by halving.
    fewest = bisect_right(
        range(runs + 1), bound, key=lambda hits: clopper_pearson(hits, runs, 1 - alpha)[0]
    )
    return Check(
        name,
        Kind.STATISTICAL,
        status,
        f"{hits} of {runs} runs, [{low:.3g}, {high:.3g}] against {bound:g}",
        max(hits / runs - bound, 0.0),
        bound,
        alpha,
        0.999,
        float(stats.beta.ppf(0.999, fewest, runs - fewest + 1)) - bound,
        runs,
    )


@claim(
    "E1.a",
    "The level holds in simulation for skewed and heavy-tailed draws.",
    formula=r"\Pr(\text{differs}\mid\mathbb{E}X=\text{target})\le\alpha",
    reason="E1; draws cut to a known range have Bernstein tails",
    rests_on=["E1"],
    subject=SequentialTest,
    mutants=[wrong.ZTestAtEveryLook, wrong.PilotForTarget, wrong.StudentErrorBar],
    statistical=3,
    profile="ci",
    seconds=3,
)
def level_in_simulation(test: type[SequentialTest], context: Context) -> Iterator[Check]:
    """False alarms among repeated runs on skewed draws."""
    for draws in simulated_draws():
        generator = context.generator(draws.name)
        design = test(np.float64(0.5 * draws.tail.variance**0.5), 0.05, draws.tail, 8)
        outcomes = [design.run(draws.sample, draws.mean, generator)[0] for _ in range(NUM_RUNS)]
        yield rate_at_most(
            f"{draws.name}: false alarms at α = 0.05",
            outcomes.count(Status.FAILED),
            NUM_RUNS,
            0.05,
            context.alpha,
        )


# --- E2: power ------------------------------------------------------------------------------------
def miss_bound(test: SequentialTest, draws: Draws, bias: float) -> float:
    """Σ over the looks of P(the look accepts E X = target although it is target + bias)."""
    *early, last = test.looks
    accepted = {n: float(test.margin - test.half_width(n)) for n in early} | {
        last: float(test.half_width(last))
    }
    target = draws.mean - bias
    return sum(
        draws.inside(n, target - error, target + error)
        for n, error in accepted.items()
        if error >= 0
    )


@claim(
    "E2",
    "A statistical check calls a discrepancy of the size that it declares detectable false with "
    "probability at least 0.999. It agrees with a true statement with probability at least 1 − "
    "α. It agrees with one just outside the margin with probability at most α.",
    formula=r"\Pr(\text{differs}\mid|\mathbb{E}X-\text{target}|=d)\ge 0.999",
    reason="Bernstein's inequality at every look, early ones included",
    rests_on=["E1"],
    subject=SequentialTest,
    mutants=[
        wrong.DetectableAtTheLastLook,
        wrong.NotRejectedMeansEqual,
        wrong.MeanInsideMarginMeansEqual,
        wrong.MarginDoubled,
    ],
    seconds=4,
)
def power_is_as_declared(test: type[SequentialTest], context: Context) -> Iterator[Check]:
    """Sums over the looks, and small tests followed exactly."""
    for draws in CLOSED_FORM:
        for alpha in LEVELS:
            misses = [
                miss_bound(design, draws, sign * float(design.detectable))
                for design in designs(test, draws, alpha)
                for sign in (-1, 1)
            ]
            yield holds(
                f"{draws.name}: detectable, α = {alpha:g}",
                max(misses) <= 1 - SequentialTest.power,
                f"missed with at most {max(misses):.3g}",
            )
    chosen = COUNTS if context.profile != "smoke" else COUNTS[1:2]
    for counts in chosen:
        for design in small_designs(test, counts):
            yield from _followed(design, counts)
    if context.profile != "smoke":
        yield _power_curves(test, context)


def _followed(design: SequentialTest, counts: Counts) -> Iterator[Check]:
    """The test itself, followed exactly at no bias, at the detectable one and just outside the
    margin."""
    name = f"{counts.name}, α = {design.alpha:g}"
    just_outside = float(design.margin) * (1 + 1e-9)
    agrees = outcome_probabilities(design, counts, 0.0)[Status.PASSED]
    yield holds(f"{name}: agrees when true", agrees >= 1 - design.alpha, f"with {agrees:.9g}")
    found = [
        outcome_probabilities(design, counts, s * float(design.detectable))[Status.FAILED]
        for s in (-1, 1)
    ]
    yield holds(
        f"{name}: finds the detectable bias", min(found) >= design.power, f"with {min(found):.9g}"
    )
    wrong = [
        outcome_probabilities(design, counts, s * just_outside)[Status.PASSED] for s in (-1, 1)
    ]
    yield holds(
        f"{name}: a bias just outside the margin",
        max(wrong) <= design.alpha,
        f"agrees with {max(wrong):.3g}",
    )


EFFECTS = (0.0, 0.25, 0.5, 0.6, 0.75, 1.0, 1.5)

NUM_REPEATS = 300


def _power_curves(test: type[SequentialTest], context: Context) -> Check:
    """Simulated rejection rates beside the exact ones."""
    rows = []
    for counts in COUNTS:
        design = next(small_designs(test, counts))
        generator = context.generator(counts.name)
        for effect in EFFECTS:
            bias = effect * float(design.margin)
            runs = np.column_stack(
                [_totals(counts, n, generator) for n in np.diff(design.looks, prepend=0)]
            )
            outcomes = [
                outcome_after(design, counts, counts.mean - bias, totals)
                for totals in runs.tolist()
            ]
            hits = outcomes.count(Status.FAILED)
            low, high = clopper_pearson(hits, NUM_REPEATS)
            exact = min(
                outcome_probabilities(design, counts, bias)[Status.FAILED], 1.0
            )  # a sum that rounds above 1
            rows.append(
                {
                    "draws": counts.name,
                    "effect": effect,
                    "rejection_rate": hits / NUM_REPEATS,
                    "low": low,
                    "high": high,
                    "theory": exact,
                }
            )
    covered = sum(row["low"] <= row["theory"] <= row["high"] for row in rows)
    detail = (
        f"{covered} of {len(rows)} 95 % intervals of simulated rejection rates contain the "
        "exact probability"
    )
    return empirical("power curves", detail).showing("power", rows)


def _totals(counts: Counts, n: int, generator: torch.Generator) -> np.ndarray:
    """Totals of n draws, one for every repeated run, by inversion."""
    uniform = torch.rand(NUM_REPEATS, generator=generator, dtype=torch.float64).numpy()
    return np.searchsorted(np.cumsum(counts.probabilities(int(n))), uniform)
