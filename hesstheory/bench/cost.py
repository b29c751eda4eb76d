"""What a way to traces costs, in gradients, and how the error falls with it."""

from __future__ import annotations

import copy
import gc
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from hesstheory.bench.problems import SETTINGS, WAYS, Setting, Way
from hesstheory.estimators.from_outputs import ControlVariateTrace
from hesstheory.outputs.loss_root import loss_root
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import RelativeClock
from hesstheory.run.memory import resident_now, resident_peak
from hesstheory.run.streams import stream

ERROR = 0.01

LEAST = 0.001  # of the figure

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cost:
    """Gradients paid once and by every probe."""

    once: float
    per_probe: float

    @classmethod
    def from_two(cls, counts: tuple[int, int], gradients: tuple[float, float]) -> Cost:
        """The line through the costs at two numbers of probes; through the origin where noise would bend it beyond."""
        (a, b), (low, high) = counts, gradients
        slope = (high - low) / (b - a)
        if slope <= 0 or low < a * slope:
            return cls(0.0, high / b)
        return cls(low - a * slope, slope)


def gradient(problem: Problem) -> None:
    """The unit of work."""
    (batch,) = problem.batches
    torch.autograd.grad(
        problem.loss_fn(problem.model(batch[0]), batch[1]), list(problem.params.values())
    )


def clock_of(problem: Problem) -> RelativeClock:
    """A clock that counts gradients of the problem."""
    return RelativeClock(partial(gradient, problem))


def cost_in_rounds(
    clock: Callable[[Callable[[], object]], float],
    calls: Mapping[Any, Callable[[int], object]],
    counts: tuple[int, int],
    repeats: int,
    say: Say = lambda line: None,
) -> dict[Any, tuple[float, float]]:
    """Median cost of every call at the two numbers of probes; each round times all of them once."""
    found: dict[Any, list[tuple[float, float]]] = {key: [] for key in calls}
    for number in range(1, repeats + 1):
        say(
            f"round {number} of {repeats}, {len(calls)} ways or blocks at {counts[0]} and {counts[1]} probes"
        )
        for key, call in calls.items():
            low, high = (clock(lambda call=call, k=k: call(k)) for k in counts)  # type: ignore[misc]
            found[key].append((low, high))
    return {
        key: (
            statistics.median(low for low, _ in pairs),
            statistics.median(high for _, high in pairs),
        )
        for key, pairs in found.items()
    }


def only(problem: Problem, block: str) -> Problem:
    """The same problem as an adapter sees it that is asked for one block."""
    one = copy.copy(problem)
    one.partition = Partition({block: problem.partition.blocks[block]})
    return one


def cost_by_block(
    clock: RelativeClock, problem: Problem, way: Way, setting: Setting, repeats: int
) -> tuple[pd.Series[float], pd.Series[float]]:
    """What is paid once and per probe for every block; a block that is not timed costs as those around it."""
    a, b = setting.block_counts
    blocks = list(problem.partition.blocks)
    timed = sorted({*range(0, len(blocks), setting.stride), len(blocks) - 1})

    def call(block: str) -> Callable[[int], object]:
        one = only(problem, block)
        return lambda k: way.call(one, k, stream(0, block))

    found = cost_in_rounds(clock, {i: call(blocks[i]) for i in timed}, (a, b), repeats)
    costs = pd.DataFrame({i: vars(Cost.from_two((a, b), pair)) for i, pair in found.items()}).T
    full = costs.reindex(range(len(blocks))).interpolate().set_axis(blocks)
    return full["once"], full["per_probe"]


def sign_variances(
    problem: Problem, num_draws: int, generator: torch.Generator
) -> pd.Series[float]:
    """2(‖G_ll‖² − Σ G_ii²), the variance of a sign probe on block l alone, without a product by block.

    For independent v, v' ~ N(0, G): E (v_lᵀv'_l)² = ‖G_ll‖² and E Σ v_i²v'_i² = Σ G_ii²; all pairs of the draws are
    used. v = Σ_n J_nᵀ S_n ε_n is one backward pass. H_ll = G_ll where the outputs are piecewise linear in a block.
    """
    (batch,) = problem.batches
    outputs = problem.outputs(batch)
    S = loss_root(problem, outputs, batch)
    rows = []
    for _ in range(num_draws):
        noise = torch.randn(len(S), S.shape[2], 1, generator=generator, dtype=torch.float64).to(S)
        cotangent = (S @ noise).reshape(outputs.shape)
        rows.append(
            torch.autograd.grad(
                outputs, list(problem.params.values()), cotangent, retain_graph=True
            )
        )
    tensors = dict(zip(problem.params, map(torch.stack, zip(*rows, strict=True)), strict=True))
    pairs = ~torch.eye(num_draws, dtype=torch.bool)
    found = {}
    for block, names in problem.partition.blocks.items():
        V = torch.cat([tensors[name].flatten(1) for name in names], 1)
        excess = (V @ V.mT).double().square() - (V.square() @ V.square().mT).double()
        found[block] = 2 * float(excess[pairs].mean())
    return pd.Series(found)


@dataclass(frozen=True)
class Spread:
    """Relative standard deviation of one probe by layer, or of the total alone, and how it was found."""

    relative: pd.Series[float]
    found: str

    @property
    def worst(self) -> float:
        return float(self.relative.max())


