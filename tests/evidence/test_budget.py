"""One budget for a whole run of the suite."""

from __future__ import annotations

import math

import pytest

from hesstheory.evidence.budget import Budget

BUDGETS = [[], [(0, 4)], [(1, 0)], [(3, 2)], [(0, 7), (2, 4), (26, 3), (1, 0)], [(10, 9)] * 50]


@pytest.mark.parametrize("suite_alpha", [1e-6, 0.05])
@pytest.mark.parametrize(
    "tests_per_claim", BUDGETS, ids=[str(sum(map(sum, pairs))) for pairs in BUDGETS]
)
def test_budget_is_spent_once(tests_per_claim, suite_alpha):
    """The levels of all tests, of the subjects and of their mutants, add up to the budget of the
    suite."""
    budget = Budget.of(iter(tests_per_claim), suite_alpha)
    tests = [
        budget.alpha
        for statistical, mutants in tests_per_claim
        for _ in range(statistical * (1 + mutants))
    ]
    assert budget.num_tests == len(tests)
    assert math.isclose(sum(tests), suite_alpha) if tests else budget.alpha == suite_alpha
