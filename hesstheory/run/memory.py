"""Memory: what is free, what is held, and what glibc keeps."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB of what was freed for the next product instead of handing it back to the system,
    which costs as much time as the product on some machines; MALLOC_ variables of the environment rule it out.

    A freed block just below 32 MiB lifts the size from which on blocks are handed back at once (mallopt(3)).
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(AttributeError, OSError, TypeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, 2**30)


_M_TRIM_THRESHOLD = -1  # malloc.h


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; PyTorch keeps what was freed on CUDA, and gives it out again."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    try:
        with open("/proc/meminfo") as lines:
            return next(
                int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
            )
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at most: allocated on a CUDA device, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)


def resident_now() -> int | None:
    """Bytes of resident memory, from which on the peak counts; None without /proc."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        return resident("VmRSS")
    except OSError:
        return None


def resident(field: str) -> int:
    """Bytes of resident memory, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))
