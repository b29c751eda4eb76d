"""Norms and diagonals of diagonal blocks without probes, where H_ll = G_ll (claim G2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory import theory
from hesstheory.outputs.loss_root import loss_root
from hesstheory.problem.risk import Problem
from hesstheory.studies.probe_samples import sizes

HELD = 2**29  # numbers of a dual factor that are held at once: 2 GB in float32

Factor = Float[Tensor, "rows params"]


def own_blocks(problem: Problem) -> pd.DataFrame:
    """tr G_ll, Σ G_ii², ‖G_ll‖², ‖G_ll²‖² and Σ_{m≠l} ‖G_lm‖² by block.

    G_lm = A_lᵀA_m and M_l = A_l A_lᵀ (claim G6). A_l has a row for every sample and column of the
    root of its loss: S_nᵀJ_nl / √N.
    """
    grams: dict[str, Tensor] = {}
    found: dict[str, dict[str, float]] = {}
    for blocks in grouped(problem):
        for block, A in dual_factors(problem, blocks):
            grams[block] = (A @ A.mT).double()
            diagonal = A.square().sum(0).double()
            squares = float(diagonal.square().sum())
            found[block] = {"trace": float(diagonal.sum()), "diagonal2": squares}
    total = sum(grams.values())
    for block, M in grams.items():
        found[block] |= {"norm2": float(M.square().sum()), "norm4": float((M @ M).square().sum())}
        found[block]["cross_ggn"] = float((M * (total - M)).sum())
    return pd.DataFrame(found).T


def grouped(problem: Problem) -> Iterator[list[str]]:
    """Blocks in groups whose dual factors can be held together."""
    outputs = len(problem.outputs(problem.batches[0])[0].flatten())
    group: list[str] = []
    held = 0
    for block, size in (sizes(problem) * problem.num_samples * outputs).items():
        if group and held + size > HELD:
            yield group
            group = []
            held = 0
        group.append(str(block))
        held += size
    yield group


def dual_factors(problem: Problem, blocks: Sequence[str]) -> Iterator[tuple[str, Factor]]:
    """A_l of the named blocks, one backward pass of one sample for every row."""
    params = {
        block: [problem.params[name] for name in problem.tensors_of(block)] for block in blocks
    }
    wanted = [p for tensors in params.values() for p in tensors]
    rows: dict[str, list[Tensor]] = {block: [] for block in blocks}
    for one in problem.samples():
        outputs = one.outputs(one.batches[0])
        root = loss_root(one, outputs, one.batches[0]) / math.sqrt(problem.num_samples)
        for column in root.unbind(2):
            along = column.reshape(outputs.shape)
            slopes = iter(torch.autograd.grad(outputs, wanted, along, retain_graph=True))
            for block, tensors in params.items():
                rows[block].append(torch.cat([next(slopes).flatten() for _ in tensors]))
    for block in blocks:
        yield block, torch.stack(rows.pop(block))


def separated_variance(own: pd.DataFrame, kurtosis: float) -> pd.Series[float]:
    """Variance of a probe that is zero outside its layer: claim T2 without cross blocks."""
    variance = theory.probe_variance_from_norms(own["norm2"], own["diagonal2"], 0.0, kurtosis)
    return cast("pd.Series[float]", variance)
