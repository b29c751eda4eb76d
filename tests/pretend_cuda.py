"""A CUDA device that is not there: its tensors say `cuda:0`, compute on the CPU, fail as on CUDA.

Refused are tensors of two devices in one operation, NumPy arrays of what lies on the device, and
random numbers there from a generator of the CPU. TF32 is rounded to where it is allowed. Not shown
are memory, streams, autocast and what kernels of CUDA round otherwise. To C++ the tensors lie on a
device for which every PyTorch can keep a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
MEMORY = 16 * 2**30
# What its errors say, as those of CUDA do.
MIXED = "at least two devices, cuda:0 and cpu"
NUMPY = "can't convert cuda:0 device"
STREAM = "device type for generator"
_INSIDE = torch.device("lazy", 0)  # what C++ takes CUDA for

_aten = torch.ops.aten
_MOVES = {_aten._to_copy, _aten.copy, _aten.copy_, _aten.lift_fresh}
_INDEXES = {
    _aten.index,
    _aten.index_put,
    _aten.index_put_,
    _aten._index_put_impl_,
    _aten._unsafe_index,
}
_PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm}
_CONVOLUTIONS = {_aten.convolution, _aten.convolution_backward}
_TAKES_NUMBERS = {_aten.fill, _aten.fill_, _aten.masked_fill, _aten.masked_fill_, *_INDEXES}


class OnDevice(Tensor):
    """A tensor on the pretended device; `inner` holds the numbers."""

    inner: Tensor
    device = CUDA  # type: ignore[assignment]
    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        outer = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=_INSIDE,
        )
        outer.inner = inner
        return outer

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})

    # Modules that are moved keep their parameters only where tensors can be taken apart.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], context: None, size, stride) -> OnDevice:
        return OnDevice(parts["inner"])

    def __deepcopy__(self, memo: dict) -> OnDevice:
        if id(self) not in memo:
            copied = OnDevice(self.inner.clone()).requires_grad_(self.requires_grad)
            copied.__dict__.update(
                {name: x for name, x in self.__dict__.items() if name != "inner"}
            )
            memo[id(self)] = copied
        return memo[id(self)]

    def __repr__(self, **options) -> str:
        return f"{self.inner!r} on {CUDA}"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **options):
        raise _fault(
            f"can't convert {CUDA} device type tensor to numpy. Use Tensor.cpu() first.", TypeError
        )

    def __array__(self, *options, **more):
        return self.numpy()


class Generator(torch.Generator):
    """A generator of the pretended device."""

    device = CUDA  # type: ignore[assignment]


# --- what is refused ------------------------------------------------------------------------------

faults: list[str] = []  # also those that the caller took for something else and survived


def _fault(message: str, kind: type[Exception] = RuntimeError) -> Exception:
    faults.append(message)
    return kind(message)


def _check_devices(func, args, tensors: list[Tensor]) -> None:
    """All on one device.

    Numbers in tensors without dimensions, and indices, may come from the CPU.
    """
    packet = func.overloadpacket
    if packet in _MOVES:
        return
    if packet in _INDEXES:
        if not isinstance(args[0], OnDevice):
            raise _fault(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        tensors = [x for x in (args[0], *args[2:]) if isinstance(x, Tensor)]
    takes_numbers = packet in _TAKES_NUMBERS or torch.Tag.pointwise in func.tags
    written = args[0] if func._schema.is_mutable else None
    for x in tensors:
        if not isinstance(x, OnDevice) and (x.ndim or not takes_numbers or x is written):
            where = f"found at least two devices, {CUDA} and cpu! ({func})"
            raise _fault(f"Expected all tensors to be on the same device, but {where}")


def _check_generator(args, kwargs: dict) -> None:
    if (generator := kwargs.get("generator")) is None:
        return
    device = kwargs.get("device") or (
        args[0].device if args and isinstance(args[0], Tensor) else "cpu"
    )
    wanted = torch.device(device).type
    found = generator.device.type
    if wanted != found:
        raise _fault(f"Expected a '{wanted}' device type for generator but found '{found}'")


# --- how it computes ------------------------------------------------------------------------------


def _computed(func, args, kwargs: dict):
    """The operation on the CPU.

    What is new lies where the operation says, else where its tensors do.
    """
    tensors = list(_tensors((*args, *kwargs.values())))
    outer = {id(_inner(x)): x for x in tensors}
    here = any(isinstance(x, OnDevice) for x in tensors)
    if here:
        _check_devices(func, args, tensors)
    if (device := kwargs.get("device")) is not None:
        here = device.type == _INSIDE.type
        kwargs = {**kwargs, "device": torch.device("cpu") if here else device}
    inside = _in_tf32 if here and _allows_tf32(func.overloadpacket) else _inner
    out = func(*_each(inside, args), **{name: _each(inside, x) for name, x in kwargs.items()})

    def back(x):
        if not isinstance(x, Tensor):
            return x
        if (known := outer.get(id(x))) is not None:
            assert known.shape == x.shape, f"{func} changes a shape in place"
            return known
        return OnDevice(x) if here else x

    return _each(back, out)


def _tensors(values) -> Iterator[Tensor]:
    for x in values:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)


def _each(function: Callable, x):
    return (
        type(x)(_each(function, part) for part in x) if isinstance(x, list | tuple) else function(x)
    )


def _inner(x):
    return x.inner if isinstance(x, OnDevice) else x


def _allows_tf32(packet) -> bool:
    if packet in _CONVOLUTIONS:
        return torch.backends.cudnn.allow_tf32
    return packet in _PRODUCTS and torch.backends.cuda.matmul.allow_tf32


def _in_tf32(x):
    """Ten bits of the mantissa, as the factors of a product have them."""
    x = _inner(x)
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class _Operations(TorchDispatchMode):
    """Operations without a tensor on the device, which may make one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Hides CUDA from C++, and looks at generators, which it would take for those of the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.device, torch.get_device_module):
            return func(*args, **kwargs)
        _check_generator(args, kwargs)
        if func is Tensor.cuda:
            return args[0].to(_INSIDE)
        return func(*map(_hidden, args), **{name: _hidden(x) for name, x in kwargs.items()})


