"""A claim and its mutants, decided."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hesstheory.claims.context import Context
from hesstheory.claims.registry import Claim, sin_of
from hesstheory.evidence.checks import Check, Kind, Status, Verdict, verdict

_DECISIVE = {Status.PASSED, Status.FAILED}


@dataclass(frozen=True)
class MutantOutcome:
    """Whether the checks of a claim noticed a mutant, and which check did."""

    name: str
    sin: str
    rejected: bool
    by: str
    detail: str
    broke: bool = False


@dataclass(frozen=True)
class Outcome:
    """A decided claim, as the ledger keeps it."""

    claim: Claim
    verdict: Verdict
    kind: Kind | None
    detail: str
    checks: tuple[Check, ...]
    mutants: tuple[MutantOutcome, ...]
    seconds: float

    @property
    def as_expected(self) -> bool:
        return self.verdict is self.claim.expected


def decide(claim: Claim, context: Context) -> Outcome:
    """Runs the checks on the subject, then on every mutant, and gives the verdict: UNTESTED where an exception stops
    one of them, which no claim can expect."""
    start, context = time.perf_counter(), dataclasses.replace(context, claim=claim.id)
    checks: list[Check] = []
    try:
        for check in claim.decide(claim.subject, context):
            if not isinstance(check, Check):
                raise TypeError(
                    f"{claim.decide.__name__} yields {check!r}: yield checks, such as exact(...) gives"
                )
            checks.append(check)
        names = [check.name for check in checks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise RuntimeError(f"checks share a name: {', '.join(repeated)}")
        used = sum(check.kind is Kind.STATISTICAL for check in checks)
        if used > claim.statistical:
            raise RuntimeError(
                f"{used} statistical checks, but statistical={claim.statistical} is declared and paid for"
            )
        mutants = tuple(
            _try_mutant(claim, name, mutant, checks, context)
            for name, mutant in claim.mutants.items()
        )
    except (
        Exception
    ) as error:  # a claim that breaks is reported with the others, not instead of them
        detail = f"{type(error).__name__}: {error}"
        return Outcome(
            claim, Verdict.UNTESTED, None, detail, tuple(checks), (), time.perf_counter() - start
        )
    found, survivors = verdict(checks), [mutant.name for mutant in mutants if not mutant.rejected]
    if broken := [f"{mutant.name}: {mutant.detail}" for mutant in mutants if mutant.broke]:
        found, detail = Verdict.UNTESTED, "; ".join(broken)
    elif not mutants:
        found, detail = (
            Verdict.INCONCLUSIVE,
            "no mutant was tried: a check that cannot fail says nothing",
        )
    elif survivors:
        found, detail = Verdict.INCONCLUSIVE, f"the checks do not notice {', '.join(survivors)}"
    else:
        detail = _because(found, checks)
    return Outcome(
        claim,
        found,
        _kind(found, checks),
        detail,
        tuple(checks),
        mutants,
        time.perf_counter() - start,
    )


def _try_mutant(
    claim: Claim, name: str, mutant: Any, truth: Sequence[Check], context: Context
) -> MutantOutcome:
    """Runs the checks on a mutant until one comes out otherwise than for the truth; in the full profile, one of each
    kind."""
    before = {check.name: check.status for check in truth if check.status in _DECISIVE}
    kinds = {check.kind for check in truth if check.name in before}
    noticed: dict[Kind, Check] = {}
    try:
        for check in claim.decide(mutant, context):
            if (
                check.status in _DECISIVE
                and before.get(check.name, check.status) is not check.status
            ):
                noticed.setdefault(check.kind, check)
                if not context.is_thorough or noticed.keys() == kinds:
                    break
    except Exception as error:
        detail = f"the mutant itself broke: {type(error).__name__}: {error}"
        return MutantOutcome(name, sin_of(mutant), False, "", detail, broke=True)
    if not noticed:
        return MutantOutcome(
            name, sin_of(mutant), False, "", "every check came out as for the truth"
        )
    detail = "; ".join(f"{check.status}: {check.detail}" for check in noticed.values())
    return MutantOutcome(
        name, sin_of(mutant), True, "; ".join(check.name for check in noticed.values()), detail
    )


def _because(found: Verdict, checks: Sequence[Check]) -> str:
    failed = [check for check in checks if check.status is Status.FAILED]
    if found is Verdict.REFUTED:
        first = next((check for check in failed if not check.condition), failed[0])
        return f"{first.name}: {first.detail}"
    if found is Verdict.CONDITIONAL:
        return "only where " + "; ".join(dict.fromkeys(check.condition for check in failed))
    if found is Verdict.INCONCLUSIVE:
        open_ones = [check.name for check in checks if check.status is Status.INCONCLUSIVE]
        return f"undecided: {', '.join(open_ones)}" if open_ones else "no check decided anything"
    passed = [check.kind for check in checks if check.status is Status.PASSED]
    counted = (
        ", ".join(f"{passed.count(kind)} {kind}" for kind in Kind if kind in passed)
        + " checks passed"
    )
    return counted + (
        f"; {len(checks) - len(passed)} reported" if len(checks) > len(passed) else ""
    )


def _kind(found: Verdict, checks: Sequence[Check]) -> Kind | None:
    """Weakest kind of check that the verdict needs: all that decided for HOLDS and CONDITIONAL, any failure else."""
    rank = list(Kind).index
    if found in (Verdict.HOLDS, Verdict.CONDITIONAL):
        return max((check.kind for check in checks if check.status in _DECISIVE), key=rank)
    return min(
        (check.kind for check in checks if check.status is Status.FAILED), key=rank, default=None
    )
