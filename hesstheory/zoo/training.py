"""The training loop."""

from __future__ import annotations

import torch
from torch import nn

from hesstheory.zoo.data import Data
from hesstheory.zoo.initial import train_without_dropout
from hesstheory.zoo.registry import Network


def descend(
    model: nn.Module, network: Network, data: Data, steps: int, generator: torch.Generator
) -> None:
    """Gradient descent with momentum 0.9 on mini-batches of 32 drawn with replacement."""
    train_without_dropout(model)
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    for _ in range(steps):
        rows = torch.randint(len(data.inputs), (32,), generator=generator)
        with torch.enable_grad():
            loss = network.loss(model(data.inputs[rows]), data.targets[rows])
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            velocity.mul_(0.9).add_(gradient)
            parameter.data.sub_(network.learning_rate * velocity)
