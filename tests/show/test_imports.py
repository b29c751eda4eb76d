"""What drawing costs others: no torch, nothing of ours, and no state of pyplot."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

from sources import LIBRARY, TREES, imported

ROOMS = [name for name in LIBRARY if name.split(".")[1:2] == ["show"]]

LOAD_ALL = """
import importlib, json, sys
for name in {rooms}:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def test_rooms_were_found():
    assert {"hesstheory.show.gallery", "hesstheory.show.pages", "hesstheory.show.axes"} < {*ROOMS}


def test_no_torch_is_loaded():
    """By no file of the wing, nor by what these load."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL.format(rooms=ROOMS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert "seaborn" in loaded, "this test sees nothing"
    assert "torch" not in loaded
    ours = {name for name in loaded if name.split(".")[0] == "hesstheory"}
    assert ours == {"hesstheory", *ROOMS}


def test_pyplot_is_not_used():
    """Its figures live for ever, and its settings are everyone's."""
    found = {name for room in ROOMS for name in imported(room, TREES[room])}
    assert not {name for name in found if name.startswith("matplotlib.pyplot")}


def test_no_file_is_written():
    """Files are the business of whoever calls."""
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for room in ROOMS
        for node in ast.walk(TREES[room])
        if isinstance(node, ast.Attribute | ast.Name)
    }
    assert "savefig" in names, "this test sees nothing"
    assert names & {"open", "write_text", "write_bytes", "mkdir", "unlink"} == set()
