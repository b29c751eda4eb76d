"""Initial values of a network: parameters from a generator alone, running statistics from data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

_BATCH_NORM = nn.modules.batchnorm._BatchNorm

_BIAS_SPREAD = 0.2  # of small networks: biases of zero would make curvature special

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)


def blank(build: Callable[P, M], *args: P.args, **kwargs: P.kwargs) -> M:
    """A module with uninitialised parameters and buffers.

    Its own initialisation would draw from the global random stream.

    Parameters
    ----------
    build
        A class of modules, or a function that builds a network of such.
    *args, **kwargs
        Its arguments.

    Examples
    --------
    >>> blank(nn.Linear, 2, 3, bias=False).weight.shape
    torch.Size([3, 2])
    """
    with torch.device("meta"):  # where tensors have shapes and no numbers
        module = build(*args, **kwargs)
    # `to_empty` does the same and first imports the compiler of PyTorch, a second in every process.
    return module.apply(_materialise)


def _materialise(module: nn.Module) -> None:
    """Replaces a module's own tensors, which have no numbers, by uninitialised ones."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(_uninitialised(parameter), parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, _uninitialised(buffer))


def _uninitialised(tensor: Tensor) -> Tensor:
    """A tensor of that shape and dtype on the CPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def initialise(
    model: nn.Module, inputs: Tensor, generator: torch.Generator, *, gain: float = 1.0
) -> None:
    """Draw weights from N(0, gain²/fan-in), biases from N(0, 0.2²), norm weights from N(1, 0.2²).

    Every tensor of a tie is drawn once. The draws are float64 whatever the dtype of the model, so
    that precisions can be compared.

    Parameters
    ----------
    model
        Its parameters and running statistics are overwritten.
    inputs
        Running statistics of batch norm are those of these samples.
    generator
        The only source of random numbers.
    gain
        Scale of the weights.

    Examples
    --------
    >>> model = blank(nn.Linear, 2, 3)
    >>> initialise(model, torch.ones(4, 2), torch.Generator().manual_seed(0))
    >>> bool(model.weight.isfinite().all())
    True
    """
    draw_parameters(model, generator, gain=gain, spread=_BIAS_SPREAD)
    set_running_statistics(model, inputs)


@torch.no_grad()
def draw_parameters(
    model: nn.Module, generator: torch.Generator, *, gain: float, spread: float
) -> None:
    """Weights from N(0, gain²/fan-in), biases and norm weights around 0 and 1 with `spread`."""
    scales = {id(m.weight) for m in model.modules() if isinstance(m, nn.LayerNorm | _BATCH_NORM)}
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim > 1:
            parameter.copy_(noise.mul_(gain).div_(math.sqrt(parameter[0].numel())))
        else:
            parameter.copy_(float(id(parameter) in scales) + spread * noise)


@torch.no_grad()
def set_running_statistics(model: nn.Module, inputs: Tensor) -> None:
    """Means and variances of every batch norm over `inputs`, from one forward pass."""
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORM)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    train_without_dropout(model)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0  # one pass is enough: the new statistics replace the old ones
    model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)


def train_without_dropout(model: nn.Module) -> None:
    """Train mode, but for dropout, which would read the global random stream."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
