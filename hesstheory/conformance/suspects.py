"""Which known mistakes show the same pattern?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files

from hesstheory.conformance.results import CheckResult
from hesstheory.evidence.checks import Status

SIGNATURES = "signatures.json"


@cache
def signatures() -> Mapping[str, frozenset[str]]:
    """What each known mistake makes fail, and in which direction, in the ci profile."""
    path = files("hesstheory.conformance") / SIGNATURES
    if not path.is_file():
        return {}
    patterns = json.loads(path.read_text(encoding="utf-8"))
    return {name: frozenset(lines) for name, lines in patterns.items()}


def suspects(found: set[str], most: int = 3) -> list[str]:
    """Known mistakes by the likeness of their failures to these.

    Likeness is the number of shared lines over that of all lines (Jaccard 1901).
    """
    scores = {
        name: len(found & known) / len(found | known)
        for name, known in signatures().items()
        if found & known
    }
    return sorted(scores, key=lambda name: (-scores[name], name))[:most]


def with_suspects(result: CheckResult, ranked: Sequence[str]) -> CheckResult:
    """A failure with those of the suspects that fail the same check."""
    if result.status != Status.FAILED:
        return result
    known = signatures()
    prefix = f"{result.check}@"
    alike = [name for name in ranked if any(line.startswith(prefix) for line in known[name])]
    return replace(result, suspects=tuple(alike))
