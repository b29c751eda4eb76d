"""The README keeps its word: its Python runs, its links lead somewhere, CI runs its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_python_runs_as_a_reader_would_run_it(tmp_path):
    """All blocks in a process of their own: torch's default dtype, warnings as errors."""
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8"
    )

    assert done.returncode == 0, done.stderr
    assert not done.stderr
    lines = done.stdout.splitlines()
    for expected in ("T2 HOLDS", "T3 HOLDS", "HOLDS [", "batch norm '1' is in train mode"):
        assert any(line.startswith(expected) for line in lines), (
            f"{expected!r} is not in\n{done.stdout}"
        )


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[0])
def test_every_use_takes_less_than_ten_lines(block):
    assert len([line for line in block.splitlines() if line.strip()]) < 10


def test_ci_runs_the_two_set_up_commands():
    commands = [block.strip() for block in blocks("bash")]
    assert len(commands) == 2
    assert (
        commands[0]
        == "python -m pip install -c constraints.txt -e . && hesstheory validate --profile ci"
    )
    shown = subprocess.run(
        ["bash", ".ci/run", "--commands"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == commands


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    files = [link for link in links if not link.startswith("#")]
    assert [link for link in files if not (ROOT / link).exists()] == []


def test_links_lead_to_headings():
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}
    assert set(re.findall(r"\]\((#[^)]+)\)", TEXT)) <= anchors


def test_every_notebook_is_linked():
    notebooks = {path.name for path in (ROOT / "validation" / "notebooks").glob("*.py")}
    assert notebooks == set(re.findall(r"validation/notebooks/(\w+\.py)\)", TEXT))
