"""The benchmark as a whole: its report, its command, and that no library is missed or believed."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
from typer.testing import CliRunner

from hesstheory import bench, cli
from hesstheory.bench import dense, problems, processes
from hesstheory.conformance.subjects import peers


@pytest.fixture
def here(monkeypatch):
    """Few ways, measured in this process, which is faster; no library is installed."""
    monkeypatch.setattr(processes, "in_a_process", lambda work, *given, **more: work(*given))
    monkeypatch.setattr(peers, "installed", lambda: {})
    few = replace(
        problems.SETTINGS["mlp"], ways=("LayerwiseTrace", *OTHERS), counts=(2, 4), draws=10
    )
    monkeypatch.setitem(problems.SETTINGS, "mlp", few)


OTHERS = (
    "plain torch",
    "exact_traces",
    "LogitProbeTrace",
    "PyHessian",
    "curvlinops",
    "hessian-eigenthings",
)
KEYS = {
    "kind", "once", "per_probe", "gradients_at_num_probes", "work_to_1_percent", "judged_on",
    "peak_bytes", "peak_in_training_steps", "spread_found_by",
    "worst_relative_spread_of_one_probe", "relative_spread_of_one_probe",
}  # fmt: skip


def test_the_command_measures_writes_and_draws(here, tmp_path):
    result = CliRunner().invoke(
        cli.app, ["bench", "mlp", "--tiny", "--repeats", "1", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "reports" / "bench.json").read_text(encoding="utf-8"))
    assert {"device", "threads", "versions", "commit", "torch", "problems", "marks"} <= set(report)
    found = report["problems"]["mlp"]
    assert found["num_params"] == 785 * 8 + 9 * 8 + 9 * 10
    assert found["dtype"] == "float32"
    assert found["loss"] < 0.5 * found["untrained_loss"]
    assert found["gradient_seconds"] > 0
    assert set(found["absent"]) == {"PyHessian", "curvlinops", "hessian-eigenthings"}
    assert "PyHessian is absent: not installed" in result.output
    assert set(found["ways"]) == {"LayerwiseTrace", *OTHERS[:3]}
    for name, way in found["ways"].items():
        assert way["work_to_1_percent"] > 0
        if name != "exact_traces":
            assert set(way) == KEYS
            assert set(way["relative_spread_of_one_probe"]) == set(found["traces"])
    assert (
        found["ways"]["plain torch"]["spread_found_by"]
        == "10 draws of LayerwiseTrace, the same estimator"
    )
    assert [mark["mark"].partition(":")[0] for mark in report["marks"]] == ["mlp", "mlp"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"frontier.{s}" for s in ("svg", "png", "csv")
    }
    shown = pd.read_csv(tmp_path / "figures" / "frontier.csv")
    assert len(shown) == len(found["frontier"])
    assert shown["drawn"].all()


def test_dense_hessians_agree(here):
    (report,) = bench.run(["dense"], tiny=True)
    found = report["problems"]["dense"]
    assert set(found["ways"]) == set(dense.DENSE) - {"curvlinops"}
    assert found["ways"]["hessian(problem).to_dense()"]["times_ours"] == 1.0
    assert [mark["mark"] for mark in report["marks"]] == [
        "dense Hessian: times faster than torch.func.hessian"
    ]


def test_a_library_that_fails_is_listed_with_what_it_says(monkeypatch):
    def broken(problem, *, num_probes, generator):
        raise RuntimeError("no such operation\nat length")

    monkeypatch.setattr(peers, "installed", lambda: {"pyhessian": "0"})
    monkeypatch.setitem(peers.PEERS, "pyhessian.all_probes", broken)
    found, absent = bench.available(bench.SETTINGS["mlp"])
    kept = bench.warmed(
        bench.SETTINGS["mlp"].build(True, False), {"PyHessian": found["PyHessian"]}, absent, print
    )
    assert kept == {}
    assert absent["PyHessian"] == "failed: RuntimeError: no such operation"
    assert set(absent) == {"PyHessian", "curvlinops", "hessian-eigenthings"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["resnet"],
            "no problem 'resnet': choose one of mlp, mlp-tanh, cnn, resnet18, "
            "resnet18-as-built, dense",
        ),
        (["mlp", "--repeats", "0"], "--repeats 0: pass one round or more"),
        (
            ["mlp", "--json", "nowhere/found.json"],
            "--json nowhere/found.json: the folder does not exist",
        ),
    ],
)
def test_misuse_costs_no_time_and_names_the_cure(arguments, says, tmp_path):
    result = CliRunner().invoke(cli.app, ["bench", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []
