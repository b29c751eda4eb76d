"""Infinities and NaN, also those that the loss does not show."""

from __future__ import annotations

import torch
from builders import mlp
from kinds.case import Case
from torch import nn
from torch.nn import functional as F

LOOK = "NaN|infinit|finite"
ALL = dict.fromkeys(("H", "exact H", "G", "R"), LOOK)


def _batch(number=8):
    return torch.randn(number, 3), torch.randint(2, (number,))


def infinite_input_behind_a_relu():
    """One entry of −∞ that a ReLU takes for zero: the loss is finite."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.abs_()
    x, y = _batch()
    x[2, 1] = -torch.inf
    return Case(net, F.cross_entropy, [(x, y)], refuses=ALL)


def infinite_input_in_the_second_batch():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.abs_()
    x, y = _batch()
    x[2, 1] = -torch.inf
    return Case(net, F.cross_entropy, [_batch(), (x, y)], refuses=ALL)


def infinite_logit_of_a_masked_class():
    """A class that a mask rules out: its probability is zero, and so is its curvature."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 4)

        def forward(self, x):
            return self.net(x).masked_fill(torch.arange(4) == 3, -torch.inf)

    return Case(Masked(), F.cross_entropy, [_batch()], refused="", refuses={})


def infinite_loss():
    x, y = _batch()
    return Case(
        mlp(),
        lambda f, y: F.cross_entropy(f, y) / torch.zeros(()),
        [(x, y)],
        refused="look for NaN",
    )


def infinite_derivative():
    """√0 has a value but no slope."""

    def loss(outputs, targets):
        return (0 * outputs).abs().sqrt().mean() + outputs.square().mean()

    return Case(mlp(), loss, [_batch()], refuses=ALL | {"exact H": f"{LOOK}|tr H may not"})


def parameter_that_is_not_a_number():
    net = mlp()
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    return Case(net, F.cross_entropy, [_batch()], refused="restore a checkpoint")
