"""Rankings of layers from few probes against the true order."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pandas as pd
import torch
from scipy.stats import kendalltau
from torch import nn

from hesstheory.estimators.ranks import rank_layers
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate
from hesstheory.studies.probe_samples import Setting, sizes
from hesstheory.studies.records import Record

_TOP = 5  # layers that a mixed-precision plan would keep


def without_norms(problem: Problem) -> Problem:
    """The same risk in the weights of convolutions and linear layers alone.

    They are what is quantised.
    """
    model = copy.deepcopy(problem.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return Problem(model, problem.loss_fn, problem.batches)


@dataclass(frozen=True)
class Held:
    """An estimator that returns the samples that it was given."""

    samples: pd.DataFrame

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
    ) -> Estimate:
        return Estimate(self.samples, len(self.samples))


def rankings(
    problem: Problem,
    traces: pd.Series[float],
    samples: pd.DataFrame,
    setting: Setting,
    generator: torch.Generator,
) -> Record:
    """How rankings by mean trace from few probes compare with the true one.

    Groups of probes are taken apart from each other, and drawn from all.
    """
    K = len(samples)
    few = setting.rank_from
    blocks = list(problem.partition.blocks)
    traces = traces[blocks]
    samples = samples[blocks]
    apart = list(torch.split(torch.arange(K // few * few), few))
    drawn = [torch.randperm(K, generator=generator)[:few] for _ in range(setting.redraws)]
    rows = [
        compared(problem, traces, samples.iloc[group.numpy()], generator)
        for group in (*apart, *drawn)
    ]
    # Around the true traces the gaps between neighbours are true, and the spreads those of the
    # probes.
    held = Held(samples - samples.mean() + traces)
    centred = rank_layers(problem, generator=generator, estimator=held)
    return {
        "layers": len(blocks),
        "probes in a group": few,
        "groups apart": {"groups": len(apart)} | rates(rows[: len(apart)]),
        "groups drawn": {"groups": len(drawn)} | rates(rows[len(apart) :]),
        "probes that would decide the order": centred.num_probes_needed,
    }


def compared(
    problem: Problem, traces: pd.Series[float], samples: pd.DataFrame, generator: torch.Generator
) -> dict[str, float]:
    """One ranking against the true one; what is wrong is 1."""
    ranking = rank_layers(problem, generator=generator, estimator=Held(samples))
    table = ranking.table.loc[traces.index]
    exact = traces / sizes(problem)
    true = exact.rank(ascending=False)
    top, true_top = (set(ranks.nsmallest(_TOP).index) for ranks in (table["rank"], true))
    inside = table["rank_low"].le(true).all() and table["rank_high"].ge(true).all()
    return {
        "order wrong": float((table["rank"] != true).any()),
        "top five wrong": float(top != true_top),
        "wrong among the top five": float(len(top - true_top)),
        "first wrong": float(table["rank"].idxmin() != true.idxmin()),
        "Kendall's tau": float(kendalltau(table["value"], exact).statistic),
        "negative traces": float((table["value"] < 0).mean()),
        "all ranks inside": float(inside),
        "width of the intervals": float((table["rank_high"] - table["rank_low"]).mean()),
    }


def rates(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over groups, and the extremes of Kendall's tau."""
    found = pd.DataFrame(rows)
    tau = found["Kendall's tau"]
    return {**found.mean(), "least tau": float(tau.min()), "most tau": float(tau.max())}
