"""Networks whose outputs bend in some of their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.claims.context import Case, Context
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory.zoo.initial import blank
from hesstheory_validation.gauss_newton.networks import leaky


class NearlyLinear(nn.Module):
    """x ↦ leaky ReLU(x) + tanh(x)/4096."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.1) + x.tanh() / 4096


@dataclass(frozen=True)
class Counterexample:
    """A network whose outputs bend in some tensors alone.

    `bent` names these tensors, `module` is what the refusal must name.
    """

    name: str
    case: Case
    bent: tuple[str, ...]
    module: str


def _mlp(act: nn.Module, norm: nn.Module | None = None) -> nn.Sequential:
    """first, norm if there is one, act, head; batch norm would take a bias out again."""
    model = nn.Sequential()
    model.add_module("first", blank(nn.Linear, 4, 5, bias=not isinstance(norm, nn.BatchNorm1d)))
    if norm is not None:
        model.add_module("norm", norm)
    model.add_module("act", act)
    model.add_module("head", blank(nn.Linear, 5, 3))
    return model


# Name, network, data, tensors in which the outputs bend, and the module that a refusal must name.
_Entry = tuple[str, nn.Module, zoo.Data, tuple[str, ...], str]

_FIRST = ("first.weight", "first.bias")


def _multilayer() -> Iterator[_Entry]:
    """What stands between two linear layers bends in the first."""
    data = zoo.digits(4, 3, 6)
    nearly = _mlp(NearlyLinear())
    yield "activation of curvature 1/4096", nearly, data, _FIRST, "'act' (NearlyLinear)"
    yield "smooth activation", _mlp(nn.Tanh()), data, _FIRST, "'act' (Tanh)"
    norm = _mlp(leaky(), blank(nn.BatchNorm1d, 5))
    yield "train-mode batch norm", norm, data, _FIRST[:1], "'norm' (BatchNorm1d)"
    norm = _mlp(leaky(), blank(nn.LayerNorm, 5))
    yield "layer norm", norm, data, _FIRST, "'norm' (LayerNorm)"


def _multiplied() -> Iterator[_Entry]:
    """A parameter is multiplied by itself, or by what depends on it."""
    rows = zoo.digit_rows(3, 6)
    recurrent = zoo.Recurrent(8, 2, 3, leaky)
    yield "recurrent matrix", recurrent, rows, ("recurrent.weight",), "'' (Recurrent)"
    inputs = zoo.digits(4, 3, 6).inputs
    tied = zoo.TiedAutoencoder(4, 3, leaky)
    to_itself = zoo.Data(inputs, inputs)
    yield "tied autoencoder", tied, to_itself, ("up.weight",), "'down' (Transposed)"
    attention = zoo.Attention(2, 2, 3, leaky, norm=False)
    bent = ("query.weight", "key.weight", "embed.weight", "embed.bias")
    yield "attention", attention, rows, bent, "'' (Attention)"


@lru_cache(maxsize=2)
def counterexamples(context: Context) -> list[Counterexample]:
    """One network for each way in which the premise fails."""
    return [
        Counterexample(name, _drawn(name, model, data, context), bent, f"module {module}")
        for name, model, data, bent, module in (*_multilayer(), *_multiplied())
    ]


def _drawn(name: str, model: nn.Module, data: zoo.Data, context: Context) -> Case:
    """The network with drawn parameters, by tensor; in train mode where its name says so."""
    model = model.double()
    zoo.initialise(model, data.inputs, context.generator(name))
    in_train_mode = name.startswith("train-mode")
    loss = F.mse_loss if data.targets.is_floating_point() else F.cross_entropy
    problem = Problem(
        model.train(in_train_mode),
        loss,
        [tuple(data)],
        Partition.by_tensor(model),
        allow_train_mode=in_train_mode,
    )
    return Case(name, "untrained", problem)
