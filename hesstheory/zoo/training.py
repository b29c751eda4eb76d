"""The one training loop. Its callers bring batches, optimiser, schedule and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesstheory.problem.batches import Batch

LossFunction = Callable[[Tensor, Tensor], Tensor]


def descend(
    model: nn.Module,
    loss_fn: LossFunction,
    batch_at: Callable[[int], Batch],
    optimizer: Optimizer,
    steps: Iterable[int],
    *,
    learning_rate_at: Callable[[int], float] | None = None,
    after_step: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Steps of an optimiser on mini-batches; gradients are cleared at the end.

    The model stays in the mode that it is in. Random numbers are drawn by `batch_at` alone.

    Parameters
    ----------
    model
        The network, already on its device and in the mode that training wants.
    loss_fn
        `loss_fn(outputs, targets)`, the mean over a batch.
    batch_at
        Inputs and targets of a step, by its number.
    optimizer
        An optimiser of the model's parameters.
    steps
        Numbers of the steps. A run that goes on starts at the first step that is not yet done.
    learning_rate_at
        The learning rate of a step; that of the optimiser by default.
    after_step
        Is told the number of a step and its loss, for progress and checkpoints. An exception that
        it raises ends the training.

    Examples
    --------
    >>> line = torch.nn.utils.skip_init(nn.Linear, 1, 1, bias=False, dtype=torch.float64)
    >>> _ = torch.nn.init.zeros_(line.weight)
    >>> x = torch.ones(4, 1, dtype=torch.float64)
    >>> optimizer = torch.optim.SGD(line.parameters(), lr=0.25)
    >>> descend(line, nn.functional.mse_loss, lambda step: (x, 3 * x), optimizer, range(20))
    >>> round(line.weight.item(), 4)
    3.0
    """
    for step in steps:
        inputs, targets = batch_at(step)
        if learning_rate_at is not None:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step)
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = loss_fn(model(inputs), targets)
        torch.autograd.backward(loss)
        optimizer.step()
        if after_step is not None:
            after_step(step, loss.detach())
    optimizer.zero_grad()
