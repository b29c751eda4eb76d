"""The catalogue of claims as a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from hesstheory.claims.registry import Claim

_HEADER = """\
# Claims

What this project decides, and what it expects on paper. `hesstheory claim list --markdown` writes
this page from the registered claims. `hesstheory validate` decides them, and fails where a verdict
differs from the expected one. `references.bib` has the sources.

A mutant is a wrong version of the subject; the checks must notice each of them. The profile is the
smallest that can decide the claim. In `smoke` nothing is drawn at random.
"""


def package_of(c: Claim) -> str:
    """Import name of the claim package that registers a claim."""
    return c.decide.__module__.partition(".")[0]


def markdown(claims: Iterable[Claim]) -> str:
    """The catalogue as Markdown, a section a package.

    Parameters
    ----------
    claims
        Claims in natural order, such as `catalogue().values()`.

    Returns
    -------
    str
        The page, which ends with a line break.
    """
    parts = [_HEADER]
    for package, members in groupby(sorted(claims, key=package_of), key=package_of):
        parts.append(f"## {package}\n")
        parts.extend("\n".join(_entry(c)) + "\n" for c in members)
    return "\n".join(parts)


def _entry(c: Claim) -> Iterator[str]:
    """Lines on one claim."""
    yield f"### {c.id}: {c.title}\n"
    yield f"{c.statement}\n"
    yield f"- Source: {c.source}"
    yield f"- Expected: {c.expected}, because {c.reason}"
    yield f"- Rests on: {', '.join(c.rests_on) or 'no other claim'}"
    yield f"- Decided by: {_evidence(c)}"


def _evidence(c: Claim) -> str:
    """Profile, number of checks that draw random numbers, number of mutants."""
    drawn = (
        f"{c.statistical} statistical checks and others" if c.statistical else "no drawn numbers"
    )
    return f"profile `{c.profile}`, {drawn}, {len(c.mutants)} mutants"
