"""A run over claims: what is decided, recorded and shown, with several workers too."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from claim_package import (
    ALL,
    SMOKE,
    breaking,
    breaks_on_mutants,
    conditional,
    failing,
    open_ended,
    register,
    value_is_two,
)

from hesstheory.claims import course
from hesstheory.claims.ledger import Ledger
from hesstheory.cli.report import write_report
from hesstheory.evidence.checks import Verdict
from hesstheory.evidence.exact import exact
from hesstheory.show import pages
from hesstheory.show.text import NOTHING


def test_everything_that_ran_is_recorded_and_shown(run, tmp_path):
    progress = []
    found = run(
        profile="ci",
        on_result=lambda record, done, total: progress.append((record["id"], done, total)),
    )
    shown = write_report(found.records, tmp_path).records_shown
    assert found.records_run == shown == 2 * len(SMOKE) + 2
    assert progress == [(id, number, len(ALL)) for number, id in enumerate(ALL, 1)]
    head, *middle, end = Ledger(tmp_path / "ledger.jsonl").records()
    assert (
        [record["id"] for record in middle]
        == [record["id"] for record in found.claims]
        == head["claims"]
        == ALL
    )
    assert (end["records_run"], end["passed"], end["counts"]) == (shown, True, {"HOLDS": len(ALL)})
    assert {record["run"] for record in (head, *middle, end)} == {head["run"]}
    assert NOTHING not in dict(pages.facts(head, end)).values()
    assert set(found.to_json(shown)) == {"claims", "suite_alpha", "records_run", "records_shown"}


def test_the_budget_covers_all_registered_tests_and_mutants(run):
    """Also where few claims are named: the level of a check does not depend on what else is run."""
    for names in ((), ("B1",)):
        head = run(names, profile="ci").records[0]
        assert head["num_statistical"] == 2 * (1 + 1)
        assert math.isclose(head["num_statistical"] * head["alpha_per_check"], head["suite_alpha"])


@pytest.mark.parametrize(("profile", "ids"), [("smoke", SMOKE), ("ci", ALL), ("full", ALL)])
def test_a_profile_decides_what_it_can(run, profile, ids):
    assert [record["id"] for record in run(profile=profile).claims] == ids


@pytest.mark.parametrize(
    ("names", "profile", "error", "message"),
    [
        (
            ["A9"],
            "ci",
            KeyError,
            "no claim 'A9': choose one of A1, A2, A2.a, A3, A10, B1, B2",
        ),
        (
            ["A1", "B1"],
            "smoke",
            ValueError,
            "the smoke profile cannot decide B1: pass a larger --profile",
        ),
        ([], "huge", ValueError, "profile is 'huge': choose from smoke, ci, full"),
    ],
)
def test_misuse_leaves_no_trace(run, tmp_path, names, profile, error, message):
    with pytest.raises(error) as caught:
        run(names, profile=profile)
    assert caught.value.args[0] == message
    assert not (tmp_path / "ledger.jsonl").exists()


SURPRISES = [
    ([(value_is_two, Verdict.HOLDS)], 0),
    (
        [
            (failing, Verdict.REFUTED),
            (conditional, Verdict.CONDITIONAL),
            (open_ended, Verdict.INCONCLUSIVE),
        ],
        0,
    ),
    ([(failing, Verdict.HOLDS)], 1),
    ([(value_is_two, Verdict.REFUTED)], 1),
    ([(conditional, Verdict.HOLDS)], 1),
    ([(value_is_two, Verdict.CONDITIONAL)], 1),
    ([(value_is_two, Verdict.INCONCLUSIVE)], 1),
    ([(open_ended, Verdict.HOLDS)], 3),
    ([(breaking, Verdict.REFUTED), (value_is_two, Verdict.HOLDS)], 3),
    ([(breaking, Verdict.INCONCLUSIVE), (value_is_two, Verdict.HOLDS)], 3),
    ([(breaks_on_mutants, Verdict.INCONCLUSIVE)], 3),
    ([(open_ended, Verdict.HOLDS), (failing, Verdict.HOLDS)], 1),
    ([(open_ended, Verdict.HOLDS), (value_is_two, Verdict.REFUTED)], 1),
]


@pytest.mark.parametrize(("cases", "code"), SURPRISES, ids=range(len(SURPRISES)))
def test_exit_code(run, cases, code):
    """1 when a verdict differs from the expected one, either way; 3 when such verdicts are only
    undecided."""
    for number, (decide_, expected) in enumerate(cases):
        register(f"X{number}", decide_, expected=expected)
    found = run([f"X{number}" for number in range(len(cases))], profile="ci")
    assert found.exit_code == code
    assert found.records[-1]["passed"] is (code == 0)
    assert len(found.surprises) == sum(
        record["verdict"] != record["expected"] for record in found.claims
    )
    assert bool(found.surprises) == (code != 0)


def test_a_claim_that_breaks_does_not_stop_the_others(run):
    register("A2.b", breaking)
    register("A2.c", lambda subject, context: 1 / 0)
    found = {record["id"]: record for record in run(profile="smoke").claims}
    assert list(found) == ["A1", "A2", "A2.a", "A2.b", "A2.c", "A3", "A10"]
    assert found["A2.b"]["detail"] == "ValueError: out of range"
    assert found["A2.c"]["detail"] == "ZeroDivisionError: division by zero"
    assert {record["verdict"] for id, record in found.items() if id not in ("A2.b", "A2.c")} == {
        "HOLDS"
    }


NOT_JSON = {"array": np.zeros(2), "tensor": torch.zeros(2), "set": {1}, "object": object()}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_rows_that_are_no_json_do_not_stop_the_others(run, value):
    def with_rows(subject, context):
        yield exact("value", subject(), 2.0).showing("power", [{"x": value}])

    register("A2.b", with_rows)
    found = run(profile="smoke")
    assert [record["id"] for record in found.claims] == ["A1", "A2", "A2.a", "A2.b", "A3", "A10"]


def test_the_ledger_is_strict_json(run, tmp_path):
    """Without NaN and infinities, and with numpy's and torch's numbers as plain ones."""
    numbers = {
        "nan": math.nan,
        "inf": np.float64(-np.inf),
        "one": np.int64(1),
        "half": torch.tensor(0.5),
    }

    def not_finite(subject, context):
        yield exact("value", subject(), 2.0).showing("power", [numbers])
        yield exact("nothing", math.nan, 2.0)

    register("X1", not_finite, expected=Verdict.REFUTED)
    assert run(["X1"], profile="smoke").exit_code == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    _, record, _ = (json.loads(line, parse_constant=refuse) for line in lines)
    first, second = record["checks"]
    assert first["rows"] == [{"nan": "nan", "inf": "-inf", "one": 1, "half": 0.5}]
    assert (second["discrepancy"], second["status"]) == ("nan", "failed")


def timeless(found):
    """Records without what may differ between two runs of the same code."""
    return [
        {key: value for key, value in record.items() if key not in ("time", "seconds", "run")}
        for record in found.records
    ]


@pytest.fixture
def no_workers_left():
    """Workers keep the claim package that they have imported, so no other test may get them."""
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


@pytest.mark.usefixtures("no_workers_left")
def test_records_depend_neither_on_the_workers_nor_on_the_order_of_names(run, package, tmp_path):
    """Not even those of drawn numbers; A1 is made to wait, so that two workers finish in another
    order."""
    first, order, hold = run(profile="ci", seed=3), [], package / "hold A1"

    def release(record, done, total):
        order.append(record["id"])
        hold.unlink(missing_ok=True)

    hold.touch()
    again = [
        run(profile="ci", seed=3, workers=2, on_result=release),
        run(ALL[::-1], profile="ci", seed=3),
    ]
    assert sorted(order) == sorted(ALL)
    assert order[0] != "A1"
    assert [timeless(found) for found in again] == [timeless(first)] * 2
    assert timeless(run(profile="ci", seed=4)) != timeless(first)


def test_workers_decide_claims_of_the_caller(run, registry, monkeypatch):
    """In a worker the registry has the claims of installed packages and no others; here it stands
    in for one."""
    register("X1")

    def scatter_to_a_worker(function, tasks, workers):
        del registry["X1"]
        return map(function, tasks)

    monkeypatch.setattr(course, "scatter", scatter_to_a_worker)
    assert [record["id"] for record in run(["A2", "X1"], profile="smoke", workers=2).claims] == [
        "A2",
        "A2.a",
        "X1",
    ]
