"""What the doors of the conformance suite say of code that raises, dies, hangs or is stopped; how to see it again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from typer.testing import CliRunner

from hesstheory import LayerwiseTrace, check_estimator
from hesstheory.cli import app
from hesstheory.conformance.contract import Misuse
from hesstheory.conformance.isolation import Lost, forked
from hesstheory.conformance.subjects.peers import PEERS
from hesstheory.conformance.suite import Course, check_apart, exit_code, read_xfails

# Importing torch.func compiles something the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

ESTIMATORS = """
import os
import time
from hesstheory import LayerwiseTrace

def right(problem, *, num_probes, generator):
    return LayerwiseTrace(num_probes)(problem, generator).value.to_dict()

def raises(problem, *, num_probes, generator):
    number = {}["no such key"]  # line 10
    return number

def late_exit(problem, *, num_probes, generator):
    if num_probes == 1:
        os._exit(7)
    return right(problem, num_probes=num_probes, generator=generator)

def stubborn(problem, *, num_probes, generator):
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass

def sleeps(problem, *, num_probes, generator):
    os.mkdir("started")
    time.sleep(300)

class Method:
    def estimate(self, problem, *, num_probes, generator):
        return right(problem, num_probes=num_probes, generator=generator)

def surplus(problem, *, num_probes, generator, temperature):
    return right(problem, num_probes=num_probes, generator=generator)
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ESTIMATORS)
    return path


def _check(*arguments):
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


# --- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Method.estimate", "method without its instance"),
        ("surplus", "needs temperature, which nobody passes"),
    ],
)
def test_a_signature_that_does_not_fit_hears_what_is_surplus(name, message, mine):
    code, output = _check(f"{mine}:{name}")
    assert (code, message in output) == (2, True), output
    assert "estimator(problem, *, num_probes, generator)" in output


def test_an_exception_has_its_place_in_the_users_code(mine):
    code, output = _check(f"{mine}:raises", "--check", "answers_are_legal")
    assert (code, "raises KeyError" in output) == (1, True), output
    assert "mine.py:10" in "".join(output.split())
    mine.write_text("import no_such_module_of_mine")
    assert "mine.py:1" in "".join(_check(f"{mine}:right")[1].split())


def _local(kind):
    def local(problem, *, num_probes, generator):
        return LayerwiseTrace(num_probes)(problem, generator).value

    return {
        "local": local,
        "lambda": lambda problem, *, num_probes, generator: 0.0,
        "instance": LayerwiseTrace(),
    }[kind]


def _module_level(problem, *, num_probes, generator):
    return LayerwiseTrace(num_probes)(problem, generator).value


@pytest.mark.parametrize("kind", ["local", "lambda", "instance"])
def test_what_the_command_line_cannot_name_is_not_offered_to_it(kind):
    result = Course(_local(kind), seed=3).result("check_answers_are_legal")
    assert "in Python" in result.reproduce
    assert "seed=3, checks=['check_answers_are_legal']" in result.reproduce


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (_module_level, [f"{__name__}:_module_level"]),
        (PEERS["skerch.xhutchpp.gaussian"], ["peers", "--peer", "skerch.xhutchpp.gaussian"]),
        ("hesstheory:LayerwiseTrace", ["hesstheory:LayerwiseTrace"]),
    ],
    ids=["function", "peer", "name"],
)
def test_what_the_command_line_can_name_is_named_so(estimator, words):
    assert shlex.split(Course(estimator).command)[: 2 + len(words)] == [
        "hesstheory",
        "check",
        *words,
    ]


# --- misuse and expectations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["{path}:right", "--peer", "pyhessian"], ["peers", "--probe", "Gaussian"], ["peers", "--isolate"],
     ["peers", "--junit", "found.xml"]],
    ids=" ".join,
)  # fmt: skip
def test_options_that_would_be_ignored_are_refused(arguments, mine):
    code, output = _check(*(a.format(path=mine) for a in arguments))
    assert (code, "does not go with" in output) == (2, True), output


def test_checks_have_short_names_everywhere(tmp_path):
    path = tmp_path / "xfails.toml"
    path.write_text('signs = "a"\n[unbiased]\nreason = "b"\n')
    assert read_xfails(path) == {"check_signs": "a", "check_unbiased": "b"}
    path.write_text('signs = "a"\ncheck_signs = "b"\n')
    with pytest.raises(Misuse, match="twice"):
        read_xfails(path)
    (*_, result) = check_estimator(
        _module_level, checks=["one_probe"], expected_failed_checks={"one_probe": "why"}
    )
    assert (result.check, result.stale) == ("check_one_probe", True)


