"""The command line as tests call it: in this process, or as a module in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import typer.testing

import hesstheory
from hesstheory.cli import app

ROOT = Path(hesstheory.__file__).parents[1]

# Output that can be compared: no colours, and no line broken by a narrow terminal.
_PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}


def hesstheory_(*arguments):
    """The command in this process, without colours and on a wide terminal."""
    words = [str(argument) for argument in arguments]
    plain = _PLAIN | {"FORCE_COLOR": None}
    return typer.testing.CliRunner().invoke(app, words, env=plain, prog_name="hesstheory")


def smoke(*arguments):
    """`hesstheory validate --profile smoke`."""
    return hesstheory_("validate", "--profile", "smoke", *arguments)


def as_module(*arguments):
    """`python -m hesstheory` in a process of its own."""
    environment = os.environ | _PLAIN | {"PYTHONPATH": str(ROOT)}
    environment.pop("FORCE_COLOR", None)
    command = [sys.executable, "-m", "hesstheory", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)
