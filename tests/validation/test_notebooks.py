"""The notebooks run from top to bottom, write nothing to stderr, and are quick."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

NOTEBOOKS = sorted((Path(__file__).parents[2] / "validation" / "notebooks").glob("*.py"))
SECONDS = 60  # of computing; the clock on the wall runs on while other processes compute


def test_there_are_notebooks():
    """The folder is found."""
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = jupytext.read(path)
    spent = new_code_cell("import time; time.process_time()")
    notebook.cells.append(spent)
    client = NotebookClient(
        notebook,
        timeout=10 * SECONDS,  # for one cell, on a machine with ten times the load
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    complaints = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not complaints
    assert any("image/png" in output.get("data", {}) for output in outputs), (
        "a notebook shows figures"
    )
    assert float(spent["outputs"][0]["data"]["text/plain"]) < SECONDS
