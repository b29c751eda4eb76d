"""The exercises of CONTRIBUTING.md, done as a newcomer would, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shlex
import shutil

import pytest
import warm
from sources import ROOT

pytestmark = pytest.mark.slow

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = dict(re.findall(r"^## (Add an? \w+)\n(.*?)(?=^## )", TEXT, re.M | re.S))
FILE = re.compile(r"^File `([^`]+)`:\n\n```python\n(.*?)^```$", re.M | re.S)
INSERTION = re.compile(r"^Below `([^`]+)` in `([^`]+)`:\n\n```python\n(.*?)^```$", re.M | re.S)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)
MOST_FILES = 2


def test_there_are_four_exercises():
    assert list(PAGES) == ["Add an estimator", "Add a claim", "Add a problem", "Add a check"]


@pytest.fixture
def checkout(tmp_path):
    """What a newcomer edits: the library, its claims and its tests."""
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("hesstheory", "validation", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(command, folder):
    """The output of a line of the page, which must succeed."""
    words = shlex.split(command)
    python = {"hesstheory": ["-m", "hesstheory"], "python": []}
    paths = os.pathsep.join([str(folder), str(folder / "validation")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = warm.run(*python[words[0]], *words[1:], folder=folder, environment=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_an_exercise_works_as_printed(page, checkout):
    files = FILE.findall(page)
    insertions = INSERTION.findall(page)
    assert 1 <= len(files) + len(insertions) <= MOST_FILES
    for name, text in files:
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for line, name, text in insertions:
        path = checkout / name
        before = path.read_text(encoding="utf-8")
        assert before.count(f"{line}\n") == 1
        path.write_text(before.replace(f"{line}\n", f"{line}\n{text}"), encoding="utf-8")
    commands = [line for block in COMMANDS.findall(page) for line in block.splitlines()]
    assert commands
    for command in commands:
        run(command, checkout)
