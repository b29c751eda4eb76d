"""A claim package of a stranger is found by its entry point, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import warm

import hesstheory

ROOT = Path(hesstheory.__file__).parents[1]


@pytest.fixture
def hesstheory_(package, tmp_path):
    """The command where that package is installed."""
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(package.parent), str(ROOT)])
    environment = os.environ | plain | {"PYTHONPATH": path}
    environment.pop("FORCE_COLOR", None)

    def run(*arguments):
        words = ["-m", "hesstheory", *arguments]
        if "--workers" in words:  # a forked process has no pool of its own
            command = [sys.executable, *words]
            options = {"capture_output": True, "text": True, "timeout": 300, "check": False}
            return subprocess.run(command, cwd=tmp_path, env=environment, **options)
        return warm.run(*words, folder=tmp_path, environment=environment, timeout=300)

    return run


def test_claims_of_a_stranger_are_decided(hesstheory_, tmp_path):
    """Beside those of the library, which stay as they are."""
    done = hesstheory_("validate", "A2", "T14.b", "--profile", "smoke", "--json", "summary.json")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    found = {entry["id"]: entry["verdict"] for entry in summary["claims"]}
    assert found == {"A2": "HOLDS", "A2.a": "HOLDS", "T14.b": "HOLDS"}
    assert (tmp_path / "runs" / "validate" / "reports" / "ledger.jsonl").is_file()


def test_claims_of_a_stranger_are_listed(hesstheory_):
    done = hesstheory_("claim", "list", "--markdown")
    assert done.returncode == 0, done.stderr
    assert "Two is two." in done.stdout
    assert "## arithmetic_claims" in done.stdout


def test_a_package_that_cannot_be_imported_is_named(hesstheory_, package):
    """It blocks itself: other claims are decided, and the exit code is that of what was asked."""
    (package / "arithmetic.py").write_text("import no_such_module\n")
    for names, code in (("T14.b",), 0), (("T14.b", "arithmetic_claims"), 3):
        done = hesstheory_("validate", *names, "--profile", "smoke")
        assert done.returncode == code, done.stderr
        assert re.search(r"T14.b\W+HOLDS", done.stdout)
        assert "claim package arithmetic_claims" in done.stderr
        assert "No module named 'no_such_module'" in done.stderr
        assert "Traceback" not in done.stderr


SLIPPED = """
from hesstheory.claims import claim
from arithmetic_claims.arithmetic import equals_two, two, three

settings = {"subject": two, "mutants": [three], "reason": "counting"}
claim("C1", "Two is two.", **settings)(equals_two("C1"))
claim("C2", "Two is two.", rests_on="A1", **settings)(equals_two("C2"))
claim("C3", "Two is two.", rests_on=["C2"], **settings)(equals_two("C3"))
"""


def test_a_malformed_claim_blocks_itself_and_what_rests_on_it(hesstheory_, package, tmp_path):
    """Also where the claims are decided in other processes."""
    (package / "slipped.py").write_text(SLIPPED)
    names = ["A1", "A3", "C1", "C2", "C3", "T14.b"]
    done = hesstheory_("validate", *names, "--workers", "2", "--json", "summary.json")
    assert done.returncode == 3, done.stderr
    assert "claim 'C2' of arithmetic_claims.arithmetic is malformed" in done.stderr
    assert "rests_on is the text 'A1': pass a list of names, ['A1']" in done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    found = {entry["id"]: entry["verdict"] for entry in summary["claims"]}
    blocked = {"C2": "UNTESTED", "C3": "INCONCLUSIVE"}
    assert found == dict.fromkeys(names, "HOLDS") | blocked
    listed = hesstheory_("claim", "list", "--markdown")
    assert listed.returncode == 3
    assert "### C1:" in listed.stdout
    assert "### C2:" not in listed.stdout
    assert "claim 'C2'" in listed.stderr
