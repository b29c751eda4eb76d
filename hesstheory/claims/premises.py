"""Claims rest on claims: what is refused, and what becomes of a claim under a refuted one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from hesstheory.evidence.checks import Verdict

Premises = Mapping[str, Sequence[str]]

# These say that a statement is true somewhere: more than a refuted premise leaves standing.
_AFFIRMED = (Verdict.HOLDS, Verdict.CONDITIONAL)


def faults_of_premises(rests_on: Premises, expected: Mapping[str, Verdict]) -> dict[str, str]:
    """By id what is wrong with the premises of a claim, and what to change.

    Wrong are premises that do not exist, circles, and hopes that rest on a claim expected to be
    refuted.

    Examples
    --------
    >>> faults_of_premises({"T1": [], "T2": ["T1"], "T3": ["T9"]}, {})["T3"]
    'claim T3 rests on T9, which no claim package registers: correct rests_on='
    """
    faults = {id: _fault_of(id, rests_on, expected) for id in rests_on}
    return {id: fault for id, fault in faults.items() if fault}


def _fault_of(id: str, rests_on: Premises, expected: Mapping[str, Verdict]) -> str:
    """What is wrong with the premises of one claim, or nothing."""
    if unknown := [premise for premise in rests_on[id] if premise not in rests_on]:
        return (
            f"claim {id} rests on {', '.join(unknown)}, which no claim package registers: "
            f"correct rests_on="
        )
    if circle := _circle_from(id, rests_on):
        return (
            f"claims rest on each other in a circle, {' → '.join(circle)}: "
            f"remove one of these from rests_on="
        )
    refuted = refuted_premises(id, rests_on, expected)
    if refuted and expected[id] in _AFFIRMED:
        return (
            f"claim {id} expects {expected[id]}, but rests on {', '.join(refuted)}, which is "
            f"expected to be refuted: pass expected=Verdict.INCONCLUSIVE, or derive it "
            f"without that"
        )
    return ""


def all_premises(id: str, rests_on: Premises) -> list[str]:
    """Ids of all claims below a claim, each once, those above others first."""
    found: dict[str, None] = {}
    waiting = list(rests_on.get(id, ()))
    while waiting:
        premise = waiting.pop(0)
        if premise not in found:
            found[premise] = None
            waiting.extend(rests_on.get(premise, ()))
    return list(found)


def refuted_premises(id: str, rests_on: Premises, verdicts: Mapping[str, Verdict]) -> list[str]:
    """Ids of the refuted claims among all those below a claim."""
    below = all_premises(id, rests_on)
    return [premise for premise in below if verdicts.get(premise) is Verdict.REFUTED]


def blocked_premises(id: str, rests_on: Premises, blocked: Collection[str]) -> list[str]:
    """Ids of the claims that cannot be decided among all those below a claim."""
    return [premise for premise in all_premises(id, rests_on) if premise in blocked]


def verdict_under(
    verdict: Verdict, detail: str, refuted: Sequence[str], blocked: Sequence[str] = ()
) -> tuple[Verdict, str]:
    """Verdict and detail of a claim, given its premises that are refuted or cannot be decided.

    What holds by its own checks becomes INCONCLUSIVE: the checks stand, the derivation does not. A
    refuted or undecided claim stays as it is.

    Examples
    --------
    >>> verdict_under(Verdict.HOLDS, "3 exact checks passed", ["T2"])[1]
    'rests on T2, which is refuted; its own checks say HOLDS: 3 exact checks passed'
    """
    if not (refuted or blocked) or verdict not in _AFFIRMED:
        return verdict, detail
    grounds = []
    if refuted:
        grounds.append(
            f"{', '.join(refuted)}, which {'is' if len(refuted) == 1 else 'are'} refuted"
        )
    if blocked:
        grounds.append(f"{', '.join(blocked)}, which cannot be decided")
    named = " and on ".join(grounds)
    return Verdict.INCONCLUSIVE, f"rests on {named}; its own checks say {verdict}: {detail}"


def _circle_from(id: str, rests_on: Premises) -> list[str]:
    """The shortest way from a claim down to itself, both ends named, or nothing."""
    ways = [[id]]
    seen: set[str] = set()
    for way in ways:  # grows while it is walked: shorter ways come first
        for premise in rests_on.get(way[-1], ()):
            if premise == id:
                return [*way, id]
            if premise not in seen:
                seen.add(premise)
                ways.append([*way, premise])
    return []
