"""Networks whose outputs bend in some of their parameters."""

from __future__ import annotations

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
    """A network whose outputs bend in the tensors `bent` alone;

    `module` is what the refusal must name.
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


@lru_cache(maxsize=2)
def counterexamples(context: Context) -> list[Counterexample]:
    """One network for each way in which the premise fails."""
    rows = zoo.digit_rows(3, 6)
    vectors = zoo.digits(4, 3, 6)
    to_itself = zoo.Data(vectors.inputs, vectors.inputs)
    first = ("first.weight", "first.bias")
    attending = ("query.weight", "key.weight", "embed.weight", "embed.bias")
    table: list[tuple[str, nn.Module, zoo.Data, tuple[str, ...], str]] = [
        (
            "activation of curvature 1/4096",
            _mlp(NearlyLinear()),
            vectors,
            first,
            "'act' (NearlyLinear)",
        ),
        ("smooth activation", _mlp(nn.Tanh()), vectors, first, "'act' (Tanh)"),
        (
            "recurrent matrix",
            zoo.Recurrent(8, 2, 3, leaky),
            rows,
            ("recurrent.weight",),
            "'' (Recurrent)",
        ),
        (
            "tied autoencoder",
            zoo.TiedAutoencoder(4, 3, leaky),
            to_itself,
            ("up.weight",),
            "'down' (Transposed)",
        ),
        (
            "train-mode batch norm",
            _mlp(leaky(), blank(nn.BatchNorm1d, 5)),
            vectors,
            first[:1],
            "'norm' (BatchNorm1d)",
        ),
        (
            "layer norm",
            _mlp(leaky(), blank(nn.LayerNorm, 5)),
            vectors,
            first,
            "'norm' (LayerNorm)",
        ),
        (
            "attention",
            zoo.Attention(2, 2, 3, leaky, norm=False),
            rows,
            attending,
            "'' (Attention)",
        ),
    ]
    return [
        Counterexample(name, _drawn(name, model, data, context), bent, f"module {module}")
        for name, model, data, bent, module in table
    ]


def _drawn(name: str, model: nn.Module, data: zoo.Data, context: Context) -> Case:
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
