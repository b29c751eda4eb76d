"""Claims rest on claims: what is refused, and what becomes of a claim under a refuted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hesstheory.evidence.checks import Verdict

Premises = Mapping[str, Sequence[str]]

# These say that a statement is true somewhere: more than a refuted premise leaves standing.
_AFFIRMED = (Verdict.HOLDS, Verdict.CONDITIONAL)


def check_premises(rests_on: Premises, expected: Mapping[str, Verdict]) -> None:
    """Refuses premises that do not exist, circles, and hopes that rest on a claim expected to be
    refuted.

    Raises
    ------
    ValueError
        With the id of the claim and what to change.
    """
    _check_known(rests_on)
    for id in rests_on:
        if circle := _circle_from(id, rests_on):
            raise ValueError(
                f"claims rest on each other in a circle, {' → '.join(circle)}: "
                f"remove one of these from rests_on="
            )
    for id, verdict in expected.items():
        refuted = refuted_premises(id, rests_on, expected)
        if refuted and verdict in _AFFIRMED:
            raise ValueError(
                f"claim {id} expects {verdict}, but rests on {', '.join(refuted)}, which is "
                f"expected to be refuted: pass expected=Verdict.INCONCLUSIVE, or derive it "
                f"without that"
            )


def _check_known(rests_on: Premises) -> None:
    """Refuses premises that no claim has as its id."""
    for id, premises in rests_on.items():
        if unknown := [premise for premise in premises if premise not in rests_on]:
            raise ValueError(
                f"claim {id} rests on {', '.join(unknown)}, which no claim package registers: "
                f"correct rests_on="
            )


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


def verdict_under(verdict: Verdict, detail: str, refuted: Sequence[str]) -> tuple[Verdict, str]:
    """Verdict and detail of a claim, given its refuted premises.

    What holds by its own checks becomes INCONCLUSIVE: the checks stand, the derivation does not. A
    refuted or undecided claim stays as it is.

    Examples
    --------
    >>> verdict_under(Verdict.HOLDS, "3 exact checks passed", ["T2"])[1]
    'rests on T2, which is refuted; its own checks say HOLDS: 3 exact checks passed'
    """
    if not refuted or verdict not in _AFFIRMED:
        return verdict, detail
    named = f"{', '.join(refuted)}, which {'is' if len(refuted) == 1 else 'are'} refuted"
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
