"""`hesstheory check`: exit codes, files, misuse, and code that dies or is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

import pytest
from user_estimators import checked

from hesstheory.conformance.results import exit_code
from hesstheory.conformance.settings import Settings
from hesstheory.conformance.subjects.right import RIGHT
from hesstheory.conformance.suite import Course

# Importing torch.func compiles something the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@pytest.mark.parametrize(
    ("name", "code", "checks"), [("right", 0, []), ("twice", 1, ["--check", "signs"])]
)
def test_exit_codes_and_json(name, code, checks, mine, tmp_path):
    files = {kind: tmp_path / f"found.{kind}" for kind in ("json", "xml")}
    options = ["--profile", "smoke", *checks, "--json", files["json"], "--junit", files["xml"]]
    found_code, output = checked(f"{mine}:{name}", *options)
    assert found_code == code, output
    found = json.loads(files["json"].read_text())
    assert found["passed"] is (code == 0)
    assert {"check", "status", "detail", "suspects"} <= set(found["checks"][0])
    assert {entry["status"] for entry in found["checks"]} <= {"passed", "failed", "skipped"}
    suite = ET.parse(files["xml"]).getroot()[0]
    assert int(suite.get("tests")) == len(found["checks"])
    assert (int(suite.get("failures")) > 0) is (code == 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["no/file.py:x"],
        ["{path}:old_style"],
        ["{path}:right", "--profile", "huge"],
        ["{path}:right", "--check", "check_nothing"],
        ["{path}:right", "--xfails", "absent.toml"],
        ["{path}:right", "--json", "absent/x.json"],
        ["{path}:right", "--num-probes", "0"],
        ["{path}:right", "--probe", "Cauchy"],
    ],
    ids=" ".join,
)
def test_misuse_has_exit_code_two_and_one_sentence(arguments, mine):
    code, output = checked(*(a.format(path=mine) for a in arguments))
    assert code == 2, output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["{path}:right", "--peer", "pyhessian"],
        ["peers", "--probe", "Gaussian"],
        ["peers", "--isolate"],
        ["peers", "--junit", "found.xml"],
    ],
    ids=" ".join,
)
def test_options_that_would_be_ignored_are_refused(arguments, mine):
    code, output = checked(*(a.format(path=mine) for a in arguments))
    assert (code, "does not go with" in output) == (2, True), output


def test_an_estimator_that_ends_its_process_late_does_not_pass(mine):
    code, output = checked(f"{mine}:late_success", "--profile", "smoke", "--check", "one_probe")
    assert (code, "kills its process" in output) == (1, True), output


def test_a_module_that_exits_is_misuse(tmp_path):
    (tmp_path / "exits.py").write_text("import sys; sys.exit(0)")
    code, output = checked(f"{tmp_path / 'exits.py'}:x")
    assert (code, "does not import" in output) == (2, True)


def test_a_chosen_check_that_is_skipped_decides_nothing(mine):
    code, output = checked(f"{mine}:right", "--profile", "smoke", "--check", "check_stderr_size")
    assert (code, "belongs to the ci profile" in output) == (3, True)


def test_too_noisy_to_tell_has_exit_code_three(mine):
    code, _ = checked(
        f"{mine}:right",
        "--profile",
        "ci",
        "--check",
        "check_stderr_size",
        "--time-limit",
        "0.1",
    )
    assert code in (
        0,
        3,
    )  # no standard error is claimed: skipped beside passed prerequisites
    noisy = Course(RIGHT["normals"], Settings("full", num_probes=2, time_limit=0.2))
    assert noisy.result("check_answers_are_legal").status in ("passed", "inconclusive")
    assert exit_code([noisy.result("check_unbiased")]) == 3


@pytest.mark.parametrize(
    ("signalled", "options"), [(os.killpg, []), (os.kill, ["--isolate"])], ids=["group", "one"]
)
def test_ctrl_c_is_one_line(signalled, options, mine, tmp_path):
    command = [sys.executable, "-m", "hesstheory", "check", "mine.py:sleeps", *options]
    # A job in the background of a script ignores interrupts, and so would its children.
    run = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not (tmp_path / "started").exists():
        time.sleep(0.1)
    signalled(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out, err) == (130, "", "hesstheory: interrupted, nothing was written\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
