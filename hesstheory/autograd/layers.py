"""Convolutions and batch norms whose second derivatives cost what the first do.

A Hessian product of such a layer is two gradients. The convolution y = x ∗ w is bilinear, and
⟨g, x ∗ w⟩ is trilinear in (x, w, g). Each of the three maps that it defines has the other two for
derivatives. PyTorch's own second derivative goes through transposed copies and costs half as much
again. A batch norm in eval mode is w·(x − m)/s + b. PyTorch makes a dozen passes over the batch
for its second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# --- convolutions -------------------------------------------------------------------------------


_Sizes = Sequence[int]  # one for each dimension


@dataclass(frozen=True)
class Geometry:
    """What the three maps of one convolution share.

    Parameters
    ----------
    input_size, weight_size
        Shapes of x and w.
    options
        Stride, padding, dilation, transposed, output padding and groups, as aten takes them.
    """

    input_size: torch.Size
    weight_size: torch.Size
    options: tuple[_Sizes, _Sizes, _Sizes, bool, _Sizes, int]

    def slopes(self, g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The slopes at the input and at the weight."""
        # The mask asks for input and weight. A bias is added outside: its slope is a plain sum.
        at_x, at_w, _ = torch.ops.aten.convolution_backward(
            g, x, w, None, *self.options, [True, True, False]
        )
        return at_x, at_w

    def slope(self, g: Tensor, x: Tensor | None, w: Tensor | None) -> Tensor:
        """The slope at the input or at the weight, whichever is None."""
        # PyTorch reads the size alone of the one that is None: one entry, expanded, is enough.
        blank = g.new_empty(1)
        slopes = torch.ops.aten.convolution_backward(
            g,
            blank.expand(self.input_size) if x is None else x,
            blank.expand(self.weight_size) if w is None else w,
            None,
            *self.options,
            [x is None, w is None, False],
        )
        wanted: Tensor = slopes[0] if x is None else slopes[1]
        return wanted


class _Context(Protocol):
    """What the three maps keep from forward to backward."""

    geometry: Geometry
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


_Slopes = tuple[Tensor | None, Tensor | None, None]


def _apply(which: type[Function], a: Tensor, b: Tensor, geometry: Geometry) -> Tensor:
    """One of the three maps, with its graph."""
    mapped: Tensor = which.apply(a, b, geometry)  # type: ignore[no-untyped-call]
    return mapped


class _Output(Function):
    """(x, w) ↦ x ∗ w."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return torch.convolution(x, w, None, *geometry.options)

    @staticmethod
    def backward(ctx: _Context, g: Tensor) -> _Slopes:
        x, w = ctx.saved_tensors
        at_x, at_w, _ = ctx.needs_input_grad
        if at_x and at_w and not torch.is_grad_enabled():
            # The last derivative: both slopes at once cost less than one after the other.
            return *ctx.geometry.slopes(g, x, w), None
        return (
            _apply(_AtInput, g, w, ctx.geometry) if at_x else None,
            _apply(_AtWeight, x, g, ctx.geometry) if at_w else None,
            None,
        )


class _AtInput(Function):
    """(g, w) ↦ the slope at the input."""

    @staticmethod
    def forward(ctx: _Context, g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.geometry = geometry
        return geometry.slope(g, None, w)

    @staticmethod
    def backward(ctx: _Context, u: Tensor) -> _Slopes:
        g, w = ctx.saved_tensors
        at_g, at_w, _ = ctx.needs_input_grad
        return (
            _apply(_Output, u, w, ctx.geometry) if at_g else None,
            _apply(_AtWeight, u, g, ctx.geometry) if at_w else None,
            None,
        )


class _AtWeight(Function):
    """(x, g) ↦ the slope at the weight."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.geometry = geometry
        return geometry.slope(g, x, None)

    @staticmethod
    def backward(ctx: _Context, v: Tensor) -> _Slopes:
        x, g = ctx.saved_tensors
        at_x, at_g, _ = ctx.needs_input_grad
        return (
            _apply(_AtInput, g, v, ctx.geometry) if at_x else None,
            _apply(_Output, x, v, ctx.geometry) if at_g else None,
            None,
        )


