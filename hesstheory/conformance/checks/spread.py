"""Checks of the spread: standard errors, variances, and draws that must differ."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

from hesstheory.conformance.contract import TOTAL, IllegalAnswer
from hesstheory.conformance.measures import distinct, is_exact, relative_difference, sign_of
from hesstheory.conformance.problems import Reference
from hesstheory.conformance.registry import check
from hesstheory.conformance.runs import LAST_LOOK, Runs, looks
from hesstheory.conformance.session import (
    FAILED,
    INCONCLUSIVE,
    PASSED,
    SKIPPED,
    SPREAD_PROBES,
    Finding,
    Session,
)
from hesstheory.evidence.intervals import (
    Interval,
    clopper_pearson,
    degrees_of_freedom,
    satterthwaite,
    variance_ratio,
)

_SPREAD = tuple(SPREAD_PROBES)

STDERR_MARGIN = 1.4

VARIANCE_MARGIN = 1.7


def _spread_looks() -> list[int]:
    return [n for n in looks() if n >= 256]


@check(*_SPREAD, needs=["check_answers_are_legal"], profile="ci")
def check_stderr_size(session: Session) -> Iterator[Finding]:
    """Is the claimed standard error neither too small nor too wide?"""
    for reference in session.legal(*_SPREAD):
        runs = session.spread(reference)
        try:
            runs.first(2)
        except IllegalAnswer as illegal:  # a method may need more than two probes for an error
            yield Finding(reference.name, SKIPPED, f"of {runs.num_probes} probes: {illegal}")
        else:
            yield _stderr_size(reference, runs, session.alpha)


def _stderr_size(reference: Reference, runs: Runs, alpha: float) -> Finding:
    if runs.errors(2) is None:
        return Finding(reference.name, SKIPPED, "no standard error is claimed")
    for count in _spread_looks():
        claimed, values = runs.errors(count) or {}, runs.values(count)
        ratios = {}
        for block, errors in claimed.items():
            tiny = 1e-9 * max(abs(reference.traces.get(block, 0.0)), 1e-3)
            if values[block].std() < tiny and errors.mean() < 1e3 * tiny:
                continue
            actual = (float(values[block].var(ddof=1)), degrees_of_freedom(values[block]))
            ratios[block] = variance_ratio(
                satterthwaite(errors**2), actual, alpha / len(_spread_looks())
            )
        for block, found in ratios.items():
            if found.low > 1 or found.high < 1:
                by = Interval(*(x**0.5 for x in (found.effect, found.low, found.high)))
                text = (
                    f"{block}: the claimed error is {by.effect:.3g} [{by.low:.3g}, {by.high:.3g}] times the true one "
                    f"({count} runs of {runs.num_probes} probes)"
                )
                return Finding(reference.name, FAILED, text, sign_of(by.effect - 1))
        limit = STDERR_MARGIN**2
        if all(1 / limit <= found.low and found.high <= limit for found in ratios.values()):
            return Finding(
                reference.name, PASSED, f"within a factor {STDERR_MARGIN} at {count} runs"
            )
    return Finding(
        reference.name,
        INCONCLUSIVE,
        f"not decided within a factor {STDERR_MARGIN} at {LAST_LOOK} runs",
    )


@check(
    "unequal",
    needs=["check_answers_are_legal", "check_unbiased", "check_block_mapping"],
    profile="ci",
)
def check_stderr_coverage(session: Session) -> Iterator[Finding]:
    """Does value ± 2 standard errors cover the trace nearly as often as promised?"""
    for reference in session.legal("unequal"):
        if session.spread(reference).errors(2) is None:
            yield Finding(reference.name, SKIPPED, "no standard error is claimed")
        else:
            yield _coverage(session, reference, 512)


def _coverage(session: Session, reference: Reference, count: int) -> Finding:
    runs, traces = (
        session.spread(reference),
        {**reference.traces, TOTAL: sum(reference.traces.values())},
    )
    claimed, values = runs.errors(count) or {}, runs.values(count)
    for block, errors in claimed.items():
        slack = 1e-9 * max(abs(traces[block]), 1.0)
        hits = int((np.abs(values[block] - traces[block]) <= 2 * errors + slack).sum())
        low, high = clopper_pearson(hits, count, 1 - session.alpha)
        if high < 0.85:
            text = f"{block}: ±2 errors cover in {hits} of {count} runs, {low:.1%} to {high:.1%} instead of about 95 %"
            return Finding(reference.name, FAILED, text, "−")
    return Finding(reference.name, PASSED, f"at {count} runs")


@check(*_SPREAD, needs=["check_answers_are_legal"], profile="ci")
def check_variance_of_declared_probes(session: Session) -> Iterator[Finding]:
    """Is the variance that of the probe distribution which the estimator declares?"""
    probe = (
        session.probe if session.probe is not None else getattr(session.estimator, "probe", None)
    )
    if probe is None or not hasattr(probe, "kurtosis"):
        yield Finding(
            "", SKIPPED, "no distribution is declared: give the estimator an attribute `probe`"
        )
        return
    for reference in session.legal(*_SPREAD):
        yield _declared(session, reference, probe)


def _declared(session: Session, reference: Reference, probe: Any) -> Finding:
    runs = session.spread(reference)
    for count in _spread_looks():
        values = runs.values(count)
        blocks = [block for block in values if block != TOTAL]
        if not blocks:
            return Finding(
                reference.name, SKIPPED, "the prediction is for blocks; one total is returned"
            )
        found: dict[str, list[Interval]] = {}
        for design in ("one product", "one block at a time"):
            measured = [
                (float(values[b].var(ddof=1)) * runs.num_probes, degrees_of_freedom(values[b]))
                for b in blocks
            ]
            predicted = [
                (reference.variance(b, probe, separated=design != "one product"), np.inf)
                for b in blocks
            ]
            found[design] = [
                variance_ratio(top, bottom, session.alpha / len(_spread_looks()))
                for top, bottom in zip(measured, predicted, strict=True)
            ]
        possible = [
            design for design, ratios in found.items() if all(r.low <= 1 <= r.high for r in ratios)
        ]
        if not possible:
            ratios = ", ".join(
                f"{b} {r.effect:.3g}" for b, r in zip(blocks, found["one product"], strict=True)
            )
            text = (
                f"variance over that of {probe} with one product for all blocks: {ratios}; nor is it that of one block "
                "at a time"
            )
            return Finding(
                reference.name, FAILED, text, sign_of(found["one product"][0].effect - 1)
            )
        for design in possible:
            if all(
                r.low >= 1 / VARIANCE_MARGIN and r.high <= VARIANCE_MARGIN for r in found[design]
            ):
                return Finding(reference.name, PASSED, f"as predicted for {design} at {count} runs")
    return Finding(
        reference.name,
        INCONCLUSIVE,
        f"not decided within a factor {VARIANCE_MARGIN} at {LAST_LOOK} runs",
    )


_FEW, _MANY = (
    4,
    {"ci": 65, "full": 1025},
)  # the last of many chunks of 2ⁿ probes is then a single one

# Of 16 and of 256 by 1/K: deflation spends probes on its sketch and leaves noise that falls more slowly.
LEAST_FALL = {"ci": 3.0, "full": 32.0}


@check("coupled", needs=["check_answers_are_legal"], profile="ci")
def check_variance_falls(session: Session) -> Iterator[Finding]:
    """Does the variance fall by a factor of three at least when there are sixteen times the probes?"""
    many, least = _MANY[session.profile], LEAST_FALL[session.profile]
    yield from (_falls(session, reference, many, least) for reference in session.legal("coupled"))


def _falls(session: Session, reference: Reference, num_probes: int, least: float) -> Finding:
    steps = [64, 128, 256, 512, 1024]
    for count in steps:
        few, many = (session.runs(reference, K).values(count) for K in (_FEW, num_probes))
        ratios = {}
        for block in few:
            tiny = 1e-9 * max(abs(sum(reference.traces.values())), 1.0)
            if min(few[block].std(), many[block].std()) < tiny:
                continue  # exact: nothing is left that could fall
            parts = [
                (float(v[block].var(ddof=1)), degrees_of_freedom(v[block])) for v in (few, many)
            ]
            ratios[block] = variance_ratio(parts[0], parts[1], session.alpha / len(steps))
        for block, found in ratios.items():
            if found.high < least:
                text = (
                    f"{block}: {num_probes} probes have {1 / found.effect:.3g} of the variance of {_FEW}, "
                    f"not {1 / least:.3g} or less; 1/K would be {_FEW / num_probes:.3g} ({count} runs)"
                )
                return Finding(reference.name, FAILED, text, "+")
        if all(found.low > least for found in ratios.values()):
            return Finding(reference.name, PASSED, f"at {count} runs")
    return Finding(
        reference.name, INCONCLUSIVE, f"a fall by {least:g} not decided at {steps[-1]} runs"
    )


@check("smooth_mlp", "coupled", needs=["check_answers_are_legal"])
def check_draws_differ(session: Session) -> Iterator[Finding]:
    """Are the draws of one answer independent of each other, and successive answers of one generator too?"""
    for reference in session.legal("smooth_mlp"):
        yield _repeated_rows(session, reference)
        yield _more_probes(session, reference)
    names = ("smooth_mlp", "coupled") if session.is_thorough else ("coupled",)
    yield from (_successive(session, reference) for reference in session.legal(*names))


MANY_PROBES = (
    256,
    512,
    500,
    1000,
)  # multiples of the sizes of chunks and of the limits that people choose


def _repeated_rows(session: Session, reference: Reference) -> Finding:
    """Rows of samples that are equal, of more probes than fit into the chunks that estimators work in.

    Draws from few values, such as coordinates, repeat by chance, but then in two answers as in one.
    """
    first, second = (
        session.ask(reference.problem, session.generator(name), num_probes=MANY_PROBES[-1]).samples
        for name in ("rows", "more")
    )
    if (
        first is None
        or second is None
        or first.ndim != 2
        or (first.std(axis=0) <= 1e-12 * np.abs(first).max()).all()
    ):
        return Finding(reference.name, PASSED, "no samples, or exact ones")
    count, of_first, of_second = len(first), len(distinct(first)), len(distinct(second))
    if len(distinct(np.concatenate([first, second]))) < of_first + of_second:
        return Finding(reference.name, PASSED, "draws from few values")
    text = f"{count - of_first} of {count} rows of samples repeat another: a probe is used again"
    return Finding(
        reference.name, FAILED if of_first < count else PASSED, text if of_first < count else ""
    )


def _more_probes(session: Session, reference: Reference) -> Finding:
    """Answers of equal generator states to ever more probes: equal ones used no more, or the same ones again."""
    answers = {
        K: session.ask(reference.problem, session.generator("rows"), num_probes=K)
        for K in MANY_PROBES
    }
    same = [
        f"{few} and {many}"
        for few, many in pairwise(MANY_PROBES)
        if relative_difference(answers[few].values, answers[many].values) < 1e-12
        and not is_exact(answers[many], reference)
    ]
    text = f"{' probes, '.join(same)} probes give the same answer: the further ones are not drawn, or drawn again"
    return Finding(reference.name, FAILED if same else PASSED, text if same else "")


def _successive(session: Session, reference: Reference) -> Finding:
    """Correlation of successive answers drawn from one generator."""
    generator, count = session.generator("successive"), 64 if session.profile == "smoke" else 128
    totals = np.array(
        [session.ask(reference.problem, generator, num_probes=8).total for _ in range(count)]
    )
    if totals.std() < 1e-9 * max(abs(float(totals.mean())), 1.0):
        return Finding(reference.name, PASSED, "no randomness")
    correlation = float(np.corrcoef(totals[:-1], totals[1:])[0, 1])
    # Ranks are safe against heavy tails: Spearman's coefficient of independent draws is normal with variance 1/(n − 1).
    ranks = float(stats.spearmanr(totals[:-1], totals[1:]).statistic)
    bound = float(stats.norm.isf(session.alpha / 2)) / (count - 2) ** 0.5
    if abs(ranks) > bound:
        text = f"successive answers from one generator have correlation {correlation:+.2f} ({count} calls)"
        return Finding(reference.name, FAILED, text, sign_of(correlation))
    return Finding(reference.name, PASSED, "")
