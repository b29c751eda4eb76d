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

# Of what is measured: an odd number in two batches of different sizes, so that a mean over batches
# that forgets their sizes is noticed.
_NUM_SAMPLES = 33
_BIG_SHARE = 0.6


def problem(
    name: str,
    generator: torch.Generator,
    *,
    steps: int = 0,
    num_samples: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """The risk of a named network, after some steps of training, on the first samples of its data.

    Parameters
    ----------
    name
        One of `zoo.SMALL`, `zoo.MEDIUM` and `zoo.TRAIN_MODE`.
    generator
        Draws the weights and the mini-batches of the training.
    steps
        Of training; 0 for the untrained network.
    num_samples
        How many samples; 33 by default, or as many as `batch_sizes` say.
    batch_sizes
        Sizes of the batches; by default a big one and a small one.
    dtype
        Of parameters and inputs.

    Returns
    -------
    Problem
        The mean loss over the samples, with layers as blocks.

    Raises
    ------
    KeyError
        There is no network of that name.
    ValueError
        A number is out of range, or the sizes do not add up.

    Examples
    --------
    >>> from hesstheory import zoo
    >>> zoo.problem("tiny_mlp", torch.Generator().manual_seed(0)).batch_sizes
    (20, 13)
    """
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
    """The first samples of a network's data, in batches of the given sizes.

    Parameters
    ----------
    name
        A key of `zoo.SMALL`, `zoo.MEDIUM` or `zoo.TRAIN_MODE`.
    num_samples
        How many samples; 33 by default, or as many as `batch_sizes` say.
    batch_sizes
        Sizes of the batches; by default a big one and a small one.
    dtype
        Of the inputs.

    Returns
    -------
    list of Batch
        Pairs of inputs and targets, of consecutive samples.

    Raises
    ------
    KeyError
        There is no network of that name.
    ValueError
        A number is out of range, or the sizes do not add up.

    Examples
    --------
    >>> from hesstheory import zoo
    >>> [len(inputs) for inputs, targets in zoo.batches("cnn", batch_sizes=[5, 2])]
    [5, 2]
    """
    if num_samples is None:
        num_samples = _NUM_SAMPLES if batch_sizes is None else sum(batch_sizes)
    data = network(name).data(num_samples=num_samples, dtype=dtype)
    return cut_into_batches(data.inputs, data.targets, batch_sizes)


def trained(
    name: str, generator: torch.Generator, steps: int, *, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A network drawn from the generator and trained on all of its data; nothing is cached.

    The rule is SGD with momentum 0.9 on mini-batches of 32, drawn with replacement. Runs with the
    same generator state pass through the same points: 300 steps go on where 100 steps end.

    Parameters
    ----------
    name
        One of `zoo.SMALL`, `zoo.MEDIUM` and `zoo.TRAIN_MODE`.
    generator
        Draws the weights, then the mini-batches.
    steps
        Of training; 0 for the untrained network.
    dtype
        Of the parameters.

    Returns
    -------
    nn.Module
        The model in eval mode, but for networks of `zoo.TRAIN_MODE`.

    Raises
    ------
    KeyError
        There is no network of that name.
    ValueError
        If `steps` is negative.

    Examples
    --------
    >>> from hesstheory import zoo
    >>> model = zoo.trained("tiny_mlp", torch.Generator().manual_seed(0), steps=10)
    >>> sum(p.numel() for p in model.parameters())
    12
    """
    chosen = network(name)
    if steps < 0:
        raise ValueError(f"steps is {steps}: pass 0 for the untrained network, or more")
    model = chosen.build().to(dtype)
    data = chosen.data(dtype=dtype)
    initialise(model, data.inputs, generator, gain=chosen.gain)
    if steps:
        _train(model, chosen, data, steps, generator)
    return model.train(chosen.train_mode)


def _train(
    model: nn.Module, chosen: Network, data: Data, steps: int, generator: torch.Generator
) -> None:
    """SGD on mini-batches, with batch norm in train mode and dropout off."""
    train_without_dropout(model)

    def batch_at(step: int) -> Batch:
        rows = torch.randint(len(data.inputs), (_TRAINING_BATCH,), generator=generator)
        return data.inputs[rows], data.targets[rows]

    optimizer = torch.optim.SGD(model.parameters(), lr=chosen.learning_rate, momentum=_MOMENTUM)
    descend(model, chosen.loss, batch_at, optimizer, range(steps))


def cut_into_batches(
    inputs: Tensor, targets: Tensor, batch_sizes: Sequence[int] | None
) -> list[Batch]:
    """Consecutive batches of the given sizes, by default a big one and a small one."""
    total = len(inputs)
    if batch_sizes is None:
        big = math.ceil(_BIG_SHARE * total)
        batch_sizes = [big, total - big] if big < total else [total]
    if sum(batch_sizes) != total or min(batch_sizes) < 1:
        raise ValueError(
            f"batch_sizes {list(batch_sizes)} must be positive and add up to the {total} samples"
        )
    sizes = list(batch_sizes)
    return list(zip(torch.split(inputs, sizes), torch.split(targets, sizes), strict=True))
