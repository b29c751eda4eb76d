"""Records of full-scale runs: what is run, what is kept, and the table of the README."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import typer
from command_line import ROOT

from hesstheory.cli import app
from hesstheory.harness.subject import Settings
from hesstheory.studies import full_scale_records as full_scale
from hesstheory.studies.study import call_study


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_records_are_runs_that_the_command_takes(device):
    command = typer.main.get_command(app).commands["harness"]
    runs = full_scale.records(device)
    settings = [command.make_context("harness", list(options)).params for options in runs.values()]
    found = [
        Settings(**{name: chosen[name] for name in asdict(Settings()) if name != "root"})
        for chosen in settings
    ]
    assert len(set(found)) == len(runs)
    assert {s.device for s in found} == ({"cuda"} if device == "cuda" else {"auto"})
    assert {s.model for s in found} == {"resnet18", "resnet34", "vgg11"}
    assert {s.num_classes for s in found} == {10, 100}


@pytest.fixture
def two(monkeypatch):
    """Options of a tiny run, beside one that cannot be run."""
    tiny = "--model vgg11 --width 1 --batch 2 --probes 2"
    monkeypatch.setattr(full_scale, "_DIGITS", {"tiny": tiny, "wrong": "--model vgg12"})
    monkeypatch.setattr(full_scale, "_CIFAR", {})
    return tiny


def test_records_are_made_once_and_kept(two, tmp_path, capfd):
    """A run that broke is tried again; with --seconds none is started that is late."""
    arguments = [f"--json={tmp_path / 'kept'}", f"--out={tmp_path}"]
    for again in (False, True):
        assert call_study(full_scale.STUDY, arguments) == 1
        said = capfd.readouterr().out
        assert ("hesstheory harness --model vgg11" in said) is not again
        assert "failed: wrong" in said
    kept = json.loads((tmp_path / "kept" / "tiny.json").read_text())
    folder = tmp_path / "runs" / "full_scale_records" / "tiny"
    assert kept["provenance"]["command"] == f"hesstheory harness {two} --out {folder}"
    assert kept["fingerprint"] == full_scale.STUDY.origin.fingerprint()
    assert call_study(full_scale.STUDY, [*arguments, "--seconds=0", "wrong"]) == 0
    assert "wrong: not started" in capfd.readouterr().out
    assert full_scale.spot_check(kept).holds
    kept["layers"]["classifier"]["exact"] *= 1.1
    assert not full_scale.spot_check(kept).holds


def test_a_run_that_does_not_exist_is_misuse(two, capsys):
    """The message names those that do."""
    with pytest.raises(SystemExit) as stop:
        call_study(full_scale.STUDY, ["huge"])
    assert stop.value.code == 2
    assert "no runs huge; there are tiny, wrong" in capsys.readouterr().err


def test_the_table_of_the_readme_is_that_of_the_records():
    """Line by line."""
    found = full_scale.table(ROOT / "reports" / "harness")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert found.rpartition("\n\n")[0] in text
    assert found.rpartition("\n\n")[2] in text.replace("\n", " ")


def test_the_study_runs_where_the_package_is_not_installed(tmp_path):
    """From a checkout on the path, as a module, with the options that other scripts call it by."""
    command = [sys.executable, "-m", "hesstheory.studies.full_scale_records", "--device", "cuda"]
    options = ["--json", str(tmp_path / "kept"), "--seconds", "0", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "resnet18_batch512_cuda: not started, 0 s are over" in done.stdout