def test_an_expectation_that_is_stale_does_not_make_an_estimator_wrong(mine, tmp_path):
    path = tmp_path / "xfails.toml"
    path.write_text('one_probe = "needs two"')
    code, output = _check(
        f"{mine}:right", "--profile", "smoke", "--check", "one_probe", "--xfails", path
    )
    assert (code, "does better than expected: remove check_one_probe" in output) == (1, True), (
        output
    )
    assert "WRONG" not in output


# --- processes ------------------------------------------------------------------------------------------------------


def test_a_fork_answers_sends_refuses_and_gets_lost():
    heard = []

    def sends(send):
        send("one")
        return "two"

    def refuses(send):
        raise Misuse("no")

    assert (forked(sends, 20, heard.append), heard) == ("two", ["one"])
    with pytest.raises(Misuse, match="no"):
        forked(refuses, 20)
    with pytest.raises(Lost, match="exit code 5"):
        forked(lambda send: os._exit(5), 20)
    with pytest.raises(Lost, match="SIGKILL"):
        forked(lambda send: os.kill(os.getpid(), signal.SIGKILL), 20)
    with pytest.raises(Lost, match="hangs"):
        forked(lambda send: time.sleep(60), 0.1)


def test_a_process_that_ends_fails_the_check_that_it_ended_in(mine):
    results = check_apart(
        f"{mine}:late_exit", "smoke", checks=["one_probe", "same_state_same_answer"]
    )
    found = {result.check: (result.status, result.detail) for result in results}
    assert found["check_answers_are_legal"][0] == "passed"
    assert found["check_one_probe"] == ("failed", "kills its process (exit code 7)")
    assert found["check_same_state_same_answer"][0] == "blocked"
    assert results[1].reproduce.endswith("--isolate --check check_one_probe")
    assert exit_code(results) == 1


def test_code_that_swallows_everything_is_stopped_when_isolated(mine):
    results = check_estimator(
        f"{mine}:stubborn", checks=["answers_are_legal"], time_limit=2, isolate=True
    )
    assert [result.status for result in results] == ["failed"]
    assert "the process was killed" in results[0].detail


@pytest.mark.parametrize(
    ("signalled", "options"), [(os.killpg, []), (os.kill, ["--isolate"])], ids=["group", "one"]
)
def test_ctrl_c_is_one_line(signalled, options, mine, tmp_path):
    command = [sys.executable, "-m", "hesstheory", "check", "mine.py:sleeps", *options]
    # A job in the background of a script ignores interrupts, and so would its children.
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
                           cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    until = time.monotonic() + 60
    while time.monotonic() < until and not (tmp_path / "started").exists():
        time.sleep(0.1)
    signalled(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out, err) == (130, "", "hesstheory: interrupted, nothing was written\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


def test_pytest_can_isolate_and_names_the_test_to_run_again(mine, tmp_path):
    (tmp_path / "test_mine.py").write_text(
        textwrap.dedent(
            """
            from hesstheory import parametrize_with_checks
            from mine import late_exit

            @parametrize_with_checks([late_exit], profile="smoke", isolate=True, time_limit=20)
            def test_estimator(estimator, check):
                check(estimator)
            """
        )
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--hesstheory-seed=4",
         "-k", "one_probe or same_state", "test_mine.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "1 failed, 1 passed" in run.stdout, run.stdout + run.stderr
    assert "kills its process (exit code 7)" in run.stdout
    assert (
        "pytest 'test_mine.py::test_estimator[late_exit-check_one_probe]' --hesstheory-seed=4"
        in run.stdout
    )


def test_slow_work_is_no_hang_but_rest_is(monkeypatch):
    """On a machine that gives a process half of its time, a call may take twice as long."""
    from hesstheory.conformance import isolation as processes

    clock = time.process_time
    monkeypatch.setattr(processes.time, "process_time", lambda: clock() / 2)

    def work(seconds):
        end = clock() + seconds
        while clock() < end:
            pass

    with processes._alarm(0.2):
        work(0.3)
    with pytest.raises(processes._Alarm), processes._alarm(0.2):
        time.sleep(5)
    with pytest.raises(processes._Alarm), processes._alarm(0.2):
        work(5)
