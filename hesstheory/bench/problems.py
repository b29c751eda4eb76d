"""On what, and in which ways: the problems of the benchmark, and the ways to traces that run on them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.conformance.subjects import peers
from hesstheory.estimators.deflated import HutchPP, XTrace
from hesstheory.estimators.from_outputs import ControlVariateTrace, LogitProbeTrace
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate
from hesstheory.run.streams import stream
from hesstheory.zoo.initial import draw_parameters

RANK = 10  # of Hutch++, and the probes of one run of XTrace

# --- problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A problem and how it is measured; `counts` are the two numbers of probes, `draws` the probes behind a variance.

    `build(tiny, train)` makes the problem, small for tests. Of per-block peers every `stride`-th block is timed.
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
    width = 8 if tiny else 256
    with torch.device(
        "meta"
    ):  # the layers' own initialisation would draw from the global random stream
        layers = [
            nn.Linear(784, width),
            activation(),
            nn.Linear(width, width),
            activation(),
            nn.Linear(width, 10),
        ]
        model = nn.Sequential(nn.Flatten(), *layers)
    return _on_digits(model, 16 if tiny else 128, (60 if tiny else 15) * train)


def _cnn(tiny: bool, train: bool) -> Problem:
    width = 2 if tiny else 16
    with torch.device("meta"):
        first = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        model = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(2 * width * 49, 10))
    return _on_digits(model, 16 if tiny else 128, (60 if tiny else 15) * train)


def _on_digits(model: nn.Module, num_samples: int, steps: int) -> Problem:
    """Digits of 28×28 pixels, He's weights, full-batch gradient descent with momentum 0.9."""
    inputs, targets = zoo.images("digits", num_samples=num_samples)
    inputs = inputs[:, :1, 2:30, 2:30].contiguous()
    draw_parameters(
        model.float().to_empty(device="cpu"), stream(0, "bench"), gain=math.sqrt(2), spread=0.0
    )
    descent = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(steps):
        descent.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(inputs), targets))
        descent.step()
    descent.zero_grad()
    return Problem(model.eval(), F.cross_entropy, [(inputs, targets)])


def _resnet18(tiny: bool, train: bool) -> Problem:
    data, width = zoo.images("digits", num_samples=4 if tiny else 16), 2 if tiny else 64
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


