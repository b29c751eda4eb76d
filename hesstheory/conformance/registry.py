"""The registered checks, and the level at which they test."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from hesstheory.conformance.problems.reference import Reference
from hesstheory.conformance.problems.registry import references
from hesstheory.conformance.session import Finding, Session
from hesstheory.evidence.budget import Budget
from hesstheory.run.names import check_list_of_names

Decide = Callable[[Session], Iterable[Finding]]

# How many statistical tests a check makes on a problem, at most.
Tests = Callable[[Reference], int]


def no_test(reference: Reference) -> int:
    """Nothing is left to chance, but for coincidences of float64 numbers."""
    return 0


def one_test(reference: Reference) -> int:
    """One quantity of the whole problem."""
    return 1


def tests_of_blocks(reference: Reference) -> int:
    """A quantity of every block."""
    return len(reference.traces)


def tests_of_quantities(reference: Reference) -> int:
    """A quantity of every block, and of the total where there are several."""
    return len(reference.quantities)


@dataclass(frozen=True)
class ConformanceCheck:
    """A question with its prerequisites.

    Parameters
    ----------
    decide
        Asks the estimator, and yields findings.
    problems
        The reference problems that it needs, one of which must be answered legally.
    needs
        Checks that must not have failed.
    profile
        The first profile that it belongs to.
    tests
        How many statistical tests it makes on each of its problems, at most.
    """

    name: str
    question: str
    decide: Decide
    problems: tuple[str, ...]
    needs: tuple[str, ...]
    profile: str
    tests: Tests = no_test

    @property
    def num_tests(self) -> int:
        """Statistical tests that it makes at most; each of their looks is paid by its own level."""
        return sum(self.tests(references()[name]) for name in self.problems)


CHECKS: dict[str, ConformanceCheck] = {}


def check(
    *problems: str, needs: Collection[str] = (), profile: str = "smoke", tests: Tests = no_test
) -> Callable[[Decide], Decide]:
    """Registers a check under its name; the first line of its docstring is the question."""

    check_list_of_names("needs", needs)

    def register(decide: Decide) -> Decide:
        question = (decide.__doc__ or "").splitlines()[0]
        name = decide.__name__
        CHECKS[name] = ConformanceCheck(
            name, question, decide, problems, tuple(needs), profile, tests
        )
        return decide

    return register


def budget() -> Budget:
    """The suite's level, shared by all tests that the registered checks can make.

    Every profile tests at this level: it is that of the largest.
    """
    return Budget(sum(check.num_tests for check in CHECKS.values()))
