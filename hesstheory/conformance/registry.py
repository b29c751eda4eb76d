"""The registered checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hesstheory.conformance.session import Finding, Session

Decide = Callable[[Session], Iterable[Finding]]


@dataclass(frozen=True)
class ConformanceCheck:
    """A question with its prerequisites; `problems` are those it needs, one of which must be answered legally."""

    name: str
    question: str
    decide: Decide
    problems: tuple[str, ...]
    needs: tuple[str, ...]
    profile: str


CHECKS: dict[str, ConformanceCheck] = {}


def check(
    *problems: str, needs: Iterable[str] = (), profile: str = "smoke"
) -> Callable[[Decide], Decide]:
    """Registers a check under its name; the first line of its docstring is the question."""

    def register(decide: Decide) -> Decide:
        question = (decide.__doc__ or "").splitlines()[0]
        name = decide.__name__
        CHECKS[name] = ConformanceCheck(name, question, decide, problems, tuple(needs), profile)
        return decide

    return register