def reference_traces(setting: Setting, problem: Problem) -> tuple[pd.Series[float], str]:
    """What errors are relative to."""
    if not setting.smooth:
        return exact_traces(problem).value, "exact_traces"
    estimate = ControlVariateTrace(setting.draws)(problem, stream(0, "reference"))
    error = float((estimate.stderr / estimate.value.abs()).max())
    return (
        estimate.value,
        f"ControlVariateTrace({setting.draws}), relative standard error at most {error:.2g}",
    )


def _samples(name: str, way: Way, problem: Problem, draws: int) -> pd.DataFrame:
    """One row per probe; of Hutch++ from several bases, of ways in groups one row per group, of which fewer do."""
    generator, calls = stream(0, "samples", name), 8 if name == "HutchPP" else 1
    num_probes = max(draws // 4, 8) * way.group if way.group > 1 else draws // calls
    drawn: list[pd.DataFrame] = [
        way.call(problem, num_probes, generator).samples for _ in range(calls)
    ]
    return pd.concat(drawn)


def measure_spreads(
    setting: Setting,
    problem: Problem,
    ways: Mapping[str, Way],
    traces: pd.Series[float],
    draws: int,
    say: Say,
) -> dict[str, Spread]:
    """The spread of every way from its own samples, or from those of the way that it is like."""
    samples = dict[str, pd.DataFrame]()

    def sampled(name: str) -> pd.DataFrame:
        if name not in samples:
            say(f"variance of {name}")
            samples[name] = _samples(name, WAYS[name], problem, draws)
        return samples[name]

    def spread(name: str, way: Way) -> Spread:
        if way.apart and "BlockSeparatedTrace" not in setting.ways:
            variance = sign_variances(problem, draws, stream(0, "pairs"))
            relative = variance.clip(lower=0) ** 0.5 / traces.abs()
            return Spread(
                relative,
                f"2(‖G_ll‖² − Σ G_ii²) from the pairs of {draws} normal logit probes (claim G7)",
            )
        found = sampled(way.like or name)
        note = f"{len(found)} draws" + (f" of {way.like}, the same estimator" if way.like else "")
        if way.total:
            deviation = float(found.sum(axis=1).std(ddof=1))
            return Spread(
                pd.Series({"total": deviation / abs(float(traces.sum()))}), note + ", their total"
            )
        return Spread(found.std(ddof=1) * way.group**0.5 / traces.abs(), note)

    return {name: spread(name, way) for name, way in ways.items() if not way.exact}


def probes_to(error: float, relative: pd.Series[float], group: int = 1) -> pd.Series[float]:
    """K_l = (σ_l/(error·|tr H_ll|))², at least one probe, in whole groups."""
    groups = ((relative / error) ** 2 / group).apply(np.ceil)
    return groups.clip(lower=1) * group


def work_to(
    error: float,
    once: pd.Series[float] | float,
    per_probe: pd.Series[float] | float,
    spread: Spread,
    group: int = 1,
) -> float:
    """Gradients until the relative standard error of every layer is at most `error`.

    once + per_probe·max_l K_l where one probe serves all layers, Σ_l (once_l + per_probe_l·K_l) where each has its own.
    """
    K = probes_to(error, spread.relative, group)
    if isinstance(per_probe, pd.Series):
        return float(pd.Series(once + per_probe * K).sum())
    return float(pd.Series(once).sum() + per_probe * K.max())


def frontier(work: Callable[[float], float], worst: float) -> list[dict[str, float]]:
    """Work and error of the worst layer, from one probe to an error of 0.1 %, 1 % among them."""
    if worst <= LEAST:
        return [{"work": work(LEAST), "error": worst}]
    steps = math.ceil(6 * math.log10(worst / LEAST))
    errors = {worst, *(worst * (LEAST / worst) ** (i / steps) for i in range(1, steps + 1))}
    errors |= {ERROR} if worst > ERROR else set()
    return [{"work": work(error), "error": error} for error in sorted(errors, reverse=True)]


def in_a_process(function: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """What a function returns in a fresh process with more environment variables; MemoryError where that is killed."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        raise MemoryError(
            "its process was killed, as a system does that runs out of memory"
        ) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def training_step(problem: Problem) -> None:
    """Forward, backward, SGD: the unit of memory."""
    (batch,) = problem.batches
    descent = torch.optim.SGD(problem.model.parameters(), lr=1e-6)
    torch.autograd.backward(problem.loss_fn(problem.model(batch[0]), batch[1]))
    descent.step()


def peaks(name: str, ways: Sequence[str], tiny: bool) -> dict[str, int | None]:
    """Peak of the resident memory above what the problem takes, of ways or a training step; None without /proc.

    Ways run on the tiny problem first, which loads their libraries. Weights are untrained: they do not matter here.
    """
    torch.set_num_threads(1)
    setting, found = SETTINGS[name], {}
    for way in ways:
        _use_memory(setting, way, setting.build(True, False))
        problem = setting.build(tiny, False)
        gc.collect()
        before = resident_now()
        _use_memory(setting, way, problem)
        found[way] = None if before is None else resident_peak() - before
    return found


def _use_memory(setting: Setting, way: str, problem: Problem) -> None:
    if way not in WAYS:
        training_step(problem)
    elif WAYS[way].apart:
        WAYS[way].call(only(problem, next(iter(problem.partition.blocks))), 1, stream(0))
    else:
        WAYS[way].call(problem, setting.counts[0], stream(0))
