"""The wheel, built and installed in an environment of its own, works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from sources import ROOT

pytestmark = pytest.mark.slow

MINE = """
from hesstheory import LayerwiseTrace

estimator = LayerwiseTrace()
"""


def run(*command, cwd, environment=None):
    """What a command prints; the test fails with its output where the command does."""
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    run(sys.executable, *command, "--wheel-dir", str(folder), str(ROOT), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment that holds the wheel and sees the dependencies, but not the checkout.

    A folder named in a `.pth` file is searched, and its own `.pth` files, such as that of an
    editable install, are not read.
    """
    home = tmp_path_factory.mktemp("home")
    run(sys.executable, "-m", "venv", str(home / "venv"), cwd=home)
    python = home / "venv" / "bin" / "python"
    own = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home
    ).strip()
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel), cwd=home)
    Path(own, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "venv" / "bin"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder of a user's, with a `validation` of his own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "validation").mkdir()
    (folder / "validation" / "__init__.py").write_text("raise RuntimeError('not yours')\n")
    (folder / "mine.py").write_text(MINE)
    return folder


COMMANDS = {
    "validate": ["validate", "T1", "--profile", "smoke"],
    "check": ["check", "mine.py:estimator", "--profile", "smoke"],
    "harness": ["harness", "--model", "vgg11", "--width", "1", "--batch", "2", "--probes", "2"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_run_from_any_folder(installed, elsewhere, command):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"
    run(installed / "hesstheory", *command, cwd=elsewhere, environment=environment)


def test_it_is_the_wheel_that_runs(installed, elsewhere):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = ["-c", "import hesstheory; print(hesstheory.__file__)"]
    found = run(installed / "python", *command, cwd=elsewhere, environment=environment)
    assert Path(found.strip()).is_relative_to(installed.parent)


def test_the_wheel_takes_no_global_name(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {
        "hesstheory",
        "hesstheory_validation",
    }
