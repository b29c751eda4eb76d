"""What PyTorch may round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch


def _switches() -> dict[str, Any]:
    """Where PyTorch may round float32 operands, by operation; `fp32_precision` of each is ieee or none where not."""
    backends: Any = torch.backends
    return {
        "matrix products": backends.cuda.matmul,
        "convolutions": backends.cudnn.conv,
        "recurrent layers": backends.cudnn.rnn,
        "matrix products on CPU": backends.mkldnn.matmul,
        "convolutions on CPU": backends.mkldnn.conv,
        "recurrent layers on CPU": backends.mkldnn.rnn,
    }


_FULL = ("ieee", "none")


@contextmanager
def full_precision() -> Iterator[None]:
    """TF32 and its like off, as certified numbers need; given back afterwards.

    cuDNN's convolutions round to TF32 by default, to three digits. PyTorch has older and newer switches, refuses to
    read the older ones where the newer ones differ, and reads both itself: all are set, so that they agree.
    """
    before = {name: switch.fp32_precision for name, switch in _switches().items()}
    older: list[Callable[[], None]] = []
    with suppress(RuntimeError):
        older.append(
            partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        )
    with suppress(RuntimeError):
        older.append(
            partial(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
        )
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for switch in _switches().values():
        if switch.fp32_precision not in _FULL:
            switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for restore in older:
            restore()
        for name, switch in _switches().items():
            if switch.fp32_precision != before[name]:
                switch.fp32_precision = before[name]


def precision_switches() -> dict[str, bool | str]:
    """What PyTorch is allowed to round, and whether it promises to repeat itself."""
    allowed = {name: switch.fp32_precision for name, switch in _switches().items()}
    return {
        "rounds float32": ", ".join(
            f"{name} to {to}" for name, to in allowed.items() if to not in _FULL
        )
        or "nothing",
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cuDNN benchmark": torch.backends.cudnn.benchmark,
        "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }
