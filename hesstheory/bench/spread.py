"""The variance of one probe of every way, by layer: drawn, or predicted where drawing is dear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.bench.cost import Say, Spread
from hesstheory.bench.problems import Setting
from hesstheory.bench.ways import WAYS, Way
from hesstheory.estimators.from_outputs import ControlVariateTrace
from hesstheory.estimators.protocol import VarianceLaw
from hesstheory.outputs.loss_root import loss_root
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate
from hesstheory.run.streams import stream

# Of a way in groups a quarter as many groups as others have probes, since a group costs more; and
# never fewer, which would leave its spread uncertain by more than a quarter.
_FEWER_GROUPS = 4
_LEAST_GROUPS = 8


def block_norms(
    problem: Problem, num_draws: int, generator: torch.Generator
) -> tuple[pd.Series[float], pd.Series[float]]:
    """Estimates of ‖G_ll‖² and Σ_i G_ii² of every block, without a product by block.

    For independent v, v' ~ N(0, G): E (v_lᵀv'_l)² = ‖G_ll‖² and E Σ v_i²v'_i² = Σ G_ii². All pairs
    of the draws are used. v = Σ_n J_nᵀ S_n ε_n is one backward pass (claim G7).

    Parameters
    ----------
    problem
        Of one batch, with a loss that is convex in the outputs.
    num_draws
        Draws of v, a backward pass each; two or more.
    generator
        Random stream of ε.

    Returns
    -------
    pair of Series
        ‖G_ll‖² and Σ_i G_ii², by block. H_ll = G_ll where the outputs are piecewise linear.
    """
    tensors = _normal_gradients(problem, num_draws, generator)
    pairs = ~torch.eye(num_draws, dtype=torch.bool)
    norms = {}
    diagonals = {}
    for block, names in problem.partition.blocks.items():
        V = torch.cat([tensors[name].flatten(1) for name in names], 1)
        norms[block] = float((V @ V.mT).double().square()[pairs].mean())
        diagonals[block] = float((V.square() @ V.square().mT).double()[pairs].mean())
    return pd.Series(norms), pd.Series(diagonals)


def _normal_gradients(
    problem: Problem, num_draws: int, generator: torch.Generator
) -> dict[str, Float[Tensor, draws * shape]]:
    """Draws of v ~ N(0, G), by tensor."""
    (batch,) = problem.batches
    outputs = problem.outputs(batch)
    S = loss_root(problem, outputs, batch)
    params = list(problem.params.values())
    rows = []
    for _ in range(num_draws):
        noise = torch.randn(len(S), S.shape[2], 1, generator=generator, dtype=torch.float64).to(S)
        cotangent = (S @ noise).reshape(outputs.shape)
        rows.append(torch.autograd.grad(outputs, params, cotangent, retain_graph=True))
    return dict(zip(problem.params, map(torch.stack, zip(*rows, strict=True)), strict=True))


def reference_traces(setting: Setting, problem: Problem) -> tuple[pd.Series[float], str]:
    """What errors are relative to, and how it was found."""
    if not setting.smooth:
        return exact_traces(problem).value, "exact_traces"
    estimate = ControlVariateTrace(setting.draws)(problem, stream(0, "reference"))
    error = float((estimate.stderr / estimate.value.abs()).max())
    found = f"ControlVariateTrace({setting.draws}), relative standard error at most {error:.2g}"
    return estimate.value, found


def measure_spreads(
    setting: Setting,
    problem: Problem,
    ways: Mapping[str, Way],
    traces: pd.Series[float],
    draws: int,
    say: Say,
) -> dict[str, Spread]:
    """The spread of every way from its own samples, or from those of the way that it is like.

    A way that takes one block at a time, and whose like is too dear to draw here, has the spread
    that the variance law of its like predicts.
    """
    samples = dict[str, pd.DataFrame]()

    def sampled(name: str) -> pd.DataFrame:
        if name not in samples:
            say(f"variance of {name}")
            samples[name] = _samples(name, WAYS[name], problem, draws)
        return samples[name]

    def spread(name: str, way: Way) -> Spread:
        law = WAYS[way.like].variance_law if way.apart and way.like not in setting.ways else None
        if law is not None:
            return _predicted(law, problem, traces, draws)
        return _drawn(way, sampled(way.like or name), traces)

    return {name: spread(name, way) for name, way in ways.items() if not way.is_exact}


def _samples(name: str, way: Way, problem: Problem, draws: int) -> pd.DataFrame:
    """One row per probe, or per group of a way in groups."""
    generator = stream(0, "samples", name)
    num_probes = draws // way.runs
    if way.group > 1:
        num_probes = max(draws // _FEWER_GROUPS, _LEAST_GROUPS) * way.group
    runs = [way.call(problem, num_probes, generator) for _ in range(way.runs)]
    return pd.concat([cast(Estimate, run).samples for run in runs])


def _drawn(way: Way, samples: pd.DataFrame, traces: pd.Series[float]) -> Spread:
    """From samples, of the total where the way gives nothing else."""
    note = f"{len(samples)} draws" + (f" of {way.like}, the same estimator" if way.like else "")
    if way.total:
        deviation = float(samples.sum(axis=1).std(ddof=1))
        relative = pd.Series({"total": deviation / abs(float(traces.sum()))})
        return Spread(relative, note + ", their total")
    # A row is the mean of a group: √group makes its spread that of one probe at the same cost.
    of_probe = samples.std(ddof=1) * way.group**0.5
    return Spread(of_probe / traces.abs(), note)


def _predicted(law: VarianceLaw, problem: Problem, traces: pd.Series[float], draws: int) -> Spread:
    """By the law for a probe that is zero outside its block: no cross blocks."""
    norms, diagonals = block_norms(problem, draws, stream(0, "pairs"))
    variance = pd.Series({b: law(norms[b], diagonals[b], 0.0) for b in norms.index})
    # The clip: a difference of two estimates may be negative by chance.
    note = f"2(‖G_ll‖² − Σ G_ii²) from the pairs of {draws} normal logit probes (claim G7)"
    return Spread(variance.clip(lower=0) ** 0.5 / traces.abs(), note)
