"""Time limits and processes: code that hangs, rests, dies or swallows everything."""

from __future__ import annotations

import os
import signal
import time

import pytest

from hesstheory import check_estimator
from hesstheory.conformance import isolation
from hesstheory.conformance.contract import Misuse
from hesstheory.conformance.isolation import Lost, forked
from hesstheory.conformance.results import exit_code
from hesstheory.conformance.suite import check_apart

# Importing torch.func compiles something the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def test_a_hanging_estimator_fails_in_bounded_time():
    def hangs(problem, *, num_probes, generator):
        while True:
            pass

    (result,) = check_estimator(hangs, checks=["check_answers_are_legal"], time_limit=0.2)
    assert result.status == "failed"
    assert "hangs" in result.detail


def test_an_estimator_that_kills_its_process_fails_when_isolated():
    def kills(problem, *, num_probes, generator):
        os._exit(9)

    (result,) = check_estimator(
        kills, checks=["check_answers_are_legal"], isolate=True, time_limit=20
    )
    assert result.status == "failed"
    assert "exit code 9" in result.detail


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


def test_code_that_swallows_everything_is_stopped_when_isolated(mine, monkeypatch):
    monkeypatch.setattr(isolation, "_LEAST_WALL", 4.0)  # three times the work that is allowed
    results = check_estimator(
        f"{mine}:stubborn", checks=["answers_are_legal"], time_limit=0.2, isolate=True
    )
    assert [result.status for result in results] == ["failed"]
    assert "the process was killed" in results[0].detail


def test_slow_work_is_no_hang_but_rest_is(monkeypatch):
    """On a machine that gives a process half of its time, a call may take twice as long."""
    clock = time.process_time
    monkeypatch.setattr(isolation.time, "process_time", lambda: clock() / 2)

    def work(seconds):
        """Processor time, however long it takes on a busy machine."""
        end = clock() + seconds
        while clock() < end:
            pass

    with isolation._alarm(0.2):
        work(0.3)
    with pytest.raises(isolation._Alarm), isolation._alarm(0.2):
        time.sleep(60)
    with pytest.raises(isolation._Alarm), isolation._alarm(0.2):
        work(60)


def test_work_has_one_generous_limit_on_the_clock(monkeypatch):
    """A machine under load gives it seconds; no machine gives it for ever."""
    started = time.process_time()
    # A process that is given a tenth of the time: it works, and does not rest.
    monkeypatch.setattr(
        isolation.time, "process_time", lambda: started + (isolation.time.monotonic() - begun) / 10
    )
    monkeypatch.setattr(isolation, "_LEAST_WALL", 3.0)
    begun = time.monotonic()

    def works_for_ever():
        with isolation._alarm(0.5):
            while True:
                pass

    with pytest.raises(isolation._Alarm):
        works_for_ever()
    assert 2.9 < time.monotonic() - begun < 60
