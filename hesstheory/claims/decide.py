"""A claim and its mutants, decided."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hesstheory.claims.context import Context
from hesstheory.claims.registry import Claim, Subject, sin_of
from hesstheory.evidence.checks import OPEN, Check, Kind, Status, Verdict, verdict

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
    """A decided claim, as the ledger keeps it; `seconds` is wall time."""

    claim: Claim
    verdict: Verdict
    kind: Kind | None
    detail: str
    checks: tuple[Check, ...]
    mutants: tuple[MutantOutcome, ...]
    seconds: float

    @property
    def as_expected(self) -> bool:
        """True where the verdict is the one that the claim expects."""
        return self.verdict is self.claim.expected


def decide(claim: Claim, context: Context) -> Outcome:
    """Runs the checks on the subject and on every mutant, and gives the verdict.

    Parameters
    ----------
    claim
        The claim, which need not be registered.
    context
        Profile, seed and level. The streams of the claim are named after it.

    Returns
    -------
    Outcome
        With the verdict UNTESTED, which no claim can expect, where the claim is blocked or an
        exception stops the checks.
    """
    if claim.blocked:
        return Outcome(claim, Verdict.UNTESTED, None, claim.blocked, (), (), 0.0)
    start = time.perf_counter()
    context = dataclasses.replace(context, claim=claim.id)
    checks: list[Check] = []
    mutants: tuple[MutantOutcome, ...] = ()
    kind: Kind | None = None
    try:
        for check in claim.decide(claim.subject, context):
            checks.append(_as_check(check, claim))
        _check_account(claim, checks)
        tried = claim.mutants.items()
        mutants = tuple(_try_mutant(claim, *mutant, checks, context) for mutant in tried)
        found, detail = _with_mutants(checks, mutants)
        kind = _kind(found, checks)
    except Exception as error:
        # A claim that breaks is reported with the others, not instead of them.
        found = Verdict.UNTESTED
        detail = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    return Outcome(claim, found, kind, detail, tuple(checks), mutants, seconds)


def _as_check(yielded: object, claim: Claim) -> Check:
    """Refuses what is no check."""
    if not isinstance(yielded, Check):
        name = claim.decide.__name__
        raise TypeError(f"{name} yields {yielded!r}: yield checks, such as exact(...) gives")
    return yielded


def _check_account(claim: Claim, checks: Sequence[Check]) -> None:
    """Refuses checks of one name, and more statistical checks than are paid for."""
    names = [check.name for check in checks]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RuntimeError(f"checks share a name: {', '.join(repeated)}")
    used = sum(check.kind is Kind.STATISTICAL for check in checks)
    if used > claim.statistical:
        raise RuntimeError(
            f"{used} statistical checks, "
            f"but statistical={claim.statistical} is declared and paid for"
        )


def _with_mutants(checks: Sequence[Check], mutants: Sequence[MutantOutcome]) -> tuple[Verdict, str]:
    """Verdict and detail: the checks decide only where they notice every mutant."""
    if broken := [f"{mutant.name}: {mutant.detail}" for mutant in mutants if mutant.broke]:
        return Verdict.UNTESTED, "; ".join(broken)
    if not mutants:
        detail = "no mutant was tried: a check that cannot fail says nothing"
        return Verdict.INCONCLUSIVE, detail
    if survivors := [mutant.name for mutant in mutants if not mutant.rejected]:
        return Verdict.INCONCLUSIVE, f"the checks do not notice {', '.join(survivors)}"
    found = verdict(checks)
    return found, _because(found, checks)


def _try_mutant(
    claim: Claim, name: str, mutant: Subject, truth: Sequence[Check], context: Context
) -> MutantOutcome:
    """Runs the checks on a mutant until enough of them come out otherwise than for the truth."""
    sin = sin_of(mutant)
    noticed: dict[Kind, Check] = {}
    try:
        for check in _differing(claim, mutant, truth, context):
            noticed.setdefault(check.kind, check)
            # One is enough; the full profile shows that each kind of check can reject.
            if not context.is_thorough or noticed.keys() == _deciding_kinds(truth):
                break
    except Exception as error:
        detail = f"the mutant itself broke: {type(error).__name__}: {error}"
        return MutantOutcome(name, sin, False, "", detail, broke=True)
    if not noticed:
        return MutantOutcome(name, sin, False, "", "every check came out as for the truth")
    by = "; ".join(check.name for check in noticed.values())
    detail = "; ".join(f"{check.status}: {check.detail}" for check in noticed.values())
    return MutantOutcome(name, sin, True, by, detail)


def _differing(
    claim: Claim, mutant: Subject, truth: Sequence[Check], context: Context
) -> Iterator[Check]:
    """Decided checks of the mutant whose outcome is not that of the same check of the truth."""
    before = {check.name: check.status for check in truth if check.status in _DECISIVE}
    for check in claim.decide(mutant, context):
        if check.status in _DECISIVE and before.get(check.name, check.status) is not check.status:
            yield check


def _deciding_kinds(checks: Sequence[Check]) -> set[Kind]:
    return {check.kind for check in checks if check.status in _DECISIVE}


def _because(found: Verdict, checks: Sequence[Check]) -> str:
    """The detail of a verdict: the first refutation, the conditions, what is open, or what
    passed."""
    failed = [check for check in checks if check.status is Status.FAILED]
    if found is Verdict.REFUTED:
        first = next((check for check in failed if not check.condition), failed[0])
        return f"{first.name}: {first.detail}"
    if found is Verdict.CONDITIONAL:
        return "only where " + "; ".join(dict.fromkeys(check.condition for check in failed))
    if found is Verdict.INCONCLUSIVE:
        open_ones = [check.name for check in checks if check.status in OPEN]
        return f"undecided: {', '.join(open_ones)}" if open_ones else "no check decided anything"
    return _counted(checks)


def _counted(checks: Sequence[Check]) -> str:
    """How many checks of each kind passed, and how many only report."""
    passed = [check.kind for check in checks if check.status is Status.PASSED]
    kinds = [f"{passed.count(kind)} {kind}" for kind in Kind if kind in passed]
    others = len(checks) - len(passed)
    return f"{', '.join(kinds)} checks passed" + (f"; {others} reported" if others else "")


def _kind(found: Verdict, checks: Sequence[Check]) -> Kind | None:
    """Weakest kind of check that the verdict needs: all that decided for HOLDS and CONDITIONAL, any
    failure else."""
    rank = list(Kind).index
    if found in (Verdict.HOLDS, Verdict.CONDITIONAL):
        return max(_deciding_kinds(checks), key=rank)
    failures = (check.kind for check in checks if check.status is Status.FAILED)
    return min(failures, key=rank, default=None)
