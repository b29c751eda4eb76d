"""What a way to traces costs, in gradients, and how the error falls with it."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from hesstheory.bench.problems import Setting
from hesstheory.bench.ways import Way
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import RelativeClock
from hesstheory.run.streams import stream

ERROR = 0.01  # relative standard error at which ways are compared
LEAST = 0.001  # the smallest error of the figure
_STEPS_PER_DECADE = 6  # points of a curve of the figure

Say = Callable[[str], None]
Clock = Callable[[Callable[[], object]], float]
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Cost:
    """Gradients paid once and by every probe, where one probe serves all layers."""

    once: float
    per_probe: float

    @classmethod
    def from_two(cls, counts: tuple[int, int], gradients: tuple[float, float]) -> Cost:
        """The line through the costs at two numbers of probes.

        Where noise would bend it beyond the origin, the line through the origin.
        """
        a, b = counts
        low, high = gradients
        slope = (high - low) / (b - a)
        if slope <= 0 or low < a * slope:
            return cls(0.0, high / b)
        return cls(low - a * slope, slope)

    def of(self, probes: pd.Series[float]) -> float:
        """once + per_probe · max_l K_l, for the numbers of probes that the layers need."""
        return self.once + self.per_probe * float(probes.max())


@dataclass(frozen=True)
class CostByBlock:
    """Gradients paid once and by every probe, for every block alone."""

    once: pd.Series[float]
    per_probe: pd.Series[float]

    def of(self, probes: pd.Series[float]) -> float:
        """Σ_l (once_l + per_probe_l · K_l), for the numbers of probes that the layers need."""
        return float((self.once + self.per_probe * probes).sum())


@dataclass(frozen=True)
class Spread:
    """Relative standard deviation of one probe by layer, or of the total alone.

    `found` says how it was found.
    """

    relative: pd.Series[float]
    found: str

    @property
    def worst(self) -> float:
        """That of the layer with the largest."""
        return float(self.relative.max())


def gradient(problem: Problem) -> None:
    """The unit of work."""
    (batch,) = problem.batches
    loss = problem.loss_fn(problem.model(batch[0]), batch[1])
    torch.autograd.grad(loss, list(problem.params.values()))


def clock_of(problem: Problem) -> RelativeClock:
    """A clock that counts gradients of the problem."""
    return RelativeClock(partial(gradient, problem))


def cost_in_rounds(
    clock: Clock,
    calls: Mapping[_Key, Callable[[int], object]],
    counts: tuple[int, int],
    repeats: int,
    say: Say = lambda line: None,
) -> dict[_Key, tuple[float, float]]:
    """Median cost of every call at the two numbers of probes.

    Each round times all of them once: what slows the machine for a while slows all.
    """
    at = f"{len(calls)} ways or blocks at {counts[0]} and {counts[1]} probes"
    found: dict[_Key, list[list[float]]] = {key: [[], []] for key in calls}
    for number in range(1, repeats + 1):
        say(f"round {number} of {repeats}, {at}")
        for key, call in calls.items():
            for costs, k in zip(found[key], counts, strict=True):
                costs.append(clock(partial(call, k)))
    return {
        key: (statistics.median(low), statistics.median(high)) for key, (low, high) in found.items()
    }


def only(problem: Problem, block: str) -> Problem:
    """The same problem as an adapter sees it that is asked for one block."""
    one = copy.copy(problem)
    one.partition = Partition({block: problem.partition.blocks[block]})
    return one


def cost_by_block(
    clock: Clock, problem: Problem, way: Way, setting: Setting, repeats: int
) -> CostByBlock:
    """What every block costs; one that is not timed costs as those around it."""
    blocks = list(problem.partition.blocks)
    timed = sorted({*range(0, len(blocks), setting.stride), len(blocks) - 1})

    def call(block: str) -> Callable[[int], object]:
        one = only(problem, block)
        return lambda k: way.call(one, k, stream(0, block))

    calls = {i: call(blocks[i]) for i in timed}
    found = cost_in_rounds(clock, calls, setting.block_counts, repeats)
    lines = {i: vars(Cost.from_two(setting.block_counts, pair)) for i, pair in found.items()}
    costs = pd.DataFrame(lines).T
    full = costs.reindex(range(len(blocks))).interpolate().set_axis(blocks)
    return CostByBlock(full["once"], full["per_probe"])


def probes_to(error: float, relative: pd.Series[float], group: int = 1) -> pd.Series[float]:
    """K_l = (σ_l/(error·|tr H_ll|))², at least one probe, in whole groups."""
    groups = ((relative / error) ** 2 / group).apply(np.ceil)
    return groups.clip(lower=1) * group


def work_to(error: float, cost: Cost | CostByBlock, spread: Spread, group: int = 1) -> float:
    """Gradients until the relative standard error of every layer is at most `error`."""
    return cost.of(probes_to(error, spread.relative, group))


def frontier(work: Callable[[float], float], worst: float) -> list[dict[str, float]]:
    """Work and error of the worst layer, from one probe to an error of 0.1 %, 1 % among them."""
    if worst <= LEAST:
        return [{"work": work(LEAST), "error": worst}]
    steps = math.ceil(_STEPS_PER_DECADE * math.log10(worst / LEAST))
    errors = {worst, *(worst * (LEAST / worst) ** (i / steps) for i in range(1, steps + 1))}
    errors |= {ERROR} if worst > ERROR else set()
    return [{"work": work(error), "error": error} for error in sorted(errors, reverse=True)]