def _hidden(x):
    named = isinstance(x, torch.device) or (isinstance(x, str) and x.partition(":")[0] == "cuda")
    return _INSIDE if named and torch.device(x).type == "cuda" else x


# --- torch.cuda -----------------------------------------------------------------------------------


class Event:
    """A mark in the stream; its time is known once the device was waited for."""

    clock = 0.0
    waited_for = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing
        self.time = None

    def record(self, stream=None) -> None:
        Event.clock += 1.0
        self.time = Event.clock

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""
        if not (self.timed and end.timed) or self.time is None or end.time is None:
            raise ValueError(
                "Both events must be created with argument 'enable_timing=True', and recorded."
            )
        if end.time > Event.waited_for:
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return end.time - self.time

    @staticmethod
    def synchronize(device=None) -> None:
        """For the device, waits for all events."""
        Event.waited_for = Event.clock


def _runtime() -> dict:
    """What of torch.cuda a program may ask for, as it is on one device."""
    about = SimpleNamespace(name="pretended", total_memory=MEMORY)
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_name": lambda device=None: about.name,
        "get_device_properties": lambda device=None: about,
        "default_generators": (Generator(),),
        "mem_get_info": lambda device=None: (MEMORY // 4, MEMORY),
        "memory_reserved": lambda device=None: MEMORY // 2,
        "memory_allocated": lambda device=None: MEMORY // 8,
        "max_memory_allocated": lambda device=None: MEMORY // 8,
        "empty_cache": lambda: None,
        "synchronize": Event.synchronize,
        "Event": Event,
    }


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """Within it there is one CUDA device."""
    faults.clear()
    before = (
        torch._C._only_lift_cpu_tensors()
    )  # torch.tensor(numbers, device=...) makes them on the CPU and moves them
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with mock.patch.multiple(torch.cuda, **_runtime()), _Calls(), _Operations():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


# --- fixtures, which the conftest of a folder imports ---------------------------------------------


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The pretended device; a fault fails the test even where the library survived it."""
    with pretend_cuda():
        yield CUDA
        assert not faults


@pytest.fixture
def faulty() -> Iterator[torch.device]:
    """The pretended device where faults are meant."""
    with pretend_cuda():
        yield CUDA
