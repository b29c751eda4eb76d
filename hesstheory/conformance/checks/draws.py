"""Checks of the draws: those of one answer, and successive ones, must be independent."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from scipy import stats

from hesstheory.conformance.measures import (
    ROUNDING,
    SAME,
    distinct,
    is_exact,
    relative_difference,
    sign_of,
)
from hesstheory.conformance.problems.reference import Reference
from hesstheory.conformance.registry import check, one_test
from hesstheory.conformance.session import Finding, Session
from hesstheory.evidence.checks import Status


@check("smooth_mlp", "coupled", needs=["check_answers_are_legal"], tests=one_test)
def check_draws_differ(session: Session) -> Iterator[Finding]:
    """Are the draws of one answer independent of each other, and successive answers of one generator too?"""  # noqa: E501
    for reference in session.legal("smooth_mlp"):
        yield _repeated_rows(session, reference)
        yield _more_probes(session, reference)
    names = ("smooth_mlp", "coupled") if session.is_thorough else ("coupled",)
    yield from (_successive(session, reference) for reference in session.legal(*names))


# Multiples of the sizes of chunks, and of the limits, that people choose.
MANY_PROBES = (256, 512, 500, 1000)


def _repeated_rows(session: Session, reference: Reference) -> Finding:
    """Rows of samples that are equal, of more probes than fit into the chunks of estimators.

    Draws from few values, such as coordinates, repeat by chance, but then in two answers as in one.
    """
    first, second = (
        session.ask(reference.problem, session.generator(name), num_probes=MANY_PROBES[-1]).samples
        for name in ("rows", "more")
    )
    if first is None or second is None or first.ndim != 2 or _is_constant(first):
        return Finding(reference.name, Status.PASSED, "no samples, or exact ones")
    count = len(first)
    of_first = len(distinct(first))
    if len(distinct(np.concatenate([first, second]))) < of_first + len(distinct(second)):
        return Finding(reference.name, Status.PASSED, "draws from few values")
    text = f"{count - of_first} of {count} rows of samples repeat another: a probe is used again"
    return Finding.of(reference.name, text if of_first < count else "")


def _is_constant(samples: np.ndarray) -> bool:
    """Whether all rows are one."""
    return bool((samples.std(axis=0) <= ROUNDING * np.abs(samples).max()).all())


def _more_probes(session: Session, reference: Reference) -> Finding:
    """Answers of equal generator states to ever more probes.

    Equal ones used no more probes, or the same ones again.
    """
    answers = {
        K: session.ask(reference.problem, session.generator("rows"), num_probes=K)
        for K in MANY_PROBES
    }
    same = [
        f"{few} and {many}"
        for few, many in pairwise(MANY_PROBES)
        if relative_difference(answers[few].values, answers[many].values) < ROUNDING
        and not is_exact(answers[many], reference)
    ]
    text = (
        f"{' probes, '.join(same)} probes give the same answer: the further ones are not drawn, or "
        "drawn again"
    )
    return Finding.of(reference.name, text if same else "")


# Calls in a row, and probes of each: the noise of eight is that of the draws, not of rounding.
_CALLS = {"smoke": 64, "ci": 128, "full": 128}
_PROBES_OF_CALL = 8


def _successive(session: Session, reference: Reference) -> Finding:
    """Correlation of successive answers drawn from one generator."""
    generator = session.generator("successive")
    count = _CALLS[session.profile]
    totals = np.array(
        [
            session.ask(reference.problem, generator, num_probes=_PROBES_OF_CALL).total
            for _ in range(count)
        ]
    )
    if totals.std() < SAME * reference.size:
        return Finding(reference.name, Status.PASSED, "no randomness")
    correlation = float(np.corrcoef(totals[:-1], totals[1:])[0, 1])
    # Ranks are safe against heavy tails: Spearman's coefficient of n independent pairs is normal
    # with variance 1/(n − 1).
    ranks = float(stats.spearmanr(totals[:-1], totals[1:]).statistic)
    level = session.level(reference, "successive answers")
    bound = float(stats.norm.isf(level / 2)) / (count - 2) ** 0.5
    text = (
        f"successive answers from one generator have correlation {correlation:+.2f} ({count} calls)"
    )
    if abs(ranks) > bound:
        return Finding.of(reference.name, text, sign_of(correlation))
    return Finding.of(reference.name, "")
