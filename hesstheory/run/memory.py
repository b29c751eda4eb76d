"""Memory: what is free, what is held, and what glibc keeps."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD = -1  # malloc.h
_KEPT = 2**30  # bytes that glibc may keep: what the products of a small network free
_JUST_BELOW_THE_LARGEST = 31 * 2**20  # bytes; glibc's threshold for mapped blocks grows to 32 MiB


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB of what was freed for the next product.

    On some machines, handing it back to the system costs as much time as the product itself.
    MALLOC_ variables of the environment rule it out.

    A freed block just below 32 MiB lifts the size from which on blocks are handed back at once
    (mallopt(3), dynamic mmap threshold).
    """
    torch.empty(_JUST_BELOW_THE_LARGEST, dtype=torch.uint8)
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(AttributeError, OSError, TypeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, _KEPT)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device without swapping.

    PyTorch keeps what was freed on CUDA and gives it out again, so that this counts as free.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(psutil.virtual_memory().available)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at most: allocated on a CUDA device, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)  # kB but for macOS (getrusage(2))


def resident_now() -> int | None:
    """Bytes of resident memory, from which on `resident_peak` counts; None without /proc."""
    try:
        # 5 makes the kernel forget the peak so far (proc(5)); psutil has nothing for this.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return int(psutil.Process().memory_info().rss)


def resident_peak() -> int:
    """Most bytes of resident memory since `resident_now` was called; needs /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
