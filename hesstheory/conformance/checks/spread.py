"""Checks of the spread: standard errors and variances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from hesstheory.conformance.contract import TOTAL, IllegalAnswer
from hesstheory.conformance.laws import Predicted
from hesstheory.conformance.measures import SAME, sign_of
from hesstheory.conformance.problems.reference import Reference
from hesstheory.conformance.registry import check, tests_of_blocks, tests_of_quantities
from hesstheory.conformance.runs import LAST_LOOK, Runs, looks
from hesstheory.conformance.session import SPREAD_PROBES, Finding, Session
from hesstheory.evidence.checks import Status
from hesstheory.evidence.intervals import (
    Interval,
    clopper_pearson,
    degrees_of_freedom,
    satterthwaite,
    variance_ratio,
)

_SPREAD = tuple(SPREAD_PROBES)

# Factors that must be found. A standard error off by √2 is the commonest mistake of all.
STDERR_MARGIN = 1.4
# T2 of signs and of normals differ by a factor 2 and more on these problems.
VARIANCE_MARGIN = 1.7
# χ² intervals of variances need more runs than Student's of means.
_SPREAD_LOOKS = looks(256)
# Of exact answers: the errors that are claimed are roots of rounding, √eps = 1.5e-8 of a trace.
_ERROR_OF_EXACT = 1e3 * SAME


def _of_values(values: np.ndarray) -> tuple[float, float]:
    """Sample variance and its degrees of freedom."""
    return float(values.var(ddof=1)), degrees_of_freedom(values)


# --- standard errors ------------------------------------------------------------------------------


@check(*_SPREAD, needs=["check_answers_are_legal"], profile="ci", tests=tests_of_blocks)
def check_stderr_size(session: Session) -> Iterator[Finding]:
    """Is the claimed standard error neither too small nor too wide?"""
    for reference in session.legal(*_SPREAD):
        runs = session.spread(reference)
        try:
            runs.first(2)
        except IllegalAnswer as illegal:  # a method may need more than two probes for an error
            text = f"of {runs.num_probes} probes: {illegal}"
            yield Finding(reference.name, Status.SKIPPED, text)
        else:
            yield _stderr_size(session, reference, runs)


def _stderr_size(session: Session, reference: Reference, runs: Runs) -> Finding:
    """Claimed over true variance of the mean, block by block, until it is decided."""
    if runs.errors(2) is None:
        return Finding(reference.name, Status.SKIPPED, "no standard error is claimed")
    limit = STDERR_MARGIN**2
    for count in _SPREAD_LOOKS:
        ratios = _claimed_over_true(session, reference, runs, count)
        for block, found in ratios.items():
            if found.low > 1 or found.high < 1:
                by = Interval(*(x**0.5 for x in (found.effect, found.low, found.high)))
                text = (
                    f"{block}: the claimed error is {by.effect:.3g} [{by.low:.3g}, {by.high:.3g}] "
                    f"times the true one ({count} runs of {runs.num_probes} probes)"
                )
                return Finding.of(reference.name, text, sign_of(by.effect - 1))
        if all(1 / limit <= found.low and found.high <= limit for found in ratios.values()):
            text = f"within a factor {STDERR_MARGIN} at {count} runs"
            return Finding(reference.name, Status.PASSED, text)
    text = f"not decided within a factor {STDERR_MARGIN} at {LAST_LOOK} runs"
    return Finding(reference.name, Status.INCONCLUSIVE, text)


def _claimed_over_true(
    session: Session, reference: Reference, runs: Runs, count: int
) -> dict[str, Interval]:
    """Intervals of the ratio by block; blocks that are exact, and said to be, are left out."""
    values = runs.values(count)
    ratios = {}
    for block, errors in (runs.errors(count) or {}).items():
        is_exact = values[block].std() < SAME * reference.size
        if is_exact and errors.mean() < _ERROR_OF_EXACT * reference.size:
            continue
        level = session.level(reference, block, len(_SPREAD_LOOKS))
        ratios[block] = variance_ratio(satterthwaite(errors**2), _of_values(values[block]), level)
    return ratios


# ±2 errors of 17 probes cover in 94 % of normal runs. Small blocks are skewed: 85 % is asked.
_LEAST_COVERAGE = 0.85
# An error of half its size covers in 68 %: with 512 runs its interval ends below 80 %.
_COVERAGE_RUNS = 512


@check(
    "unequal",
    needs=["check_answers_are_legal", "check_unbiased", "check_block_mapping"],
    profile="ci",
    tests=tests_of_blocks,
)
def check_stderr_coverage(session: Session) -> Iterator[Finding]:
    """Does value ± 2 standard errors cover the trace nearly as often as promised?"""
    for reference in session.legal("unequal"):
        if session.spread(reference).errors(2) is None:
            yield Finding(reference.name, Status.SKIPPED, "no standard error is claimed")
        else:
            yield _coverage(session, reference, _COVERAGE_RUNS)


def _coverage(session: Session, reference: Reference, count: int) -> Finding:
    """How often the interval covers, by block."""
    runs = session.spread(reference)
    traces = {**reference.traces, TOTAL: reference.total}
    values = runs.values(count)
    for block, errors in (runs.errors(count) or {}).items():
        misses = np.abs(values[block] - traces[block]) - 2 * errors
        hits = int((misses <= SAME * reference.size).sum())
        level = session.level(reference, block)
        low, high = clopper_pearson(hits, count, 1 - level)
        if high < _LEAST_COVERAGE:
            text = (
                f"{block}: ±2 errors cover in {hits} of {count} runs, {low:.1%} to {high:.1%} "
                "instead of about 95 %"
            )
            return Finding.of(reference.name, text, "−")
    return Finding(reference.name, Status.PASSED, f"at {count} runs")


# --- the declared variance ------------------------------------------------------------------------


@check(*_SPREAD, needs=["check_answers_are_legal"], profile="ci", tests=tests_of_blocks)
def check_variance_of_declared_probes(session: Session) -> Iterator[Finding]:
    """Is the variance that of the probe distribution which the estimator declares?"""
    laws = session.laws
    if not laws and not session.declares_exactness:
        text = "no law is declared: give the estimator an attribute `variance_law` or `is_exact`"
        yield Finding("", Status.SKIPPED, text)
        return
    for reference in session.legal(*_SPREAD):
        if session.declares_exactness:
            yield _exact_as_declared(session, reference)
        else:
            yield _declared(session, reference, laws)


# Runs that must all be exact.
_EXACT_RUNS = 16


def _exact_as_declared(session: Session, reference: Reference) -> Finding:
    """Every answer is the certified trace up to rounding."""
    targets = {**reference.traces, TOTAL: reference.total}
    for block, values in session.spread(reference).values(_EXACT_RUNS).items():
        gaps = values - targets[block]
        worst = float(gaps[np.abs(gaps).argmax()])
        if abs(worst) > SAME * reference.size:
            text = f"{block} is off by {worst:.3g} of {targets[block]:.6g}, though `is_exact`"
            return Finding.of(reference.name, text, sign_of(worst))
    return Finding(reference.name, Status.PASSED, "exact, as declared")


def _declared(session: Session, reference: Reference, laws: Mapping[str, Predicted]) -> Finding:
    """Measured over predicted variance, until one law is borne out or none is left."""
    runs = session.spread(reference)
    for count in _SPREAD_LOOKS:
        blocks = [block for block in runs.values(count) if block != TOTAL]
        if not blocks:
            text = "the prediction is for blocks; one total is returned"
            return Finding(reference.name, Status.SKIPPED, text)
        found = {
            name: _measured_over_law(session, reference, runs, count, law)
            for name, law in laws.items()
        }
        possible = [
            name for name, ratios in found.items() if all(r.low <= 1 <= r.high for r in ratios)
        ]
        if not possible:
            return _no_law(reference, blocks, found)
        for name in possible:
            least, most = 1 / VARIANCE_MARGIN, VARIANCE_MARGIN
            if all(r.low >= least and r.high <= most for r in found[name]):
                text = f"as predicted by {name} at {count} runs"
                return Finding(reference.name, Status.PASSED, text)
    text = f"not decided within a factor {VARIANCE_MARGIN} at {LAST_LOOK} runs"
    return Finding(reference.name, Status.INCONCLUSIVE, text)


def _measured_over_law(
    session: Session, reference: Reference, runs: Runs, count: int, law: Predicted
) -> list[Interval]:
    """Intervals of the ratio, block by block."""
    ratios = []
    for block, values in runs.values(count).items():
        if block == TOTAL:
            continue
        variance, freedom = _of_values(values)
        # A true law falsely fails with the level of its own tests: other laws cost nothing.
        level = session.level(reference, block, len(_SPREAD_LOOKS))
        predicted = (law(reference, block), np.inf)
        ratios.append(variance_ratio((variance * runs.num_probes, freedom), predicted, level))
    return ratios


def _no_law(
    reference: Reference, blocks: list[str], found: Mapping[str, list[Interval]]
) -> Finding:
    """The variance is that of no law which is declared."""
    first, *others = found
    ratios = ", ".join(
        f"{block} {ratio.effect:.3g}" for block, ratio in zip(blocks, found[first], strict=True)
    )
    nor = "".join(f"; nor is it that of {name}" for name in others)
    text = f"variance over that of {first}: {ratios}{nor}"
    return Finding.of(reference.name, text, sign_of(found[first][0].effect - 1))


# --- more probes ----------------------------------------------------------------------------------

_FEW = 4
_MANY = {"ci": 65, "full": 1025}  # the last of many chunks of 2ⁿ probes is then a single one
# Of 16 and of 256 by 1/K: deflation spends probes on its sketch and leaves noise that falls slowly.
LEAST_FALL = {"ci": 3.0, "full": 32.0}
# Each run draws 69 or 1029 probes: fewer runs than of other checks have to do.
_FALL_LOOKS = looks(64, 1024)


@check("coupled", needs=["check_answers_are_legal"], profile="ci", tests=tests_of_quantities)
def check_variance_falls(session: Session) -> Iterator[Finding]:
    """Does the variance fall by a factor of three at least when there are sixteen times the probes?"""  # noqa: E501
    yield from (_falls(session, reference) for reference in session.legal("coupled"))


def _falls(session: Session, reference: Reference) -> Finding:
    """Variance of few over that of many probes, until it is decided."""
    num_probes = _MANY[session.profile]
    least = LEAST_FALL[session.profile]
    for count in _FALL_LOOKS:
        ratios = _few_over_many(session, reference, num_probes, count)
        for block, found in ratios.items():
            if found.high < least:
                text = (
                    f"{block}: {num_probes} probes have {1 / found.effect:.3g} of the variance of "
                    f"{_FEW}, not {1 / least:.3g} or less; 1/K would be {_FEW / num_probes:.3g} "
                    f"({count} runs)"
                )
                return Finding.of(reference.name, text, "+")
        if all(found.low > least for found in ratios.values()):
            return Finding(reference.name, Status.PASSED, f"at {count} runs")
    text = f"a fall by {least:g} not decided at {_FALL_LOOKS[-1]} runs"
    return Finding(reference.name, Status.INCONCLUSIVE, text)


def _few_over_many(
    session: Session, reference: Reference, num_probes: int, count: int
) -> dict[str, Interval]:
    """Intervals of the ratio by block; where answers are exact nothing is left that could fall."""
    few = session.runs(reference, _FEW).values(count)
    many = session.runs(reference, num_probes).values(count)
    tiny = SAME * reference.size
    ratios = {}
    for block in few:
        if min(few[block].std(), many[block].std()) < tiny:
            continue
        level = session.level(reference, block, len(_FALL_LOOKS))
        ratios[block] = variance_ratio(_of_values(few[block]), _of_values(many[block]), level)
    return ratios
