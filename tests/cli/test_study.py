"""`hesstheory study`: the list, the options of a study, and misuse."""

from __future__ import annotations

import json

import pytest
from command_line import hesstheory_

from hesstheory.studies import registry


@pytest.mark.parametrize("arguments", [[], ["list"]], ids=str)
def test_studies_are_listed_with_the_state_of_their_records(arguments, tmp_path, monkeypatch):
    """One line each; records of times are marked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports" / "harness").mkdir(parents=True)
    for name in ("engine", "harness/a", "harness/b"):
        (tmp_path / "reports" / f"{name}.json").write_text("{}")
    result = hesstheory_("study", *arguments)
    assert result.exit_code == 0, result.output
    rows = [line.split("│") for line in result.stdout.splitlines() if "│" in line]
    found = {cells[1].strip(): cells[3].strip() for cells in rows}
    assert list(found) == list(registry.NAMES)
    assert found["engine"] == "STALE (times)"
    assert found["full_scale_records"] == "2 STALE"
    assert found["full_vector_probes"] == "no record"


def test_a_study_has_options_of_its_own(capfd):
    """Its help shows them beside those of all studies."""
    result = hesstheory_("study", "full_scale_records", "--help")
    assert result.exit_code == 0
    for option in ("--out", "--json", "--status", "--restamp", "--device", "--seconds", "--table"):
        assert option in result.stdout


def test_help_of_the_command():
    """It names the options that all studies have."""
    result = hesstheory_("study", "--help")
    assert result.exit_code == 0
    assert "--status" in result.stdout
    assert "--restamp" in result.stdout


def test_the_exit_code_is_that_of_the_study(tmp_path, monkeypatch):
    """0 for a state that is read, 1 for a record that is not reproduced."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "engine.json").write_text(json.dumps({}))
    assert hesstheory_("study", "engine", "--status").exit_code == 0
    assert hesstheory_("study", "engine", "--restamp").exit_code == 1


MISUSE = {
    "no such study": (["nothing"], "no study 'nothing': choose one of conformance_error_rates"),
    "list with options": (["list", "--status"], "study list takes no --status"),
    "no such option": (["engine", "--nonsense"], "unrecognized arguments: --nonsense"),
    "no such run": (["full_scale_records", "huge"], "no runs huge; there are resnet18_untrained"),
}


@pytest.mark.parametrize(("arguments", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse(arguments, message, tmp_path, monkeypatch):
    """Exit code 2 and what is wrong on stderr; no file is written."""
    monkeypatch.chdir(tmp_path)
    result = hesstheory_("study", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
