"""Initial values of a network: parameters from a generator alone, running statistics from data."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

_BATCH_NORM = nn.modules.batchnorm._BatchNorm

M = TypeVar("M", bound=nn.Module)


def blank(module: type[M], *args: Any, **kwargs: Any) -> M:
    """A module with uninitialised parameters: its own initialisation would draw from the global random stream."""
    blank: M = skip_init(module, *args, **kwargs)  # type: ignore[no-untyped-call]
    return blank


def initialise(
    model: nn.Module, inputs: Tensor, generator: torch.Generator, *, gain: float = 1.0
) -> None:
    """Draw weights from N(0, gain²/fan-in), biases from N(0, 0.2²), norm weights from N(1, 0.2²).

    Running statistics of batch norm are those of `inputs`, and every named tensor of a tie is drawn once.
    The draws are float64 whatever the dtype of the model, so that precisions can be compared.
    """
    draw_parameters(model, generator, gain=gain, spread=0.2)
    set_running_statistics(model, inputs)


@torch.no_grad()
def draw_parameters(
    model: nn.Module, generator: torch.Generator, *, gain: float, spread: float
) -> None:
    """Weights from N(0, gain²/fan-in), biases from N(0, spread²), norm weights from N(1, spread²)."""
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
    momenta, was_training = [norm.momentum for norm in norms], model.training
    train_without_dropout(model)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
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
