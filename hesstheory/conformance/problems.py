"""Reference problems with certified traces, each built so that some kinds of mistakes show.

All numbers are small multiples of powers of two from an integer hash, so that every machine builds the same problem and
float32 holds it exactly. The certified values lie in `certified.json`; `certify` computes them by two routes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from hesstheory.estimators.probes import Probe, Sphere
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem

CERTIFIED = "certified.json"


@dataclass(frozen=True)
class Reference:
    """A problem with its answer.

    `margin` is the relative bias of a block that the checks must find; a block whose trace is zero must come out zero.
    """

    name: str
    hunts: str
    margin: float
    build: Callable[[], Problem]

    @cached_property
    def problem(self) -> Problem:
        return self.build()

    @property
    def traces(self) -> dict[str, float]:
        """Certified tr H_ll by block."""
        return {block: values["trace"] for block, values in certified()[self.name].items()}

    def variance(self, block: str, probe: Probe, *, separated: bool = False) -> float:
        """Certified variance of one probe for all batches: one product for all blocks, or probes of one block.

        Independent entries: claims T2 and T6. The sphere, whose entries depend on each other: claim T5.
        """
        of, P = certified()[self.name][block], self.problem.num_params
        cross = 0.0 if separated else of["cross"]
        if isinstance(probe, Sphere):
            return float((P * (2 * of["own"] + cross) - 2 * of["trace"] ** 2) / (P + 2))
        return float(2 * of["own"] + (probe.kurtosis(P) - 3) * of["diagonal"] + cross)


@cache
def certified() -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """problem → block → trace, own = ‖H_ll‖², diagonal = Σ_i H_ii², cross = Σ_{m≠l} ‖H_lm‖²."""
    text = (files("hesstheory.conformance") / CERTIFIED).read_text(encoding="utf-8")
    values: Mapping[str, Mapping[str, Mapping[str, float]]] = json.loads(text)
    return values


# --- numbers that are the same everywhere ---------------------------------------------------------------------------


def grid(shape: Sequence[int], seed: int, most: int = 8, step: float = 0.125) -> Tensor:
    """Multiples of `step` from −most to most, by the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
            seed * 0x632BE5AB + 1
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    whole = (x % np.uint64(2 * most + 1)).astype(np.int64) - most
    return torch.tensor(whole * step, dtype=torch.float64).reshape(tuple(shape))


def set_parameters(model: nn.Module, seed: int, step: float = 0.125) -> nn.Module:
    """The model with every parameter on the grid, in float64, its buffers on the grid of variances around one."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(grid(parameter.shape, seed + number, step=step))
        for number, (name, buffer) in enumerate(model.named_buffers()):
            if name.endswith("running_var"):
                buffer.copy_(1.5 + grid(buffer.shape, seed + 50 + number))
            elif name.endswith("running_mean"):
                buffer.copy_(grid(buffer.shape, seed + 50 + number))
    return model.eval()


# --- springs: Hessians to order at the cost of a few vector operations ----------------------------------------------


class Block(nn.Module):
    """A vector of parameters."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())


class Springs(nn.Module):
    """Per sample ½ Σ_i d_i θ_i² + Σ_s Σ_i e_si θ_i θ_{i+s}, i + s modulo P: H = diag(d) + springs of every reach s.

    Inputs are n×(1+S)×P: d, then the springs of each reach. `quartic` Σ_i (θ_i − rest_i)⁴, whose Hessian is zero where
    the problem is posed, punishes coarse differences.
    """

    def __init__(
        self, theta: Tensor, sizes: Mapping[str, int], reaches: Sequence[int], quartic: float = 0.0
    ) -> None:
        super().__init__()
        self.reaches, self.quartic, self.rest = tuple(reaches), quartic, theta.clone()
        for name, part in zip(sizes, torch.split(theta, list(sizes.values())), strict=True):
            self.add_module(name, Block(part))

    def forward(self, springs: Tensor) -> Tensor:
        theta = torch.cat([block.theta for block in self.children() if isinstance(block, Block)])
        energy = 0.5 * (springs[:, 0] @ (theta * theta))
        for number, reach in enumerate(self.reaches, 1):
            energy = energy + springs[:, number] @ (theta * theta.roll(-reach))
        return energy + self.quartic * (theta - self.rest).pow(4).sum() if self.quartic else energy


