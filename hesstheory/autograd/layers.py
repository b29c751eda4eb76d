"""Convolutions and batch norms whose second derivatives cost what the first do: a Hessian product is two gradients.

y = x ∗ w is bilinear, ⟨g, x ∗ w⟩ trilinear in (x, w, g), and each of the three maps that it defines has the other two
for derivatives. PyTorch's own second derivative takes detours through transposed copies that cost half as much again;
that of a batch norm in eval mode, which is w·(x − m)/s + b, through a dozen passes over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Geometry:
    """What the three maps of one convolution share."""

    input_size: torch.Size
    weight_size: torch.Size
    options: tuple[Any, ...]  # stride, padding, dilation, transposed, output padding, groups

    def slopes(self, g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The slopes at the input and at the weight."""
        at_x, at_w, _ = torch.ops.aten.convolution_backward(
            g, x, w, None, *self.options, [True, True, False]
        )
        return at_x, at_w

    def slope(self, g: Tensor, x: Tensor | None, w: Tensor | None) -> Tensor:
        """The slope at the input or at the weight, whichever is None, of which PyTorch reads the size alone."""
        blank = g.new_empty(1)
        given = (
            blank.expand(self.input_size) if x is None else x,
            blank.expand(self.weight_size) if w is None else w,
        )
        mask = [x is None, w is None, False]
        slopes = torch.ops.aten.convolution_backward(g, *given, None, *self.options, mask)
        wanted: Tensor = slopes[0] if x is None else slopes[1]
        return wanted


def _apply(which: Any, a: Tensor, b: Tensor, ctx: Any) -> Tensor:
    mapped: Tensor = which.apply(a, b, ctx.geometry)
    return mapped


class _Output(Function):
    """(x, w) ↦ x ∗ w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return torch.convolution(x, w, None, *geometry.options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        at_x, at_w, _ = ctx.needs_input_grad
        if (
            at_x and at_w and not torch.is_grad_enabled()
        ):  # the last derivative: both at once cost less
            return *ctx.geometry.slopes(g, x, w), None
        return (
            _apply(_AtInput, g, w, ctx) if at_x else None,
            _apply(_AtWeight, x, g, ctx) if at_w else None,
            None,
        )


class _AtInput(Function):
    """(g, w) ↦ the slope at the input."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.geometry = geometry
        return geometry.slope(g, None, w)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        g, w = ctx.saved_tensors
        at_g, at_w, _ = ctx.needs_input_grad
        return (
            _apply(_Output, u, w, ctx) if at_g else None,
            _apply(_AtWeight, u, g, ctx) if at_w else None,
            None,
        )


class _AtWeight(Function):
    """(x, g) ↦ the slope at the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.geometry = geometry
        return geometry.slope(g, x, None)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, g = ctx.saved_tensors
        at_x, at_g, _ = ctx.needs_input_grad
        return (
            _apply(_AtInput, g, v, ctx) if at_x else None,
            _apply(_Output, x, v, ctx) if at_g else None,
            None,
        )


def _convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    dimensions = w.ndim - 2

    def each(option: Any) -> list[int]:
        return (
            [option] * dimensions
            if isinstance(option, int)
            else list(option) * (dimensions // len(option))
        )

    options = (each(stride), each(padding), each(dilation), False, each(0), groups)
    y: Tensor = _Output.apply(x, w, Geometry(x.shape, w.shape, options))  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias.reshape(-1, *[1] * dimensions)


class _Normalised(Function):
    """(x − m, w, b) ↦ w·(x − m)/s + b, with the digits of PyTorch's batch norm of x, in plain second derivatives."""

    @staticmethod
    def forward(
        ctx: Any,
        centred: Tensor,
        w: Tensor,
        b: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(centred, w, (variance + eps).rsqrt())
        return torch.batch_norm(
            x, w, b, mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled
        )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        centred, w, scale = ctx.saved_tensors
        others = [d for d in range(g.ndim) if d != 1]
        at_centred = g * _of_channels(w * scale, g) if ctx.needs_input_grad[0] else None
        return at_centred, scale * (g * centred).sum(others), g.sum(others), None, None, None, None


def _of_channels(values: Tensor, like: Tensor) -> Tensor:
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
    centred = x - _of_channels(running_mean, x)
    y: Tensor = _Normalised.apply(centred, weight, bias, x.detach(), running_mean, running_var, eps)  # type: ignore[no-untyped-call]
    return y


class BilinearLayers(TorchFunctionMode):
    """Within it, layers of the forward pass are these; all that they do not cover stays PyTorch's."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS and _is_plain(*args, **kwargs):
            return _convolution(*args, **kwargs)
        if func is F.batch_norm and _is_affine(*args, **kwargs):
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


def _is_affine(
    x: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> bool:
    """In eval mode, with statistics, weight and bias, all in one real dtype, and no autocast at work."""
    of_channels = (running_mean, running_var, weight, bias)
    if (
        training
        or type(x) is not Tensor
        or not all(isinstance(tensor, Tensor) for tensor in of_channels)
    ):
        return False
    same = x.is_floating_point() and all(tensor.dtype == x.dtype for tensor in of_channels)
    return same and not torch.is_autocast_enabled(x.device.type)


def _is_plain(x: Any = None, w: Any = None, *args: Any, **options: Any) -> bool:
    """A batch and a weight given by position, both real, the padding in numbers, and no autocast at work."""
    if type(x) is not Tensor or not isinstance(w, Tensor) or x.ndim != w.ndim or x.is_complex():
        return False
    padding = args[2] if len(args) > 2 else options.get("padding", 0)
    return not isinstance(padding, str) and not torch.is_autocast_enabled(x.device.type)
