"""Seconds of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, by events on a CUDA device."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    event: Callable[..., Any] = torch.cuda.Event
    before, after = event(enable_timing=True), event(enable_timing=True)
    before.record()
    work()
    after.record()
    torch.cuda.synchronize(device)
    return float(before.elapsed_time(after)) / 1000
