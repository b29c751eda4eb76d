"""Checks, their kinds and outcomes, and the verdict that they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

# Records for a figure: a row is a mapping of column to number or text.
Rows: TypeAlias = Sequence[Mapping[str, object]]


class Verdict(StrEnum):
    """What the evidence says of a claim.

    STALE means that code or data have changed since the verdict, UNTESTED that there is none.

    Examples
    --------
    >>> print(Verdict("HOLDS"))
    HOLDS
    """

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
    """Outcome of one check, of a claim or of an estimator.

    `reported` says something without deciding anything. `skipped` did not apply, `blocked` had a
    prerequisite that failed, and `xfailed` failed as was expected with a reason.
    """

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    REPORTED = "reported"
    SKIPPED = "skipped"
    BLOCKED = "blocked"
    XFAILED = "xfailed"


@dataclass(frozen=True)
class Check:
    """One comparison and its outcome.

    Attributes
    ----------
    discrepancy, bound
        What was found and what is allowed, in the units of what is compared.
    alpha
        Probability of a false alarm, of statistical checks.
    detectable, power
        The smallest discrepancy that is found with probability `power`.
    num_draws
        Number of random draws.
    condition
        A failed check with a condition does not refute the claim: it holds only under that
        condition.
    table, rows
        Records for the figure that shows `table`.

    Examples
    --------
    >>> check = holds("positive", 2 > 0, "2 is")
    >>> print(check.kind, check.status)
    exact passed
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


# Outcomes that leave a question open: the check may still refute the claim.
OPEN = frozenset({Status.INCONCLUSIVE, Status.BLOCKED})


def verdict(checks: Sequence[Check]) -> Verdict:
    """Verdict of the checks alone, before the mutants have their say.

    One failed check without a condition refutes. Else one open check leaves the claim inconclusive,
    and a failed one with a condition limits it. What is reported, skipped or expected to fail
    decides nothing.

    Examples
    --------
    >>> passed = holds("positive", 2 > 0, "2 is")
    >>> failed = holds("odd", 2 % 2 == 1, "2 is not")
    >>> print(verdict([passed]), verdict([passed, failed]))
    HOLDS REFUTED
    >>> print(verdict([passed, failed.unless("n is odd")]))
    CONDITIONAL
    """
    statuses = {check.status for check in checks}
    if any(check.status is Status.FAILED and not check.condition for check in checks):
        return Verdict.REFUTED
    # An open check might refute what the others leave standing under a condition.
    if statuses & OPEN:
        return Verdict.INCONCLUSIVE
    if Status.FAILED in statuses:
        return Verdict.CONDITIONAL if Status.PASSED in statuses else Verdict.REFUTED
    return Verdict.HOLDS if Status.PASSED in statuses else Verdict.INCONCLUSIVE


def holds(name: str, statement: bool, detail: str, *, kind: Kind = Kind.EXACT) -> Check:
    """A yes-or-no fact that arithmetic decides: an inequality, a sign, a membership.

    Parameters
    ----------
    name
        Name of the check, of its own within the claim.
    statement
        Whether the fact is true.
    detail
        The numbers behind it.
    kind
        Kind of evidence.

    Returns
    -------
    Check
        Passed or failed.
    """
    return Check(name, kind, Status.PASSED if statement else Status.FAILED, detail)


def empirical(name: str, detail: str, *, statement: bool | None = None) -> Check:
    """The outcome of a study, effect sizes in the detail; without a statement it reports."""
    if statement is None:
        return Check(name, Kind.EMPIRICAL, Status.REPORTED, detail)
    return holds(name, statement, detail, kind=Kind.EMPIRICAL)
