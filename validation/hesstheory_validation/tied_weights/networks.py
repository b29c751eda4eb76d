"""Networks with a tied tensor, and the same with a tensor of its own for every use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.claims.context import TRAINED_STEPS, Case, Context
from hesstheory.curvature.uses import unrolled_hessian
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory_validation.crossover.claims import slope_squares
from hesstheory_validation.magnitudes import roundings


@dataclass(frozen=True)
class Tie:
    """A tied tensor, and the same network with a tensor of its own for every use, named in the
    order of use."""

    tied: Case
    tensor: str
    untied: Case
    instances: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.tied.network}, {self.tensor}, {self.tied.stage}"

    @cached_property
    def U(self) -> Tensor:
        """The unrolled Hessian."""
        return unrolled_hessian(self.tied.problem, self.tensor)

    @cached_property
    def H_w(self) -> Tensor:
        """The Hessian of the tied tensor."""
        w = slice(*self.tied.problem.offsets[self.tensor])
        return self.tied.H[w, w]

    @cached_property
    def rows(self) -> Tensor:
        """Positions of the instances among the parameters of the untied network, instances × n."""
        return torch.stack(
            [torch.arange(*self.untied.problem.offsets[name]) for name in self.instances]
        )

    def cut(self, M: Tensor) -> Tensor:
        """The blocks of the instances in a matrix over the untied parameters, in the shape of U."""
        T, n = self.rows.shape
        return M[self.rows.flatten()][:, self.rows.flatten()].reshape(T, n, T, n)

    @cached_property
    def entry(self) -> float:
        """What an entry of U is made of: the largest one, and what cancels inside."""
        return float(self.untied.H.abs().max() + 2 * _slopes(self.untied).max())

    @cached_property
    def form(self) -> float:
        """What Σ_r q_r is made of when the probes are signs: the rows of the instances, and what
        cancels inside."""
        t = _slopes(self.untied)
        rows = self.rows.flatten()
        return float(self.untied.H[rows].abs().sum() + 2 * t[rows].sqrt().sum() * t.sqrt().sum())

    def terms(self, num_probes: int = 1) -> int:
        return roundings(self.untied, num_probes)


@lru_cache(maxsize=64)
def _slopes(case: Case) -> Tensor:
    return slope_squares(case.problem)


class ManyUses(nn.Module):
    """W_T ⋯ W_1 x in series, or Σ_r W_r x_r in parallel (inputs n×T×d); the weights may be one and
    the same."""

    def __init__(self, weights: Sequence[nn.Parameter], *, series: bool) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.series = series

    def forward(self, x: Tensor) -> Tensor:
        if not self.series:
            return torch.stack([F.linear(x[:, r], W) for r, W in enumerate(self.weights)]).sum(0)
        for W in self.weights:
            x = F.linear(x, W)
        return x


class UnrolledRecurrent(nn.Module):
    """A recurrent network with weights of its own for every step."""

    def __init__(self, model: zoo.Recurrent, num_steps: int) -> None:
        super().__init__()
        self.input = nn.ModuleList(copy.deepcopy(model.input) for _ in range(num_steps))
        self.recurrent = nn.ModuleList(copy.deepcopy(model.recurrent) for _ in range(num_steps - 1))
        self.act = model.act
        self.head = copy.deepcopy(model.head)

    def forward(self, rows: Tensor) -> Tensor:
        first, *rest = rows.unbind(1)
        state = self.act(self.input[0](first))
        for row, enter, recur in zip(rest, self.input[1:], self.recurrent, strict=True):
            state = self.act(enter(row) + recur(state))
        return self.head(state)


def own_weight(model: nn.Module, owner: str) -> nn.Module:
    """A copy of the model, one module of which has a weight of its own."""
    model = copy.deepcopy(model)
    module = model.get_submodule(owner)
    module.weight = nn.Parameter(module.weight.detach().clone())
    return model


def untied_case(case: Case, model: nn.Module) -> Case:
    """The problem of a network on another model, by tensor."""
    problem = Problem(model, case.problem.loss_fn, case.problem.batches, Partition.by_tensor(model))
    return Case(f"{case.network}, untied", case.stage, problem)


@lru_cache(maxsize=32)
def ties_of(case: Case) -> tuple[Tie, ...]:
    """The ties of a network of the zoo."""
    model = case.problem.model
    if isinstance(model, zoo.TiedAutoencoder):
        return (
            Tie(
                case,
                "up.weight",
                untied_case(case, own_weight(model, "down")),
                ("up.weight", "down.weight"),
            ),
        )
    T = case.problem.batches[0][0].shape[1]
    untied = untied_case(case, UnrolledRecurrent(model, T))
    uses = {"input.weight": T, "input.bias": T, "recurrent.weight": T - 1}
    return tuple(
        Tie(case, name, untied, tuple(name.replace(".", f".{t}.") for t in range(count)))
        for name, count in uses.items()
    )


def network_ties(context: Context) -> list[Tie]:
    """The ties of recurrent networks and autoencoders of the profile."""
    if context.profile == "smoke":
        return list(ties_of(context.case("autoencoder")))
    names = ("rnn", "relu_rnn", "autoencoder", "relu_autoencoder")
    return [
        tie
        for name in names
        for steps in (0, TRAINED_STEPS)
        for tie in ties_of(context.case(name, steps))
    ]


@lru_cache(maxsize=32)
def tied_pairs(context: Context, sign: int) -> list[tuple[Tie, zoo.TiedPair]]:
    """The zoo's parallel and series tie and its linear autoencoder whose bias has the given
    sign."""
    drawn = zoo.tied_pairs(sign, context.generator("pairs", str(sign)))
    owners = [("first", "second"), ("first", "second"), ("up", "down")]
    found = []
    for pair, (first, second) in zip([*drawn, _autoencoder(context, sign)], owners, strict=True):
        case = Case(pair.name, f"bias {'−0+'[sign + 1]}", pair.problem)
        untied = untied_case(case, own_weight(pair.problem.model, second))
        found.append(
            (Tie(case, f"{first}.weight", untied, (f"{first}.weight", f"{second}.weight")), pair)
        )
    return found


def _autoencoder(context: Context, sign: int) -> zoo.TiedPair:
    return zoo.linear_autoencoder(sign, context.generator("autoencoder", str(sign)))


def many_uses(name: str, weight: Tensor, times: int, x: Tensor, y: Tensor, *, series: bool) -> Tie:
    """One weight used several times, in series or in parallel."""
    shared = nn.Parameter(weight)
    model = ManyUses([shared] * times, series=series)
    case = Case(name, f"T = {times}", Problem(model, zoo.half_squared_error, [(x, y)]))
    own = ManyUses([nn.Parameter(weight.clone()) for _ in range(times)], series=series)
    return Tie(
        case, "weights.0", untied_case(case, own), tuple(f"weights.{r}" for r in range(times))
    )


@lru_cache(maxsize=32)
def weight_squared(y: float) -> Tie:
    """½(w·w·x − y)² at w = x = 1: U = [[1, 2−y], [2−y, 1]], the bias is 2y − 4, and U ⪰ 0 for 1 ≤ y
    ≤ 3."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return many_uses(f"w·w·x, y = {y:g}", one, 2, one, y * one, series=True)
