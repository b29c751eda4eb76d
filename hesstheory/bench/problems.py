"""On what costs are measured: the problems of the benchmark, and how much of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.bench.ways import CONTROL, LOGITS, OF_PEERS, PRODUCTS
from hesstheory.problem.risk import Problem
from hesstheory.run.names import check_list_of_names, no_such
from hesstheory.run.streams import stream
from hesstheory.zoo.initial import blank, draw_parameters
from hesstheory.zoo.training import descend


@dataclass(frozen=True)
class Setting:
    """A problem and how it is measured.

    Parameters
    ----------
    about
        The title of its panel.
    build
        `build(tiny, train)` makes the problem, small for tests.
    ways
        Names of the ways that can do it.
    counts
        The two numbers of probes at which ways are timed.
    block_counts
        The same for ways that take one block at a time.
    stride
        Of those ways, every `stride`-th block is timed, the others cost as those around it.
    draws
        Probes behind a variance: 400 give its root to 3.5 % where draws are normal.
    repeats
        Rounds of timings, of which the median is taken.
    smooth
        Whether the outputs are smooth in the parameters, so that no traces are exact.
    """

    about: str
    build: Callable[[bool, bool], Problem]
    ways: tuple[str, ...]
    counts: tuple[int, int] = (10, 40)
    block_counts: tuple[int, int] = (10, 40)
    stride: int = 1
    draws: int = 400
    repeats: int = 5
    smooth: bool = False


def _mlp(activation: Callable[[], nn.Module], tiny: bool, train: bool) -> Problem:
    """Three linear layers on images of 784 pixels."""
    width = 8 if tiny else 256
    model = nn.Sequential(
        nn.Flatten(),
        blank(nn.Linear, 784, width),
        activation(),
        blank(nn.Linear, width, width),
        activation(),
        blank(nn.Linear, width, 10),
    )
    return _on_digits(model, 16 if tiny else 128, (60 if tiny else 15) * train)


def _cnn(tiny: bool, train: bool) -> Problem:
    """Two convolutions with pooling and a linear layer."""
    width = 2 if tiny else 16
    first = [blank(nn.Conv2d, 1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [blank(nn.Conv2d, width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    head = blank(nn.Linear, 2 * width * 49, 10)
    model = nn.Sequential(*first, *second, nn.Flatten(), head)
    return _on_digits(model, 16 if tiny else 128, (60 if tiny else 15) * train)


def _on_digits(model: nn.Module, num_samples: int, steps: int) -> Problem:
    """Digits of 28×28 pixels, He's weights, full-batch gradient descent with momentum 0.9."""
    inputs, targets = zoo.images("digits", num_samples=num_samples)
    inputs = inputs[:, :1, 2:30, 2:30].contiguous()
    draw_parameters(model.float(), stream(0, "bench"), gain=math.sqrt(2), spread=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    descend(model, F.cross_entropy, lambda step: (inputs, targets), optimizer, range(steps))
    return Problem(model.eval(), F.cross_entropy, [(inputs, targets)])


def _resnet18(tiny: bool, train: bool) -> Problem:
    data = zoo.images("digits", num_samples=4 if tiny else 16)
    width = 2 if tiny else 64
    return zoo.full_scale_problem(
        "resnet18", data, batch_size=16, width=width, generator=stream(0, "bench")
    )


def _resnet18_as_built(tiny: bool, train: bool) -> Problem:
    """In eval mode before any forward pass: running means of 0 and variances of 1."""
    problem = _resnet18(tiny, train)
    for module in problem.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return problem


def _dense(tiny: bool, train: bool) -> Problem:
    name, num_samples = ("tanh_mlp", 16) if tiny else ("wide_mlp", 128)
    return zoo.problem(name, stream(0, "bench"), batch_sizes=[num_samples])


# At full scale a product takes half a second: fewer probes, and blocks apart are timed at fewer.
# Every third block is timed, the others cost as those around it.
_at_full_scale = partial(
    Setting,
    ways=("plain torch", "LayerwiseTrace", *LOGITS, *OF_PEERS),
    counts=(2, 10),
    block_counts=(1, 7),
    stride=3,
    draws=30,
    repeats=3,
)

SETTINGS: Mapping[str, Setting] = {
    "mlp": Setting(
        "MLP 784-256-256-10, ReLU, trained", partial(_mlp, nn.ReLU), (*PRODUCTS, *LOGITS, *OF_PEERS)
    ),
    "mlp-tanh": Setting(
        "MLP 784-256-256-10, tanh, trained",
        partial(_mlp, nn.Tanh),
        (*PRODUCTS, *CONTROL, *OF_PEERS),
        smooth=True,
    ),
    "cnn": Setting("CNN, ReLU, trained", _cnn, (*PRODUCTS, *LOGITS, *OF_PEERS), draws=200),
    "resnet18": _at_full_scale("ResNet-18, untrained, statistics of the batch", _resnet18),
    "resnet18-as-built": _at_full_scale(
        "ResNet-18, untrained, statistics 0 and 1", _resnet18_as_built
    ),
    "dense": Setting("dense Hessian in float64", _dense, (), repeats=1),
}


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError with the known names."""
    check_list_of_names("names", names)
    if unknown := [name for name in names if name not in SETTINGS]:
        raise ValueError(f"{no_such('problem', unknown[0], SETTINGS)}; none means all of them")
