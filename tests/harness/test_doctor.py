"""What a machine has, and whether known traces come out of it."""

from __future__ import annotations

import subprocess
import sys


def test_doctor_says_what_there_is_and_that_it_works():
    process = subprocess.run(
        [sys.executable, "-m", "hesstheory", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert "torch" in process.stdout
    assert "exact traces on cpu" in process.stdout
    assert "FAILED" not in process.stdout
