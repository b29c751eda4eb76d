"""The map of K* over networks, layers, steps of training and batch sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from hesstheory import zoo
from hesstheory.claims.context import SMOKE_NETWORKS, Case, Context
from hesstheory.evidence.checks import Check, holds
from hesstheory.problem.risk import Problem
from hesstheory_validation.probe_tradeoff.samplings import (
    Moments,
    moments,
)
from hesstheory_validation.subjects import Formula

PUBLISHED = (5, 10)

BATCH_SIZES = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class Cell:
    """One cell of the map: K* of a block at a step of training and a batch size."""

    network: str
    num_params: int
    block: str
    step: int
    batch_size: int
    k_star: float

    @property
    def is_published(self) -> bool:
        return PUBLISHED[0] <= self.k_star <= PUBLISHED[1]

    def __str__(self) -> str:
        where = f"{self.network} ({self.num_params} parameters), {self.block}, step {self.step}"
        return f"{where}, batch size {self.batch_size}: K* = {self.k_star:.3g}"


def sample_hessians(problem: Problem) -> Iterator[Tensor]:
    """Hessians of the single samples by nested reverse mode, mapped over samples: a second route,
    and a quick one."""
    names = list(problem.params)
    shapes = [p.shape for p in problem.params.values()]
    theta = torch.cat([p.detach().reshape(-1) for p in problem.params.values()])
    buffers = dict(problem.model.named_buffers())

    def loss(theta: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        parts = torch.split(theta, [shape.numel() for shape in shapes])
        values = {
            name: part.reshape(shape)
            for name, part, shape in zip(names, parts, shapes, strict=True)
        }
        outputs = functional_call(problem.model, {**values, **buffers}, (inputs[None],))
        return problem.loss_fn(outputs, targets[None])

    at_once = max(1, 2**20 // problem.num_params**2)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        of_samples = vmap(jacrev(grad(loss), chunk_size=512), (None, 0, 0))
        for inputs, targets in problem.batches:
            for x, y in zip(
                torch.split(inputs, at_once), torch.split(targets, at_once), strict=True
            ):
                yield of_samples(theta, x, y)


@lru_cache(maxsize=128)
def _moments_of(case: Case, num_samples: int) -> Moments:
    if num_samples == case.problem.num_samples:
        return moments(case, num_samples)
    problem = case.problem.with_batches(zoo.batches(case.network, num_samples, [num_samples]))
    return Moments.of(sample_hessians(problem), problem.index)


def cells(formula: Formula, case: Case, step: int, num_samples: int) -> Iterator[Cell]:
    """The map of one network at one step.

    Mini-batches are drawn with replacement, as in its training: any size will do, and without
    replacement K* would only be larger.
    """
    of_samples = _moments_of(case, num_samples)
    each = zip(
        case.problem.index, of_samples.V_of_mean, of_samples.S_q, of_samples.S_t2, strict=True
    )
    for block, V, S_q, S_t2 in each:
        if S_t2 == 0:  # a dead layer: all samples have the trace 0
            continue
        for b in BATCH_SIZES:
            k_star = float(formula(V, S_q, S_t2, b, num_samples, True))
            yield Cell(case.network, case.problem.num_params, block, step, b, k_star)


def plan(context: Context) -> list[tuple[str, int, int]]:
    """Networks, steps and numbers of samples."""
    if context.profile == "smoke":
        return [(name, 0, 33) for name in SMOKE_NETWORKS]
    small = (*SMOKE_NETWORKS, "tanh_mlp", "cnn", "residual", "attention")
    plan = [(name, step, 128) for name in small for step in (0, 10, 100, 300)]
    if context.is_thorough:
        plan = [(name, step, 256) for name in zoo.SMALL for step in (0, 10, 100, 300, 1000)]
        plan += [
            (name, step, 24) for name in ("digits_mlp", "digits_cnn") for step in (0, 100, 1000)
        ]
    return plan


def everywhere(name: str, found: Sequence[Cell], is_right: Callable[[Cell], bool]) -> Check:
    """Decides that all cells have a property; names the smallest that has not, and the range."""
    wrong = [cell for cell in found if not is_right(cell)]
    if not wrong:
        return holds(name, True, f"in all {len(found)} cells")
    smallest = min(wrong, key=lambda cell: (cell.num_params, cell.step, cell.batch_size))
    low, high = (limit(found, key=lambda cell: cell.k_star) for limit in (min, max))
    span = f"from {low} to {high}"
    if low.k_star > 0:
        span += f", {math.log10(high.k_star / low.k_star):.1f} orders of magnitude"
    return holds(
        name, False, f"wrong in {len(wrong)} of {len(found)} cells, first {smallest}; {span}"
    )


def spreads(found: Sequence[Cell]) -> str:
    """Largest and median ratio of K* between cells that differ in one respect only."""
    out = []
    for respect in ("block", "step", "batch_size"):
        others = [name for name in ("network", "block", "step", "batch_size") if name != respect]
        groups: dict[tuple[object, ...], list[float]] = {}
        for cell in found:
            groups.setdefault(tuple(getattr(cell, name) for name in others), []).append(cell.k_star)
        ratios = [
            max(group) / min(group)
            for group in groups.values()
            if len(group) > 1 and min(group) > 0
        ]
        if ratios:
            out.append(
                f"{respect.replace('_', ' ')}: {np.median(ratios):.3g}-fold, at most "
                f"{max(ratios):.3g}-fold"
            )
    return f"K* of {len(found)} cells, median and largest range over one respect: " + "; ".join(out)
