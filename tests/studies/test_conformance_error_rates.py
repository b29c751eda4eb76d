"""Estimators of the study are those of the library, drawn and multiplied otherwise."""

from __future__ import annotations

import json

import pytest
import torch

from hesstheory.conformance.problems import references
from hesstheory.estimators.probes import Gaussian, Rademacher
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.studies import conformance_error_rates as study
from hesstheory.studies.study import call_study


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("signs", LayerwiseTrace(16, Rademacher())),
        ("normal", LayerwiseTrace(16, Gaussian())),
        ("block-separated", BlockSeparatedTrace(16, Rademacher())),
    ],
)
def test_estimators_with_a_held_hessian_give_what_the_library_gives(name, twin):
    for reference in ("smooth_mlp", "tied", "layouts"):
        problem = references()[reference].build()
        found = study.RIGHT[name](
            problem, num_probes=16, generator=torch.Generator().manual_seed(3)
        )
        expected = twin(problem, torch.Generator().manual_seed(3))
        for block, (value, error) in found.items():
            assert value == pytest.approx(expected.value[block], rel=1e-10)
            assert error == pytest.approx(expected.stderr[block], rel=1e-8)


def test_the_held_hessian_follows_the_parameters():
    problem = references()["smooth_mlp"].build()
    before = study.held(problem)
    with torch.no_grad():
        next(iter(problem.params.values())).mul_(0.5)
    assert not torch.equal(study.held(problem), before)


def test_a_run_is_recorded_and_rated():
    right, wrong = study.one_run(("total only", 5)), study.one_run(("total only, 1 % too large", 5))
    assert (right["code"], wrong["code"]) == (0, 1), right
    rates = study.rates([right, wrong])
    assert rates["total only"]["accepted"] == rates["total only, 1 % too large"]["rejected"] == 1


def test_estimators_take_turns():
    """A study that is stopped early has some runs of each."""
    tasks = study.tasks_of({"signs": 2, "normal": 1}, 5)
    assert list(tasks.values()) == [("signs", 5), ("normal", 5), ("signs", 6)]


def test_the_study_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Runs that are done are not done again; the record counts them."""
    done = []

    def pretended(task):
        done.append(task)
        return {"estimator": task[0], "seed": task[1], "code": 0, "not passed": {}}

    monkeypatch.setattr(study, "one_run", pretended)
    for runs in ("2", "3"):
        options = ["--runs", runs, "--power-runs", "0", "--workers", "1"]
        assert call_study(study.STUDY, ["--out", str(tmp_path), "--only", "signs", *options]) == 0
    assert done == [("signs", seed) for seed in (10_000, 10_001, 10_002)]
    record = json.loads((tmp_path / "reports/conformance_error_rates.json").read_text())
    assert record["signs"]["runs"] == record["signs"]["accepted"] == 3
    assert record["fingerprint"] == study.STUDY.origin.fingerprint()
    assert "--runs 3" in record["provenance"]["command"]


def test_a_spot_check_repeats_what_always_ended_alike(monkeypatch):
    """Estimators with runs of either kind are left out, as no seed says how its run should end."""
    codes = {"signs": 0, "signs, 1 % too large": 1}
    monkeypatch.setattr(study, "one_run", lambda task: {"code": codes[task[0]]})
    right = {"runs": 2, "accepted": 2, "rejected": 0}
    record = {
        "signs": right,
        "normal": {"runs": 2, "accepted": 1, "rejected": 1},
        study.SLOW: right,
        "signs, 1 % too large": {"runs": 2, "accepted": 0, "rejected": 2},
    }
    found = study.spot_check(record)
    assert found.holds
    assert found.compared == "outcome of seed 10000: signs, signs, 1 % too large"
    codes["signs"] = 1
    assert study.spot_check(record).deviation == 1
