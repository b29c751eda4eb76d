"""A claim package of a stranger is found by its entry point, in a process of its own."""

from __future__ import annotations

import json
import os
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
    (package / "arithmetic.py").write_text("import no_such_module\n")
    done = hesstheory_("validate", "T14.b", "--profile", "smoke")
    assert (done.returncode, done.stdout) == (2, "")
    assert "claim package arithmetic_claims" in done.stderr
    assert "No module named 'no_such_module'" in done.stderr
    assert "Traceback" not in done.stderr
