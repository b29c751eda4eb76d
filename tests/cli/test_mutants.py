"""`hesstheory mutants`: where its files go."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from hesstheory.cli import app

FIGURES = {f"kill_matrix.{suffix}" for suffix in ("csv", "png", "svg")}


def _mutants(*arguments):
    return CliRunner().invoke(app, ["mutants", *arguments, "--profile", "smoke", "--workers", "1"])


def test_files_go_to_runs_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = _mutants("missing_block")
    assert run.exit_code == 0, run.output
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    out = tmp_path / "runs" / "mutants"
    matrix = json.loads((out / "reports" / "kill_matrix.json").read_text())
    assert matrix["mutants"]["missing_block"]["killed_by"] == ["check_answers_are_legal"]
    assert {path.name for path in (out / "figures").iterdir()} == FIGURES
    assert "runs/mutants/reports/kill_matrix.json" in run.output


def test_a_folder_and_a_file_may_be_named(tmp_path):
    run = _mutants("missing_block", "--out", str(tmp_path), "--json", str(tmp_path / "m.json"))
    assert run.exit_code == 0, run.output
    assert {path.name for path in tmp_path.iterdir()} == {"m.json", "figures"}


def test_an_unknown_mutant_is_misuse(tmp_path):
    run = _mutants("nobody", "--out", str(tmp_path))
    assert (run.exit_code, "no mutant 'nobody'" in run.output) == (2, True)