def mean_energy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of the outputs; targets are not used."""
    return outputs.mean()


def spring_hessian(problem: Problem) -> Tensor:
    """H of a problem of springs, entry by entry."""
    springs = torch.cat([inputs for inputs, _ in problem.batches]).double().mean(0)
    model = problem.model
    assert isinstance(model, Springs)
    P = springs.shape[1]
    H, i = torch.diag(springs[0]), torch.arange(P)
    for number, reach in enumerate(model.reaches, 1):
        j = (i + reach) % P
        H.index_put_((i, j), springs[number], accumulate=True)
        H.index_put_((j, i), springs[number], accumulate=True)
    return H


def _springs(
    sizes: Mapping[str, int], diagonal: Tensor, springs: Tensor, reaches: Sequence[int], batch_sizes: Sequence[int],
    dtype: torch.dtype = torch.float64, quartic: float = 0.0,
) -> Problem:  # fmt: skip
    """`diagonal` is n×P, `springs` n×S×P."""
    P, n = sum(sizes.values()), sum(batch_sizes)
    inputs = torch.cat([diagonal[:, None], springs], 1).to(dtype)
    model = Springs(grid([P], 7).to(dtype), sizes, reaches, quartic)
    targets = torch.zeros(n, dtype=dtype)
    batches = [
        (inputs[end - size : end], targets[end - size : end]) for end, size in _ends(batch_sizes)
    ]
    return Problem(model, mean_energy, batches)


def _ends(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where each batch ends, and its size."""
    return list(zip(accumulate(sizes), sizes, strict=True))


def flat(dtype: torch.dtype = torch.float64) -> Problem:
    """Three blocks of 256 parameters whose curvatures are nearly equal: a trace is known to 9 % after one probe."""
    sizes = {"first": 256, "second": 256, "third": 256}
    level = torch.cat([torch.full((256,), value) for value in (2.0, 3.0, 4.0)]).double()
    diagonal = level + grid([4, 768], 11, most=4)
    return _springs(
        sizes,
        diagonal,
        grid([4, 2, 768], 12, most=4, step=1 / 32),
        (1, 256),
        (2, 2),
        dtype,
        quartic=64.0,
    )


def ragged() -> Problem:
    """33 samples as 32 + 1, the last one of twice the curvature and the other sign."""
    sizes = {"left": 96, "right": 96}
    level = torch.full((33, 192), 2.0, dtype=torch.float64)
    level[32] = -6.0
    return _springs(
        sizes, level + grid([33, 192], 21, most=4), grid([33, 1, 192], 22, most=2), (1,), (32, 1)
    )


def negative() -> Problem:
    """One block of negative trace and one of positive trace that together are negative."""
    sizes = {"hill": 96, "valley": 48}
    level = torch.cat([torch.full((96,), -3.0), torch.full((48,), 2.0)]).double()
    return _springs(
        sizes, level + grid([6, 144], 31, most=4), grid([6, 1, 144], 32, most=4), (1,), (4, 2)
    )


def unequal() -> Problem:
    """Blocks of 1, 3, 40 and 160 parameters with mean curvatures 16, −8, 2 and 1; one name begins another."""
    sizes = {"scalar": 1, "small": 3, "smaller": 40, "large": 160}
    means = zip(sizes.values(), (16.0, -8.0, 2.0, 1.0), strict=True)
    level = torch.cat([torch.full((size,), mean, dtype=torch.float64) for size, mean in means])
    return _springs(
        sizes, level + grid([4, 204], 41, most=2), grid([4, 1, 204], 42, most=1), (1,), (3, 1)
    )


def coupled() -> Problem:
    """Two blocks whose cross block outweighs their own: entry i of one is tied to entry i of the other."""
    sizes = {"upper": 64, "lower": 64}
    level = torch.cat([torch.full((64,), 2.0), torch.full((64,), 3.0)]).double()
    springs = torch.stack([grid([4, 128], 51, most=2), 0.75 + grid([4, 128], 52, most=2)], 1)
    return _springs(sizes, level + grid([4, 128], 53, most=4), springs, (1, 64), (2, 2))


# --- networks -------------------------------------------------------------------------------------------------------


