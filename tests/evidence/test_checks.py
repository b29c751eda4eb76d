"""Checks and the verdict that they come to, in any order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hesstheory.evidence.checks import Check, Kind, Status, Verdict, empirical, holds, verdict

PASSED, FAILED, OPEN, REPORTED, SKIPPED, BLOCKED, XFAILED = (
    Check(status.value, Kind.EXACT, status) for status in Status
)
LIMITED = FAILED.unless("the draws are normal")
VERDICTS = [
    ((), Verdict.INCONCLUSIVE),
    ((REPORTED,), Verdict.INCONCLUSIVE),
    ((OPEN,), Verdict.INCONCLUSIVE),
    ((PASSED, OPEN), Verdict.INCONCLUSIVE),
    ((REPORTED, OPEN), Verdict.INCONCLUSIVE),
    ((PASSED,), Verdict.HOLDS),
    ((PASSED, REPORTED), Verdict.HOLDS),
    ((PASSED.unless("anywhere"),), Verdict.HOLDS),
    ((FAILED,), Verdict.REFUTED),
    ((PASSED, FAILED), Verdict.REFUTED),
    ((FAILED, OPEN), Verdict.REFUTED),
    ((PASSED, LIMITED, FAILED, OPEN), Verdict.REFUTED),
    ((PASSED, LIMITED, OPEN), Verdict.INCONCLUSIVE),
    ((PASSED, LIMITED, OPEN.unless("anywhere")), Verdict.INCONCLUSIVE),
    ((LIMITED, OPEN), Verdict.INCONCLUSIVE),
    ((PASSED, LIMITED, FAILED), Verdict.REFUTED),
    ((LIMITED,), Verdict.REFUTED),
    ((LIMITED, REPORTED), Verdict.REFUTED),
    ((PASSED, LIMITED), Verdict.CONDITIONAL),
    ((PASSED, LIMITED, REPORTED), Verdict.CONDITIONAL),
    ((PASSED, SKIPPED, XFAILED), Verdict.HOLDS),
    ((SKIPPED, XFAILED), Verdict.INCONCLUSIVE),
    ((PASSED, BLOCKED), Verdict.INCONCLUSIVE),
    ((PASSED, LIMITED, BLOCKED), Verdict.INCONCLUSIVE),
    ((FAILED, BLOCKED), Verdict.REFUTED),
]


@pytest.mark.parametrize(("checks", "expected"), VERDICTS, ids=str)
def test_verdict_of_checks_in_any_order(checks, expected):
    assert {verdict(order) for order in itertools.permutations(checks)} == {expected}


def test_checks_are_changed_by_copies():
    shown = PASSED.showing("power", [{"effect": 1.0}])
    assert (shown.table, shown.rows) == ("power", ({"effect": 1.0},))
    assert (PASSED.table, PASSED.rows, PASSED.condition) == (None, (), "")


@pytest.mark.parametrize("fact", [True, False, np.bool_(True), np.bool_(False)])
def test_facts(fact):
    expected = Status.PASSED if fact else Status.FAILED
    assert holds("sign", fact, "numbers") == Check("sign", Kind.EXACT, expected, "numbers")
    assert empirical("study", "effect", statement=fact) == Check(
        "study", Kind.EMPIRICAL, expected, "effect"
    )
    assert holds("sign", fact, "", kind=Kind.SYMBOLIC).kind is Kind.SYMBOLIC


def test_a_study_without_a_statement_only_reports():
    assert verdict([empirical("study", "effect")]) is Verdict.INCONCLUSIVE
    assert empirical("study", "effect").status is Status.REPORTED
