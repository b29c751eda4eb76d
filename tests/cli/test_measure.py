"""Where `bench` and `harness` write, and what they say of it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hesstheory import bench, cli, harness

POINT = {"problem": "a", "way": "exact_traces", "kind": "exact", "work": 8.0, "error": None}
WAY = {"kind": "ours", "once": 8.0, "work_to_1_percent": 8.0}
PROBLEM = {
    "about": "a", "num_params": 3, "gradient_seconds": 0.1, "ways": {"exact_traces": WAY},
    "absent": {}, "frontier": [POINT],
}  # fmt: skip
REPORT = {"problems": {"a": PROBLEM}, "marks": []}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, and costs that are made up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "run", lambda names, **options: iter([REPORT]))
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def written(folder):
    return {f"{folder}figures/frontier.{kind}" for kind in ("csv", "png", "svg")}


def test_costs_go_to_a_folder_that_git_ignores(here):
    result = invoke("bench")
    assert result.exit_code == 0, result.output
    assert files(here) == {"runs/bench/reports/bench.json", *written("runs/bench/")}
    assert json.loads((here / "runs/bench/reports/bench.json").read_text()) == REPORT
    assert "Renewed" not in result.output


def test_costs_of_this_folder_are_renewed_where_that_is_asked_for(here):
    result = invoke("bench", "--out", ".")
    assert result.exit_code == 0, result.output
    assert files(here) == {"reports/bench.json", *written("")}
    said = " ".join(result.output.split())
    assert "Renewed in this folder: reports/bench.json and figures/frontier.png." in said


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ((), "runs/harness/resnet18"),
        (("--model", "vgg11"), "runs/harness/vgg11"),
        (("--out", "mine"), "mine"),
    ],
)
def test_a_full_scale_run_has_a_folder_of_its_own(options, folder, here, monkeypatch):
    def run(settings, out, **more):
        raise ValueError(f"it would run in {out}")

    monkeypatch.setattr(harness, "run", run)
    result = invoke("harness", *options)
    assert result.exit_code == 2
    assert f"it would run in {folder}\n" in result.output
