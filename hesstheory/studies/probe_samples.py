"""Samples of full-vector and logit probes on a real network, and what a probe costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.bench.cost import gradient
from hesstheory.estimators.from_outputs import LogitProbeTrace
from hesstheory.estimators.probes import Gaussian
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.estimators.protocol import Estimator
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import best_of, cpu_seconds_of, cpu_timed
from hesstheory.run.streams import stream
from hesstheory.zoo.initial import set_running_statistics
from hesstheory.zoo.training import descend


@dataclass(frozen=True)
class Setting:
    """What is measured.

    `probes` of each kind are drawn, `together` in a group. Layers are ranked from `rank_from` of
    them, in `redraws` groups.
    """

    model: str = "resnet18"
    width: int = 64
    samples: int = 16
    probes: int = 200
    together: int = 10
    rank_from: int = 50
    redraws: int = 500
    learning_rate: float = 0.05
    seed: int = 0

    def generator(self, *names: object) -> torch.Generator:
        """The random stream of a part of the study."""
        return stream(self.seed, "full-vector probes", *map(str, names))


# --- the network ----------------------------------------------------------------------------------


def network(setting: Setting, steps: int) -> tuple[Problem, dict[str, float]]:
    """The problem after so many steps, and its risk before and after them."""
    data = zoo.images("digits", num_samples=setting.samples)
    problem = zoo.full_scale_problem(
        setting.model,
        data,
        batch_size=setting.samples,
        width=setting.width,
        generator=setting.generator("weights"),
    )
    before = risk(problem)
    losses = trained(problem.model, setting, steps)
    if steps:
        set_running_statistics(problem.model, data.inputs)
    after = Problem(problem.model.eval(), problem.loss_fn, problem.batches)
    last = {"loss of the last ten mini-batches": statistics.mean(losses[-10:])} if steps else {}
    return after, {"risk before": before, "risk after": risk(after)} | last


def trained(model: nn.Module, setting: Setting, steps: int) -> list[float]:
    """Plain stochastic gradient descent with batch norm in train mode; losses by step."""
    inputs, targets = zoo.images("digits")
    generator = setting.generator("training")
    losses: list[float] = []

    def batch_at(step: int) -> Batch:
        rows = torch.randint(len(inputs), (setting.samples,), generator=generator)
        return inputs[rows], targets[rows]

    def after_step(step: int, loss: Tensor) -> None:
        losses.append(loss.item())

    optimizer = torch.optim.SGD(model.parameters(), lr=setting.learning_rate)
    steps_done = range(steps)
    descend(model.train(), F.cross_entropy, batch_at, optimizer, steps_done, after_step=after_step)
    return losses


def risk(problem: Problem) -> float:
    """The value of the risk."""
    pairs = zip(problem.weights, problem.batches, strict=True)
    return sum(weight * problem.loss(batch).item() for weight, batch in pairs)


def sizes(problem: Problem) -> pd.Series[int]:
    """Parameters of every block."""
    return pd.Series({block: len(index) for block, index in problem.index.items()})


# --- samples --------------------------------------------------------------------------------------

KINDS: Mapping[str, Estimator] = {
    "full": LayerwiseTrace(),
    "logit": LogitProbeTrace(),
    "summed": LogitProbeTrace(per_sample=False, probe=Gaussian()),
}


@dataclass(frozen=True)
class Sampled:
    """Samples of an estimator, a row per probe, and the cost of a probe in gradients and CPU
    seconds."""

    samples: pd.DataFrame
    gradients: float
    seconds: float


def sampled(
    problem: Problem, estimator: Estimator, setting: Setting, generator: torch.Generator
) -> Sampled:
    """All probes in groups, each timed beside a gradient."""
    found = []
    costs = []
    seconds = []
    for done in range(0, setting.probes, setting.together):
        few = min(setting.together, setting.probes - done)
        unit = best_of(2, partial(cpu_seconds_of, partial(gradient, problem)))
        taken, estimate = cpu_timed(partial(estimator, problem, generator, num_probes=few))
        found.append(estimate.samples)
        costs.append(taken / few / unit)
        seconds.append(taken / few)
        print(f"  {done + few} of {setting.probes}, {costs[-1]:.2f} gradients each", flush=True)
    samples = pd.concat(found, ignore_index=True)
    return Sampled(samples, statistics.median(costs), statistics.median(seconds))
