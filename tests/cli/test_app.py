"""The doors of the command line: help, misuse that all commands share, and the ways to start it."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
from command_line import ROOT, as_module, hesstheory_

from hesstheory.cli import main

OPTIONS = (
    *("--profile", "--vary-seed", "--seed", "--json", "--out", "--workers"),
    *("--status", "--ledger", "--strict"),
)


def test_help():
    for arguments in (["--help"], ["validate", "--help"]):
        result = hesstheory_(*arguments)
        assert result.exit_code == 0
        assert "Usage: " in result.stdout
    assert all(option in result.stdout for option in OPTIONS)
    assert "Exit codes: 0 right, 1 wrong, 2 misuse, 3 not decidable" in hesstheory_("--help").stdout
    assert "Usage: " in hesstheory_().output


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["validate", "--help"], ["validate", "--quick"], ["nonsense"]],
    ids=str,
)
def test_module_is_the_same_door(arguments):
    """Up to the name of the program and the margins of the terminal."""

    def words(text):
        return re.sub(r"\bpython[\d.]* -m hesstheory", "hesstheory", " ".join(text.split()))

    done = as_module(*arguments)
    here = hesstheory_(*arguments)
    assert done.returncode == here.exit_code == (0 if "--help" in arguments else 2)
    assert words(done.stdout) == words(here.stdout)
    assert words(done.stderr) == words(here.stderr)


def test_command_is_the_same_door(monkeypatch, capsys):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["scripts"] == {"hesstheory": f"{main.__module__}:{main.__name__}"}
    monkeypatch.setattr(sys, "argv", ["hesstheory", "validate", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "--vary-seed" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"]], ids=str)
def test_unknown_commands_are_misuse(arguments):
    result = hesstheory_(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such" in result.stderr


OUTPUTS = {
    "check, json": (["check", "none.py:none", "--json"], "/proc/x"),
    "check, junit": (["check", "none.py:none", "--junit"], "/proc/x"),
    "check, json in no folder": (["check", "none.py:none", "--json"], "none/x"),
    "mutants, json": (["mutants", "Nothing", "--json"], "/proc/x"),
    "mutants, out": (["mutants", "Nothing", "--out"], "/proc/x"),
}


@pytest.mark.parametrize(("arguments", "path"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_of_the_other_commands_are_tried_first(arguments, path, tmp_path, monkeypatch):
    """Before they miss the estimator."""
    monkeypatch.chdir(tmp_path)
    result = hesstheory_(*arguments, path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(
        rf"{arguments[-1]} {path}\S*: .*; (name another folder|create it first)", result.stderr
    )
