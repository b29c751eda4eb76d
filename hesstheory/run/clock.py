"""The timer: seconds of a call, on the wall, on a device, or of the processor alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch

_T = TypeVar("_T")

# A run shorter than this is dominated by the clock's resolution (1 ms steps of CPU time on some
# systems) and by cold caches.
LEAST_SECONDS = 0.05
MOST_CALLS = 20  # in such a run, so that calls of a microsecond do not last longer than they must
_SHORTEST = 1e-4  # seconds that a call is taken to last at least: no division by zero


class Timed(NamedTuple, Generic[_T]):
    """Seconds of a call, and what it returned."""

    seconds: float
    result: _T


def timed(work: Callable[[], _T], device: torch.device) -> Timed[_T]:
    """Seconds and result of a call: on CUDA between two events of its stream, else on the wall."""
    if device.type != "cuda":
        return wall_timed(work)
    event: Callable[..., torch.cuda.Event] = torch.cuda.Event
    before = event(enable_timing=True)
    after = event(enable_timing=True)
    before.record()
    result = work()
    after.record()
    torch.cuda.synchronize(device)  # both events must have happened before they are read
    milliseconds = float(before.elapsed_time(after))
    return Timed(milliseconds / 1000, result)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, as `timed` counts them."""
    return timed(work, device).seconds


def wall_timed(work: Callable[[], _T], device: torch.device | None = None) -> Timed[_T]:
    """Wall seconds of a call, from an idle device to an idle device, and its result.

    This is what a user waits for: work of the host counts.
    """
    _wait_for(device)
    start = time.perf_counter()
    result = work()
    _wait_for(device)
    return Timed(time.perf_counter() - start, result)


def cpu_timed(work: Callable[[], _T]) -> Timed[_T]:
    """CPU seconds of a call, which other processes of the machine change little, and its result."""
    start = time.process_time()
    result = work()
    return Timed(time.process_time() - start, result)


def cpu_seconds_of(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    return cpu_timed(work).seconds


def best_of(repeats: int, measure: Callable[[], float]) -> float:
    """The least of several measurements: what disturbs a call makes it longer, never shorter."""
    return min(measure() for _ in range(repeats))


def cpu_seconds_in_a_run(
    work: Callable[[], object], at_least: float = LEAST_SECONDS, most_calls: int = MOST_CALLS
) -> float:
    """CPU seconds of one call among calls that last `at_least` seconds together.

    The first call tells how many are needed; where one is enough, it is the measurement.
    """
    first = cpu_seconds_of(work)
    repeats = min(most_calls, round(at_least / max(first, _SHORTEST)))
    if repeats < 2:
        return first

    def run() -> None:
        for _ in range(repeats):
            work()

    return cpu_seconds_of(run) / repeats


class RelativeClock:
    """Times calls in units of another call, which is timed before and after each of them.

    Both are repeated until they last long enough, so that both run on warm caches. What slows the
    machine down for a while slows both, and cancels. `units` keeps the seconds of all units.
    """

    def __init__(self, unit: Callable[[], object]) -> None:
        self.unit = unit
        self.units: list[float] = []
        unit()  # loads and allocates what the first call needs

    def __call__(self, work: Callable[[], object]) -> float:
        """CPU time of a call, in units."""
        before = cpu_seconds_in_a_run(self.unit)
        seconds = cpu_seconds_in_a_run(work)
        after = cpu_seconds_in_a_run(self.unit)
        self.units.append((before + after) / 2)
        return seconds / self.units[-1]


def _wait_for(device: torch.device | None) -> None:
    """Calls on a CUDA device return before their work is done."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
