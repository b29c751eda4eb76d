"""The probability that a whole run goes falsely red, shared among its tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# How much is spent: deterministic checks alone (seconds), what CI affords (minutes), everything.
PROFILES = ("smoke", "ci", "full")

# Probability that a whole run goes falsely red: less than once in the lifetime of a project, even
# with a run for every commit.
SUITE_ALPHA = 1e-6


def level_of_look(alpha: float, looks: int) -> float:
    """α/looks: the level of one look at a test that may end at any of them.

    The whole test then errs with probability at most α, whatever the looks have in common
    (Bonferroni).
    """
    return alpha / looks


@dataclass(frozen=True)
class Budget:
    """The probability that a whole run goes falsely red, shared equally by its statistical tests.

    A test of the subject may falsely fail, and a test of a mutant may falsely pass. Both are paid
    for, so that one claim with t tests and m mutants counts t(1 + m).

    Examples
    --------
    >>> Budget.of([(3, 1), (2, 4)]).num_tests
    16
    """

    num_tests: int
    suite_alpha: float = SUITE_ALPHA

    @property
    def alpha(self) -> float:
        """Level of one test."""
        return self.suite_alpha / max(self.num_tests, 1)

    @classmethod
    def of(
        cls, tests_per_claim: Iterable[tuple[int, int]], suite_alpha: float = SUITE_ALPHA
    ) -> Budget:
        """From pairs (statistical tests, mutants) of the registered claims."""
        return cls(sum(tests * (1 + mutants) for tests, mutants in tests_per_claim), suite_alpha)
