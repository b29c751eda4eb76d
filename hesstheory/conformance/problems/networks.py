"""Small networks, each with a trait that some estimators overlook."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory.conformance.problems.numbers import ends_of, grid, set_parameters
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory.zoo.initial import blank
from hesstheory.zoo.networks import linear
from hesstheory.zoo.ties import TwoUses, half_squared_error


def _net(**modules: nn.Module) -> nn.Sequential:
    """The modules one after another, in float64."""
    return nn.Sequential(OrderedDict(modules)).double()


def _labels(count: int, classes: int) -> Tensor:
    """Class numbers in an order that no batch repeats: 7 has no factor in common with 2 or 3."""
    return torch.arange(count) * 7 % classes


def _two_batches(inputs: Tensor, targets: Tensor, first: int) -> list[tuple[Tensor, Tensor]]:
    """The samples in two batches, `first` of them in the first one."""
    return [(inputs[:first], targets[:first]), (inputs[first:], targets[first:])]


def smooth_mlp(dtype: torch.dtype = torch.float64) -> Problem:
    """A tanh network with cross-entropy, 6 and 3 samples; the Gauss-Newton matrix is far off."""
    net = _net(layer1=linear(5, 6), act=nn.Tanh(), layer2=linear(6, 3))
    model = set_parameters(net, 61).to(dtype)
    x = grid([9, 5], 66, step=0.25).to(dtype)
    return Problem(model, F.cross_entropy, _two_batches(x, _labels(9, 3), 6))


def skewed() -> Problem:
    """One linear output of inputs near (1, ..., 1).

    H is nearly a multiple of 11ᵀ, and one probe nearly a χ² variable of one degree of freedom.
    """
    model = set_parameters(_net(layer=linear(16, 1)), 111)
    x = 1 + grid([12, 16], 112, most=2, step=1 / 16)
    return Problem(model, half_squared_error, _two_batches(x, grid([12, 1], 113), 7))


def tied() -> Problem:
    """A weight used by two layers: its instances' blocks alone give about half of the trace."""
    weight, beside = torch.zeros(2, 6, 8, dtype=torch.float64)
    model = set_parameters(TwoUses(weight, series=False, beside=beside), 71)
    noise = grid([16, 8], 72, most=2)
    x = 2 * torch.eye(8, dtype=torch.float64).repeat(2, 1)
    batches = _two_batches(torch.stack([x, x + noise], 1), grid([16, 6], 73), 10)
    return Problem(model, half_squared_error, batches)


class TransposedReuse(nn.Module):
    """Wᵀ tanh(W x), with one name for W: the second use is a function's, not a module's."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.T)


def autoencoder() -> Problem:
    """A weight used twice in series."""
    model = set_parameters(TransposedReuse().double(), 81, step=1 / 16)
    x = grid([8, 6], 82, step=0.25)
    return Problem(model, half_squared_error, _two_batches(x, x, 5))


def batch_norm() -> Problem:
    """Convolution with batch norm in eval mode, running statistics far from those of the batch."""
    net = _net(
        conv=blank(nn.Conv2d, 1, 2, 3),
        norm=blank(nn.BatchNorm2d, 2),
        act=nn.Softplus(),
        flatten=nn.Flatten(),
        head=linear(8, 2),
    )
    batches = _two_batches(grid([7, 1, 4, 4], 96, step=0.25), _labels(7, 2), 4)
    return Problem(set_parameters(net, 91), F.cross_entropy, batches)


class Unreached(nn.Module):
    """A layer that is never called, one that enters linearly, and one that is curved."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = linear(3, 2)
        self.linear = linear(6, 4)
        self.curved = linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.curved(x).square() + self.linear(x)
        return out


def mean_of_all(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of the sum of the outputs, each times its target."""
    return (outputs * targets).sum(1).mean()


def unreached() -> Problem:
    """A layer that the loss does not reach, and one without curvature."""
    model = set_parameters(Unreached().double(), 101)
    batches = _two_batches(grid([9, 6], 102), 1.5 + grid([9, 4], 103), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a layer is not reached is the point
        return Problem(model, mean_of_all, batches)


def regrouped() -> Problem:
    """Two blocks of two layers that are not the layers."""
    problem = smooth_mlp()
    partition = Partition.by(
        problem.model, lambda name: "biases" if name.endswith("bias") else "weights"
    )
    return problem.with_partition(partition)


class Mixed(nn.Module):
    """scale · V softplus(conv(x)) + offset.

    A scalar, a tensor of rank three, and V whose memory lies by columns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.matrix = nn.Parameter(torch.zeros(12, 4).mT)
        self.offset = nn.Parameter(torch.zeros(4))
        self.kernel = blank(nn.Conv1d, 2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (F.softplus(self.kernel(x)).flatten(1) @ self.matrix.mT) + self.offset


# Blocks whose parameters interleave in the flat vector: no block is a slice of it.
_OWNERS = {
    "scale": "scale",
    "matrix": "inner",
    "offset": "outer",
    "kernel.weight": "inner",
    "kernel.bias": "outer",
}


def layouts() -> Problem:
    """Parameters of every rank in blocks that interleave, and four batches.

    The last batches have the larger curvature.
    """
    model = set_parameters(Mixed().double(), 121)
    with torch.no_grad():
        model.get_parameter("scale").fill_(0.5)
    x = grid([10, 2, 6], 122, step=0.25)
    y = grid([10, 4], 123)
    x[5:] *= 2
    spans = [slice(end - size, end) for end, size in ends_of((2, 1, 3, 4))]
    batches = [(x[span], y[span]) for span in spans]
    partition = Partition.by(model, _OWNERS.__getitem__)
    return Problem(model, half_squared_error, batches, partition)


def frozen() -> Problem:
    """The first layer frozen: it belongs to no block."""
    problem = smooth_mlp()
    problem.model.get_submodule("layer1").requires_grad_(False)
    return Problem(problem.model, problem.loss_fn, problem.batches)