def _blank(module: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
    """A module with uninitialised parameters: its own initialisation would draw from the global random stream."""
    return skip_init(module, *args, **kwargs)  # type: ignore[no-untyped-call]


def _linear(num_in: int, num_out: int, bias: bool = True) -> nn.Linear:
    module: nn.Linear = _blank(nn.Linear, num_in, num_out, bias=bias)
    return module


def _net(*modules: tuple[str, nn.Module]) -> nn.Sequential:
    net = nn.Sequential()
    for name, module in modules:
        net.add_module(name, module)
    return net.double()


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f − y‖², mean over samples."""
    return 0.5 * (outputs - targets).square().flatten(1).sum(1).mean()


def _labels(count: int, classes: int) -> Tensor:
    return torch.arange(count) * 7 % classes


def _two_batches(inputs: Tensor, targets: Tensor, first: int) -> list[tuple[Tensor, Tensor]]:
    return [(inputs[:first], targets[:first]), (inputs[first:], targets[first:])]


def smooth_mlp(dtype: torch.dtype = torch.float64) -> Problem:
    """tanh network with cross-entropy, 6 and 3 samples; the Gauss-Newton matrix is far off."""
    net = _net(("layer1", _linear(5, 6)), ("act", nn.Tanh()), ("layer2", _linear(6, 3)))
    model = set_parameters(net, 61).to(dtype)
    x = grid([9, 5], 66, step=0.25).to(dtype)
    return Problem(model, F.cross_entropy, _two_batches(x, _labels(9, 3), 6))


def skewed() -> Problem:
    """One linear output of inputs near (1, ..., 1): H is nearly a multiple of 11ᵀ, an estimate a χ² of one degree."""
    model = set_parameters(_net(("layer", _linear(16, 1))), 111)
    x = 1 + grid([12, 16], 112, most=2, step=1 / 16)
    return Problem(model, half_squared_error, _two_batches(x, grid([12, 1], 113), 7))


class TwoUses(nn.Module):
    """W x₁ + W x₂ + V x₁ with one tensor W in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = _linear(8, 6, bias=False), _linear(8, 6, bias=False)
        self.second = _linear(8, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x[:, 0]) + self.second(x[:, 1]) + self.other(x[:, 0])
        return out


def tied() -> Problem:
    """A weight used by two layers: its instances' blocks alone give about half of the trace."""
    model = set_parameters(TwoUses().double(), 71)
    noise, x = grid([16, 8], 72, most=2), 2 * torch.eye(8, dtype=torch.float64).repeat(2, 1)
    return Problem(
        model,
        half_squared_error,
        _two_batches(torch.stack([x, x + noise], 1), grid([16, 6], 73), 10),
    )


class TiedAutoencoder(nn.Module):
    """Wᵀ tanh(W x)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = _linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.T)


def autoencoder() -> Problem:
    """A weight used twice in series."""
    model = set_parameters(TiedAutoencoder().double(), 81, step=1 / 16)
    x = grid([8, 6], 82, step=0.25)
    return Problem(model, half_squared_error, _two_batches(x, x, 5))


def batch_norm() -> Problem:
    """Convolution with batch norm in eval mode, running statistics far from those of the batch."""
    net = _net(
        ("conv", _blank(nn.Conv2d, 1, 2, 3)), ("norm", _blank(nn.BatchNorm2d, 2)), ("act", nn.Softplus()),
        ("flatten", nn.Flatten()), ("head", _linear(8, 2)),
    )  # fmt: skip
    return Problem(
        set_parameters(net, 91),
        F.cross_entropy,
        _two_batches(grid([7, 1, 4, 4], 96, step=0.25), _labels(7, 2), 4),
    )


class Unreached(nn.Module):
    """A layer that the forward pass never calls and one that enters linearly, before one that is curved."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.linear, self.curved = _linear(3, 2), _linear(6, 4), _linear(6, 4)

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
    """scale · V softplus(conv(x)) + offset: a scalar, a tensor of rank three, and V whose memory lies by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.matrix = nn.Parameter(torch.zeros(12, 4).mT)
        self.offset = nn.Parameter(torch.zeros(4))
        self.kernel = _blank(nn.Conv1d, 2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (F.softplus(self.kernel(x)).flatten(1) @ self.matrix.mT) + self.offset


def layouts() -> Problem:
    """Parameters of every rank in blocks that interleave, and four batches, the last ones of larger curvature."""
    model = set_parameters(Mixed().double(), 121)
    with torch.no_grad():
        model.get_parameter("scale").fill_(0.5)
    x, y = grid([10, 2, 6], 122, step=0.25), grid([10, 4], 123)
    x[5:] *= 2
    owner = {
        "scale": "scale",
        "matrix": "inner",
        "offset": "outer",
        "kernel.weight": "inner",
        "kernel.bias": "outer",
    }
    ends = _ends((2, 1, 3, 4))
    batches = [(x[end - size : end], y[end - size : end]) for end, size in ends]
    return Problem(model, half_squared_error, batches, Partition.by(model, owner.__getitem__))


def frozen() -> Problem:
    """The first layer frozen: it belongs to no block."""
    problem = smooth_mlp()
    layer: nn.Module = problem.model.get_submodule("layer1")
    layer.requires_grad_(False)
    return Problem(problem.model, problem.loss_fn, problem.batches)


@cache
def references() -> Mapping[str, Reference]:
    """All reference problems by name."""
    listed = (
        Reference("flat", "wrong factors of one per cent, wrong distributions", 0.01, flat),
        Reference(
            "ragged", "batches weighted wrongly, summed, dropped or taken for all", 0.05, ragged
        ),
        Reference(
            "negative",
            "signs: clipped, folded or squared; stopping rules with a signed scale",
            0.05,
            negative,
        ),
        Reference(
            "unequal",
            "exchanged and shifted blocks, means for sums, a block of one parameter",
            0.20,
            unequal,
        ),
        Reference(
            "coupled", "probes shared by blocks, cross blocks left out of errors", 0.10, coupled
        ),
        Reference(
            "smooth_mlp",
            "Gauss-Newton, Fisher and absolute curvature taken for the Hessian",
            0.25,
            smooth_mlp,
        ),
        Reference(
            "skewed", "medians, trimmed means and centred probes in place of means", 0.20, skewed
        ),
        Reference("tied", "instances of a tied weight counted apart", 0.10, tied),
        Reference("autoencoder", "a weight tied in series differentiated once", 0.25, autoencoder),
        Reference("batch_norm", "batch norm in train mode, convolutions", 0.60, batch_norm),
        Reference(
            "unreached", "tensors that the loss does not reach, zero curvature", 0.10, unreached
        ),
        Reference("regrouped", "layers taken for the blocks of the partition", 0.40, regrouped),
        Reference(
            "layouts",
            "ranks, memory layouts, interleaved blocks and later batches ignored",
            0.30,
            layouts,
        ),
        Reference("frozen", "frozen parameters counted", 0.25, frozen),
        Reference("float32", "dtypes mixed up", 0.02, _flat32),
    )
    return {reference.name: reference for reference in listed}


def _flat32() -> Problem:
    return flat(torch.float32)


# --- certification --------------------------------------------------------------------------------------------------


def second_route(problem: Problem) -> Tensor:
    """The dense Hessian without `hesstheory.curvature`: entry by entry for springs, by `torch.func` for networks."""
    if isinstance(problem.model, Springs):
        return spring_hessian(problem)
    from torch.func import functional_call, hessian

    spans = {name: slice(*span) for name, span in problem.offsets.items()}

    def risk(theta: Tensor) -> Tensor:
        params = {name: theta[spans[name]].reshape(p.shape) for name, p in problem.params.items()}
        losses = (
            weight * problem.loss_fn(functional_call(problem.model, params, (batch[0],)), batch[1])
            for weight, batch in zip(problem.weights, problem.batches, strict=True)
        )
        return torch.stack(list(losses)).sum()

    theta = torch.cat([p.detach().reshape(-1) for p in problem.params.values()])
    dense: Tensor = hessian(risk)(theta)
    return dense


def certify(H: Tensor, problem: Problem) -> dict[str, dict[str, float]]:
    """What `certified.json` holds of one problem, from its dense Hessian."""
    return {block: dict(_of_block(H, index)) for block, index in problem.index.items()}


def _of_block(H: Tensor, index: Tensor) -> Iterator[tuple[str, float]]:
    H_ll = H[index][:, index]
    yield "trace", float(H_ll.diagonal().sum())
    yield "own", float(H_ll.square().sum())
    yield "diagonal", float(H_ll.diagonal().square().sum())
    yield "cross", float(H[index].square().sum() - H_ll.square().sum())


def certificate() -> dict[str, Any]:
    """All certified values by the library's own route; the tests compare them with the second one."""
    from hesstheory.curvature.matrix import hessian

    return {
        name: certify(hessian(reference.problem.double()).to_dense(), reference.problem)
        for name, reference in references().items()
    }


def main() -> None:
    """Writes `certified.json`: python -m hesstheory.conformance.problems."""
    from pathlib import Path

    Path(__file__).with_name(CERTIFIED).write_text(
        json.dumps(certificate(), indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
