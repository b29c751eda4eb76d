"""The timer: what it times, how often it calls, and on which clock."""

from __future__ import annotations

import time

import pytest
import torch
from pretend_cuda import Event

from hesstheory.run import clock

CPU = torch.device("cpu")


class Work:
    """Work of known length on clocks that are made up; it counts its calls."""

    def __init__(self, monkeypatch, seconds):
        self.lengths = seconds if callable(seconds) else lambda: seconds
        self.now = 0.0
        self.calls = 0
        monkeypatch.setattr(clock.time, "perf_counter", lambda: 10 * self.now)
        monkeypatch.setattr(clock.time, "process_time", lambda: self.now)

    def __call__(self):
        self.now += self.lengths()
        self.calls += 1
        return self.calls


def test_seconds_are_of_the_wall_or_of_the_processor(monkeypatch):
    work = Work(monkeypatch, 0.25)
    assert clock.wall_timed(work) == (2.5, 1)
    assert clock.timed(work, CPU) == (2.5, 2)
    assert clock.seconds_of(work, CPU) == 2.5
    assert clock.cpu_timed(work) == (0.25, 4)
    assert clock.cpu_seconds_of(work) == 0.25


def test_rest_is_no_cpu_time():
    """The wall sees it, up to the resolution of a sleep."""
    wall = clock.wall_timed(lambda: clock.cpu_seconds_of(lambda: time.sleep(0.05)))
    assert wall.seconds >= 0.049
    assert wall.result < 0.04


def test_seconds_are_those_of_the_events(device):
    assert clock.seconds_of(lambda: None, device) == 1e-3
    assert clock.timed(lambda: "done", device) == (1e-3, "done")


def test_the_wall_waits_for_the_device(device):
    """Before the work, too, which else would count what is still under way."""
    waited = []

    def work():
        waited.append(Event.waited_for)
        Event().record()

    Event().record()
    before = Event.clock
    clock.wall_timed(work, device)
    assert waited == [before]
    assert Event.waited_for == before + 1


def test_the_best_of_several():
    measured = iter([3.0, 1.0, 2.0, 0.0])
    assert clock.best_of(3, lambda: next(measured)) == 1.0


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [(1.0, 1), (0.04, 1), (0.02, 1 + 2), (0.01, 1 + 5), (1e-3, 1 + 20), (0.0, 1 + 20)],
)
def test_short_calls_are_repeated_until_they_last(seconds, calls, monkeypatch):
    work = Work(monkeypatch, seconds)
    assert clock.cpu_seconds_in_a_run(work) == pytest.approx(seconds)
    assert work.calls == calls


def test_the_first_call_of_a_run_does_not_count(monkeypatch):
    """It may load a library or fill a cache."""
    lengths = iter([0.02, 0.001, 0.003])
    assert clock.cpu_seconds_in_a_run(Work(monkeypatch, lambda: next(lengths))) == 0.002


def test_a_relative_clock_counts_units_beside_the_call(monkeypatch):
    """The machine slows down: the unit before the call takes 2 s, the one after it 4 s."""
    lengths = iter([1.0, 2.0, 30.0, 4.0])
    work = Work(monkeypatch, lambda: next(lengths))
    relative = clock.RelativeClock(work)
    assert relative(work) == 10.0
    assert relative.units == [3.0]
