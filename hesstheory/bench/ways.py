"""The ways to traces that are compared: ours, plain PyTorch, and other libraries."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from hesstheory.conformance.subjects import peers
from hesstheory.estimators.deflated import HutchPP, XTrace
from hesstheory.estimators.from_outputs import ControlVariateTrace, LogitProbeTrace
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.estimators.protocol import VarianceLaw, claims_exactness, variance_law_of
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

RANK = 10  # of Hutch++, and the probes of one run of XTrace: its default, twice as many products


@dataclass(frozen=True)
class Way:
    """One way to traces; `estimator(problem, *, num_probes, generator)` takes it.

    What the estimator claims of itself, exactness and a variance law, is read from it.

    Parameters
    ----------
    estimator
        Ours returns an `Estimate`; of others the answer is not looked at, only its cost.
    kind
        `"ours"`, `"plain"` (PyTorch alone) or `"peer"`.
    like
        The way whose probes have the same variance, where that is another one.
    apart
        One block at a time, each with the probes that it needs.
    total
        The full trace alone.
    group
        Probes come in groups of this size.
    runs
        Independent runs behind a variance, where the probes of one run share a random basis.
    needs
        A distribution that may be absent.
    """

    estimator: Callable[..., object]
    kind: str = "ours"
    like: str = ""
    apart: bool = False
    total: bool = False
    group: int = 1
    runs: int = 1
    needs: str = ""

    def call(self, problem: Problem, num_probes: int, generator: torch.Generator) -> object:
        """What the estimator answers."""
        return self.estimator(problem, num_probes=num_probes, generator=generator)

    @property
    def is_exact(self) -> bool:
        """Whether it claims the traces up to rounding, without a probe."""
        return claims_exactness(self.estimator)

    @property
    def variance_law(self) -> VarianceLaw | None:
        """The variance law that it claims, `None` where it claims none."""
        return variance_law_of(self.estimator)


def bare_loop(problem: Problem, *, num_probes: int, generator: torch.Generator) -> Tensor:
    """The shortest correct code: one product per probe on a kept graph, one number per tensor."""
    params = list(problem.params.values())
    (batch,) = problem.batches
    loss = problem.loss_fn(problem.model(batch[0]), batch[1])
    gradients = torch.autograd.grad(loss, params, create_graph=True)
    forms = []
    for _ in range(num_probes):
        z = [
            torch.randint(2, p.shape, generator=generator).to(p.dtype).mul_(2).sub_(1)
            for p in params
        ]
        products = torch.autograd.grad(gradients, params, z, retain_graph=True)
        forms.append(torch.stack([(a * b).sum() for a, b in zip(z, products, strict=True)]))
    return torch.stack(forms)


@dataclass(frozen=True)
class RepeatedXTrace:
    """Independent runs of XTrace with `RANK` probes each; a sample is the value of a run."""

    def __call__(
        self, problem: Problem, *, num_probes: int, generator: torch.Generator
    ) -> Estimate:
        runs = [XTrace(RANK)(problem, generator) for _ in range(max(num_probes // RANK, 1))]
        samples = pd.DataFrame([run.value for run in runs]).reset_index(drop=True)
        return Estimate(samples, sum(run.num_matvecs for run in runs))


@dataclass(frozen=True)
class ExactTraces:
    """`exact_traces` as an estimator, which needs no probes."""

    is_exact: bool = True

    def __call__(
        self, problem: Problem, *, num_probes: int, generator: torch.Generator
    ) -> Estimate:
        return exact_traces(problem)


def _by_peer(name: str, problem: Problem, *, num_probes: int, generator: torch.Generator) -> object:
    """An answer of another library, whose warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peers.PEERS[name](problem, num_probes=num_probes, generator=generator)


def _peer(name: str, like: str, *, apart: bool = False, total: bool = False) -> Way:
    """An adapter of another library."""
    needs = peers.distribution_of(name)
    return Way(partial(_by_peer, name), "peer", like, apart=apart, total=total, needs=needs)


WAYS: Mapping[str, Way] = {
    "plain torch": Way(bare_loop, "plain", like="LayerwiseTrace"),
    "LayerwiseTrace": Way(LayerwiseTrace()),
    "BlockSeparatedTrace": Way(BlockSeparatedTrace()),
    # Eight bases: the samples of one run share its basis, and say nothing of how bases differ.
    "HutchPP": Way(HutchPP(rank=RANK), runs=8),
    "XTrace": Way(RepeatedXTrace(), group=RANK),
    "exact_traces": Way(ExactTraces()),
    "LogitProbeTrace": Way(LogitProbeTrace()),
    "LogitProbeTrace, summed": Way(LogitProbeTrace(per_sample=False)),
    "ControlVariateTrace": Way(ControlVariateTrace()),
    "ControlVariateTrace, probed": Way(ControlVariateTrace(exact=False)),
    "ControlVariateTrace, separated": Way(ControlVariateTrace(separated=True)),
    "PyHessian": _peer("pyhessian.all_probes", "LayerwiseTrace", total=True),
    "curvlinops": _peer("curvlinops.hutchinson", "BlockSeparatedTrace", apart=True),
    "hessian-eigenthings": _peer("hessian-eigenthings", "BlockSeparatedTrace", apart=True),
}
PRODUCTS = ("plain torch", "LayerwiseTrace", "BlockSeparatedTrace", "HutchPP", "XTrace")
LOGITS = ("exact_traces", "LogitProbeTrace", "LogitProbeTrace, summed")
CONTROL = ("ControlVariateTrace", "ControlVariateTrace, probed", "ControlVariateTrace, separated")
OF_PEERS = tuple(name for name, way in WAYS.items() if way.kind == "peer")