# --- ways -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to traces: `call(problem, num_probes, generator)` returns an `Estimate` where it is ours.

    `kind` is ours, plain (torch alone) or peer. `like` names the way whose probes have the same variance, where that is
    another one. `apart`: one block at a time, each with the probes that it needs; `total`: the full trace alone;
    `group`: probes come in groups; `exact`: no probes at all; `needs`: a distribution that may be absent.
    """

    call: Callable[[Problem, int, torch.Generator], Any]
    kind: str = "ours"
    like: str = ""
    apart: bool = False
    total: bool = False
    group: int = 1
    exact: bool = False
    needs: str = ""


def bare_loop(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """The shortest correct code: signs per tensor, one product per probe on a kept graph, one number per tensor."""
    params, (batch,) = list(problem.params.values()), problem.batches
    loss = problem.loss_fn(problem.model(batch[0]), batch[1])
    gradients, forms = torch.autograd.grad(loss, params, create_graph=True), []
    for _ in range(num_probes):
        z = [
            torch.randint(2, p.shape, generator=generator).to(p.dtype).mul_(2).sub_(1)
            for p in params
        ]
        products = torch.autograd.grad(gradients, params, z, retain_graph=True)
        forms.append(torch.stack([(a * b).sum() for a, b in zip(z, products, strict=True)]))
    return torch.stack(forms)


def _xtrace(problem: Problem, num_probes: int, generator: torch.Generator) -> Estimate:
    """Independent runs; a sample is the value of a run."""
    runs = [XTrace(RANK)(problem, generator) for _ in range(max(num_probes // RANK, 1))]
    samples = pd.DataFrame([run.value for run in runs]).reset_index(drop=True)
    return Estimate(samples, sum(run.num_matvecs for run in runs))


def _peer(name: str, **options: Any) -> Way:
    def call(problem: Problem, num_probes: int, generator: torch.Generator) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peers.PEERS[name](problem, num_probes=num_probes, generator=generator)

    return Way(call, "peer", needs=peers.distribution_of(name), **options)


WAYS: Mapping[str, Way] = {
    "plain torch": Way(bare_loop, "plain", like="LayerwiseTrace"),
    "LayerwiseTrace": Way(lambda problem, k, g: LayerwiseTrace(k)(problem, g)),
    "BlockSeparatedTrace": Way(lambda problem, k, g: BlockSeparatedTrace(k)(problem, g)),
    "HutchPP": Way(lambda problem, k, g: HutchPP(k, RANK)(problem, g)),
    "XTrace": Way(_xtrace, group=RANK),
    "exact_traces": Way(lambda problem, k, g: exact_traces(problem), exact=True),
    "LogitProbeTrace": Way(lambda problem, k, g: LogitProbeTrace(k)(problem, g)),
    "LogitProbeTrace, summed": Way(
        lambda problem, k, g: LogitProbeTrace(k, per_sample=False)(problem, g)
    ),
    "ControlVariateTrace": Way(lambda problem, k, g: ControlVariateTrace(k)(problem, g)),
    "ControlVariateTrace, probed": Way(
        lambda problem, k, g: ControlVariateTrace(k, exact=False)(problem, g)
    ),
    "ControlVariateTrace, separated": Way(
        lambda problem, k, g: ControlVariateTrace(k, separated=True)(problem, g)
    ),
    "PyHessian": _peer("pyhessian.all_probes", like="LayerwiseTrace", total=True),
    "curvlinops": _peer("curvlinops.hutchinson", like="BlockSeparatedTrace", apart=True),
    "hessian-eigenthings": _peer("hessian-eigenthings", like="BlockSeparatedTrace", apart=True),
}
PRODUCTS = ("plain torch", "LayerwiseTrace", "BlockSeparatedTrace", "HutchPP", "XTrace")
LOGITS = ("exact_traces", "LogitProbeTrace", "LogitProbeTrace, summed")
CONTROL = ("ControlVariateTrace", "ControlVariateTrace, probed", "ControlVariateTrace, separated")
_PEERS = tuple(name for name, way in WAYS.items() if way.kind == "peer")

_AT_FULL_SCALE: dict[str, Any] = {
    "ways": ("plain torch", "LayerwiseTrace", *LOGITS, *_PEERS),
    "counts": (2, 10), "block_counts": (1, 7), "stride": 3, "draws": 30, "repeats": 3,
}  # fmt: skip

SETTINGS: Mapping[str, Setting] = {
    "mlp": Setting("MLP 784-256-256-10, ReLU, trained", partial(_mlp, nn.ReLU), (*PRODUCTS, *LOGITS, *_PEERS)),
    "mlp-tanh": Setting(
        "MLP 784-256-256-10, tanh, trained", partial(_mlp, nn.Tanh), (*PRODUCTS, *CONTROL, *_PEERS), smooth=True
    ),
    "cnn": Setting("CNN, ReLU, trained", _cnn, (*PRODUCTS, *LOGITS, *_PEERS), draws=200),
    "resnet18": Setting(
        "ResNet-18, untrained, statistics of the batch", _resnet18, **_AT_FULL_SCALE
    ),
    "resnet18-as-built": Setting(
        "ResNet-18, untrained, statistics 0 and 1", _resnet18_as_built, **_AT_FULL_SCALE
    ),
    "dense": Setting("dense Hessian in float64", _dense, (), repeats=1),
}  # fmt: skip


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError with the known names."""
    if unknown := [name for name in names if name not in SETTINGS]:
        raise ValueError(
            f"no problem {unknown[0]!r}: choose from {', '.join(SETTINGS)}, or name none for all of them"
        )