def _convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """The signature of torch.conv1d, conv2d and conv3d, by the maps above."""
    dimensions = w.ndim - 2

    def each(option: int | Sequence[int]) -> list[int]:
        """One number for each dimension."""
        # conv2d takes a single number in a list, too.
        values = [option] if isinstance(option, int) else list(option)
        return values * (dimensions // len(values))

    options = (each(stride), each(padding), each(dilation), False, each(0), groups)
    y = _apply(_Output, x, w, Geometry(x.shape, w.shape, options))
    return y if bias is None else y + bias.reshape(-1, *[1] * dimensions)


# --- batch norm in eval mode --------------------------------------------------------------------


class _Normalised(Function):
    """(x − m, w, b) ↦ w·(x − m)/s + b, with the digits of PyTorch's batch norm of x."""

    @staticmethod
    def forward(
        ctx: _Context,
        centred: Tensor,
        w: Tensor,
        b: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
    ) -> Tensor:
        # 1/s, with s the deviation: the statistics are constants in eval mode.
        ctx.save_for_backward(centred, w, (variance + eps).rsqrt())
        # PyTorch's own digits: one unit that rounding switches on would change the matrix.
        return torch.batch_norm(
            x, w, b, mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled
        )

    @staticmethod
    def backward(ctx: _Context, g: Tensor) -> tuple[Tensor | None, ...]:
        centred, w, scale = ctx.saved_tensors
        others = [axis for axis in range(g.ndim) if axis != 1]  # all but the channels
        at_centred = g * _of_channels(w * scale, g) if ctx.needs_input_grad[0] else None
        at_w = scale * (g * centred).sum(others)
        return at_centred, at_w, g.sum(others), None, None, None, None


def _of_channels(values: Tensor, like: Tensor) -> Tensor:
    """One value for each channel, spread over the axes behind that of the channels."""
    return values.reshape(-1, *[1] * (like.ndim - 2))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """The signature of F.batch_norm, in eval mode."""
    centred = x - _of_channels(running_mean, x)
    y: Tensor = _Normalised.apply(  # type: ignore[no-untyped-call]
        centred, weight, bias, x.detach(), running_mean, running_var, eps
    )
    return y


# --- where they are used ------------------------------------------------------------------------


class BilinearLayers(TorchFunctionMode):
    """Within it, layers of the forward pass are these; all others stay PyTorch's."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS and _is_plain(*args, **kwargs):
            return _convolution(*args, **kwargs)
        if func is F.batch_norm and _is_affine(*args, **kwargs):
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


def _is_plain(x: object = None, w: object = None, *args: object, **options: object) -> bool:
    """A batch and a weight given by position, both real; padding in numbers; no autocast."""
    # Subclasses of Tensor may have rules of their own.
    if type(x) is not Tensor or not isinstance(w, Tensor):
        return False
    if x.ndim != w.ndim or x.is_complex():
        return False
    # The third of the arguments behind x and w: bias, stride, padding.
    padding = args[2] if len(args) > 2 else options.get("padding", 0)
    return not isinstance(padding, str) and not torch.is_autocast_enabled(x.device.type)


def _is_affine(
    x: object = None,
    running_mean: object = None,
    running_var: object = None,
    weight: object = None,
    bias: object = None,
    training: object = False,
    momentum: object = 0.1,
    eps: object = 1e-5,
) -> bool:
    """In eval mode, with statistics, weight and bias, all in one real dtype; no autocast."""
    if training or type(x) is not Tensor or not x.is_floating_point():
        return False
    of_channels = (running_mean, running_var, weight, bias)
    if not all(isinstance(tensor, Tensor) and tensor.dtype == x.dtype for tensor in of_channels):
        return False
    return not torch.is_autocast_enabled(x.device.type)
