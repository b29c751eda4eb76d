"""Problems of the registry, at a stage of training and on samples of their data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.zoo.data import Data
from hesstheory.zoo.initial import initialise, train_without_dropout
from hesstheory.zoo.registry import Network, network
from hesstheory.zoo.training import descend

# Of the training of all networks of the registry; their learning rates differ.
_TRAINING_BATCH = 32
_MOMENTUM = 0.9


def problem(
    name: str,
    generator: torch.Generator,
    *,
    steps: int = 0,
    num_samples: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """The risk of a named network, after `steps` of training, on the first samples of its data (33 by default)."""
    chosen = network(name)
    model = trained(name, generator, steps, dtype=dtype)
    samples = batches(name, num_samples, batch_sizes, dtype=dtype)
    return Problem(model, chosen.loss, samples, allow_train_mode=chosen.train_mode)


def batches(
    name: str,
    num_samples: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> list[Batch]:
    """The first samples of a network's data, in batches of the given sizes; by default a big one and a small one."""
    total = (
        num_samples
        if num_samples is not None
        else sum(batch_sizes)
        if batch_sizes is not None
        else 33
    )
    data = network(name).data(num_samples=total, dtype=dtype)
    return cut_into_batches(data.inputs, data.targets, batch_sizes)


def trained(
    name: str, generator: torch.Generator, steps: int, *, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A network drawn from the generator and trained for `steps` on all of its data; nothing is cached.

    Runs with the same generator state pass through the same points: 300 steps go on where 100 steps end.
    """
    chosen = network(name)
    if steps < 0:
        raise ValueError(f"steps is {steps}: pass 0 for the untrained network, or more")
    model, data = chosen.build().to(dtype), chosen.data(dtype=dtype)
    initialise(model, data.inputs, generator, gain=chosen.gain)
    if steps:
        _train(model, chosen, data, steps, generator)
    return model.train(chosen.train_mode)


def _train(
    model: nn.Module, chosen: Network, data: Data, steps: int, generator: torch.Generator
) -> None:
    """Mini-batches drawn with replacement."""
    train_without_dropout(model)

    def batch_at(step: int) -> Batch:
        rows = torch.randint(len(data.inputs), (_TRAINING_BATCH,), generator=generator)
        return data.inputs[rows], data.targets[rows]

    optimizer = torch.optim.SGD(model.parameters(), lr=chosen.learning_rate, momentum=_MOMENTUM)
    descend(model, chosen.loss, batch_at, optimizer, range(steps))


def cut_into_batches(
    inputs: Tensor, targets: Tensor, batch_sizes: Sequence[int] | None
) -> list[Batch]:
    total = len(inputs)
    if batch_sizes is None:
        big = math.ceil(0.6 * total)
        batch_sizes = [big, total - big] if big < total else [total]
    if sum(batch_sizes) != total or min(batch_sizes) < 1:
        raise ValueError(
            f"batch_sizes {list(batch_sizes)} must be positive and add up to the {total} samples"
        )
    sizes = list(batch_sizes)
    return list(zip(torch.split(inputs, sizes), torch.split(targets, sizes), strict=True))
