"""Failures that are expected, in files and in calls."""

from __future__ import annotations

import datetime

import pytest
from user_estimators import checked

from hesstheory import LayerwiseTrace, check_estimator
from hesstheory.conformance.contract import Misuse
from hesstheory.conformance.expectations import read_xfails
from hesstheory.conformance.scoreboard import scoreboard
from hesstheory.conformance.suite import Course


def _biased(problem, *, num_probes, generator):
    """One per cent too large."""
    return 1.01 * LayerwiseTrace(num_probes)(problem, generator).value


def _module_level(problem, *, num_probes, generator):
    return LayerwiseTrace(num_probes)(problem, generator).value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('check_nothing = "why"', "no check is named"),
        ('check_unbiased = ""', "no reason"),
        ("[check_unbiased]\nexpires = 2030-01-01", "no reason"),
        ('[check_unbiased]\nreason = "x"\nexpires = 2020-01-01', "expired"),
        ('[check_unbiased]\nreason = "x"\nexpires = "soon"', "no date"),
        ("check_unbiased = [", "no TOML"),
    ],
)
def test_bad_expectations_are_refused(text, message, tmp_path):
    path = tmp_path / "xfails.toml"
    path.write_text(text)
    with pytest.raises(Misuse, match=message):
        read_xfails(path, datetime.date(2026, 1, 1))


def test_expectations_are_read_in_all_forms(tmp_path):
    path = tmp_path / "xfails.toml"
    path.write_text('check_signs = "a"\n[check_unbiased]\nreason = "b"\nexpires = 2030-01-01\n')
    assert read_xfails(path, datetime.date(2026, 1, 1)) == {
        "check_signs": "a",
        "check_unbiased": "b",
    }
    path.write_text('[expected_failed_checks]\ncheck_signs = "a"\n')
    assert read_xfails(path) == {"check_signs": "a"}


def test_expected_failures_must_fail():
    wrong = {"check_one_probe": "wrong guess", "check_given_probes": "never asked"}
    course = Course(_biased, expected={"check_unbiased": "known", **wrong})
    assert course.result("check_given_probes").status == "failed"
    assert course.result("check_unbiased").status == "xfailed"
    assert course.result("check_one_probe").status == "failed"
    assert "remove the entry" in course.result("check_one_probe").detail


def test_checks_have_short_names_everywhere(tmp_path):
    path = tmp_path / "xfails.toml"
    path.write_text('signs = "a"\n[unbiased]\nreason = "b"\n')
    assert read_xfails(path) == {"check_signs": "a", "check_unbiased": "b"}
    path.write_text('signs = "a"\ncheck_signs = "b"\n')
    with pytest.raises(Misuse, match="twice"):
        read_xfails(path)
    (*_, result) = check_estimator(
        _module_level, checks=["one_probe"], expected_failed_checks={"one_probe": "why"}
    )
    assert (result.check, result.stale) == ("check_one_probe", True)


def test_an_expectation_that_is_stale_does_not_make_an_estimator_wrong(mine, tmp_path):
    path = tmp_path / "xfails.toml"
    path.write_text('one_probe = "needs two"')
    code, output = checked(
        f"{mine}:right", "--profile", "smoke", "--check", "one_probe", "--xfails", path
    )
    assert (code, "does better than expected: remove check_one_probe" in output) == (1, True), (
        output
    )
    assert "WRONG" not in output


@pytest.mark.parametrize(
    "text", ['[nobody]\ncheck_unbiased = "why"', '[pyhessian]\ncheck_nothing = "why"']
)
def test_expectations_of_unknown_peers_are_refused(text, tmp_path):
    path = tmp_path / "peers.toml"
    path.write_text(text)
    with pytest.raises(Misuse, match=r"no peer|no check"):
        scoreboard(names=[], xfails=path)
