"""What PyTorch may round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from typing import Protocol

import torch

_FULL = ("ieee", "none")  # values of a switch that round nothing


class _Switch(Protocol):
    """Where PyTorch keeps what an operation may round float32 operands to."""

    fp32_precision: str


# Where the switches are, below `torch.backends`.
_SWITCHES = {
    "matrix products": "cuda.matmul",
    "convolutions": "cudnn.conv",
    "recurrent layers": "cudnn.rnn",
    "matrix products on CPU": "mkldnn.matmul",
    "convolutions on CPU": "mkldnn.conv",
    "recurrent layers on CPU": "mkldnn.rnn",
}


def _switches() -> Mapping[str, _Switch]:
    """The switches by operation."""
    return {name: attrgetter(path)(torch.backends) for name, path in _SWITCHES.items()}


@contextmanager
def full_precision() -> Iterator[None]:
    """TF32 and its like off, as certified numbers need; given back afterwards.

    cuDNN's convolutions round to TF32 by default, to three digits. PyTorch has older and newer
    switches. It refuses to read the older ones where the newer ones differ, and reads both itself.
    All are set, so that they agree.
    """
    before = {name: switch.fp32_precision for name, switch in _switches().items()}
    older = list(_older_switches())
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for switch in _switches().values():
        if switch.fp32_precision not in _FULL:
            switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        # The older switches write the newer ones, which therefore come last.
        for restore in older:
            restore()
        for name, switch in _switches().items():
            if switch.fp32_precision != before[name]:
                switch.fp32_precision = before[name]


def _older_switches() -> Iterator[Callable[[], None]]:
    """What gives the older switches back, of those that PyTorch lets us read."""
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
        yield partial(torch.set_float32_matmul_precision, matmul)
    with suppress(RuntimeError):
        yield partial(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)


def precision_switches() -> dict[str, bool | str]:
    """What PyTorch is allowed to round, and whether it promises to repeat itself."""
    allowed = {name: switch.fp32_precision for name, switch in _switches().items()}
    rounded = [f"{name} to {to}" for name, to in allowed.items() if to not in _FULL]
    return {
        "rounds float32": ", ".join(rounded) or "nothing",
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cuDNN benchmark": torch.backends.cudnn.benchmark,
        "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }
