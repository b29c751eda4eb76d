"""`validate --status` reads a ledger and runs nothing; its exit code is 1 under --strict alone."""

from __future__ import annotations

import json

import pytest
from command_line import hesstheory_

from hesstheory.claims.ledger import Ledger


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """The default ledger of a folder, in which T14.b is decided and T14.a by other code."""
    from hesstheory.claims.course import validate

    monkeypatch.chdir(tmp_path)
    validate(["T14.b"], profile="smoke")
    book = Ledger("runs/validate/reports/ledger.jsonl")
    other = {"id": "T14.a", "verdict": "CONDITIONAL", "fingerprint": "of other code"}
    book.append(book.last_records()["T14.b"] | other)
    return book


def test_status(ledger):
    before = ledger.path.read_bytes()
    result = hesstheory_("validate", "T14", "--status", "--json", "status.json")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if "│" in line]
    found = {row[1]: row[3] for row in rows}
    assert found == {"T14": "UNTESTED", "T14.a": "STALE", "T14.b": "HOLDS"}
    assert "3 claims: 1 HOLDS, 1 STALE, 1 UNTESTED. Ledger: runs/validate/reports/" in result.stdout
    with open("status.json", encoding="utf-8") as summary:
        assert json.load(summary)["counts"] == {"HOLDS": 1, "STALE": 1, "UNTESTED": 1}
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize(("name", "code"), [("T14.a", 1), ("T14.b", 0), ("T2", 0)])
def test_stale_counts_under_strict_alone(ledger, name, code):
    assert hesstheory_("validate", name, "--status", "--strict").exit_code == code
    assert hesstheory_("validate", name, "--status").exit_code == 0


def test_another_ledger(ledger, tmp_path):
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes(ledger.path.read_bytes())
    ledger.path.unlink()
    assert "1 HOLDS" in hesstheory_("validate", "--status", "--ledger", elsewhere).stdout
    assert "No ledger yet" in hesstheory_("validate", "--status").stdout


MISUSE = {
    "no such ledger": (["--status", "--ledger", "none.jsonl"], "none.jsonl: there is no such file"),
    "no such claim": (["T99", "--status"], "no claim 'T99'"),
    "strict alone": (["--strict"], "--strict belongs to --status"),
    "a file for a folder": (
        ["--status", "--out", "file"],
        "--out belongs to a run, and --status runs nothing: leave one of them out; --ledger names",
    ),
    "a folder": (["--status", "--out", "."], "--out belongs to a run"),
    "the default folder": (["--status", "--out", "runs/validate"], "--out belongs to a run"),
    "a profile": (["--status", "--profile", "ci"], "--profile belongs to a run"),
    "a seed": (["T14.b", "--seed", "0", "--status"], "--seed belongs to a run"),
    "a drawn seed": (["--status", "--vary-seed"], "--vary-seed belongs to a run"),
    "workers": (["--workers", "1", "--status"], "--workers belongs to a run"),
    "ledger alone": (["--ledger", "x.jsonl"], "--ledger belongs to --status"),
}


@pytest.mark.parametrize(("arguments", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = hesstheory_("validate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
