"""False alarms of the harness: settings by seed, failures by seed, and their rate."""

from __future__ import annotations

import json

import pytest

from hesstheory.studies import harness_false_alarms as study
from hesstheory.studies.study import call_study


def test_settings_go_by_the_seed():
    """Both networks, with and without training, with few samples and with many."""
    found = [study.settings_of(seed) for seed in range(3000, 3040)]
    assert len(set(found)) == 40
    assert {s.model for s in found} == {"resnet18", "vgg11"}
    assert {s.steps for s in found} == {0, 3}
    assert sum(s.batch == 40 for s in found) == 10


def test_the_limit_is_that_of_no_failure_in_so_many_runs():
    """1 − 0.05^(1/n), the rule of three."""
    found = study.summary(7, {seed: {} for seed in range(7, 207)})
    assert found["upper_limit_95"] == pytest.approx(1 - 0.05 ** (1 / 200), rel=1e-12)
    assert (found["runs"], found["failures"]) == (200, {})


def test_failures_are_written_down_by_seed(tmp_path, monkeypatch):
    """And a spot check repeats the first of them."""
    monkeypatch.setattr(
        study, "failed", lambda seed, folder: {"probes differ": "a tie"} if seed == 8 else {}
    )
    options = ["--runs", "4", "--first-seed", "7", "--out", str(tmp_path)]
    assert call_study(study.STUDY, options) == 0
    record = json.loads((tmp_path / "reports" / "harness_false_alarms.json").read_text())
    assert record["failures"] == {"8": {"probes differ": "a tie"}}
    assert record["runs"] == 4
    found = study.spot_check(record)
    assert found.holds
    assert found.compared == "failed checks of seeds 7 to 9"
    monkeypatch.setattr(study, "failed", lambda seed, folder: {})
    assert study.spot_check(record).deviation == 1


def test_a_run_goes_through_all_checks(tmp_path):
    """One of the narrowest networks, and its code is right."""
    assert study.failed(3003, tmp_path) == {}
    assert json.loads((tmp_path / "harness" / "harness.json").read_text())["checks"]
