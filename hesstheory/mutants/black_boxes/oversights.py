"""Oversights that show at the edges alone: ranks, memory layouts, later batches, one or two probes, the last chunk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesstheory.curvature import hessian
from hesstheory.mutants.black_boxes.steps import (
    as_estimate,
    as_values,
    by_block,
    draw_signs,
    entries,
    listed,
    quadratic_forms,
    spoils,
    whole,
)
from hesstheory.problem import Problem

# --- parameters and batches -------------------------------------------------------------------------------------------


@spoils("forms")
def scalars_skipped(problem: Problem, Z: Tensor) -> Tensor:
    """Leaves parameters without dimensions out of the probe."""
    ranks = [torch.full((p.numel(),), float(p.ndim > 0)) for p in problem.params.values()]
    return quadratic_forms(problem, Z * torch.cat(ranks)[:, None])


@spoils("draw", as_values)
def rows_share_a_sign(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Draws one sign for all entries along the last axis of a tensor of rank three."""
    Z = draw_signs(problem, num_probes, generator).clone()
    for (start, stop), p in zip(problem.offsets.values(), problem.params.values(), strict=True):
        if p.ndim == 3:
            z = Z[start:stop].reshape(*p.shape, -1)
            Z[start:stop] = z[:, :, :1].expand_as(z).reshape(stop - start, -1)
    return Z


@spoils("forms", as_values)
def flattened_by_memory(problem: Problem, Z: Tensor) -> Tensor:
    """Flattens the product of a transposed parameter by its memory and the probe by its indices."""
    HZ = hessian(problem) @ Z
    for (start, stop), p in zip(problem.offsets.values(), problem.params.values(), strict=True):
        order = sorted(range(p.ndim), key=p.stride, reverse=True)
        HZ[start:stop] = HZ[start:stop].reshape(*p.shape, -1).permute(*order, p.ndim).reshape(stop - start, -1)
    return by_block(problem, Z * HZ)


@spoils("forms")
def blocks_taken_for_slices(problem: Problem, Z: Tensor) -> Tensor:
    """Takes every block for a slice of the flat vector that starts where the last one ends."""
    parts = torch.split(entries(problem, Z), [len(index) for index in problem.index.values()])
    return torch.stack([part.sum(0) for part in parts], 1)


@spoils("view")
def two_batches_at_most(problem: Problem) -> Problem:
    """Looks at the first two batches alone."""
    return problem.with_batches(problem.batches[:2])


@whole
def stops_at_a_linear_tensor(problem: Problem, *, num_probes: int, generator: torch.Generator) -> dict[str, float]:
    """Ends the loop over tensors at the first one without a second derivative."""
    Z, H = draw_signs(problem, num_probes, generator), hessian(problem)
    rows, products = Z.to(problem.dtype), torch.zeros_like(Z)
    HZ = (H @ rows).double()
    for start, stop in problem.offsets.values():
        if not HZ[start:stop].any():
            break
        products[start:stop] = Z[start:stop] * HZ[start:stop]
    return dict(zip(problem.index, by_block(problem, products).mean(0).tolist(), strict=True))


# --- probes -----------------------------------------------------------------------------------------------------------


@spoils("draw", as_values)
def seed_of_twelve_bits(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Seeds a generator of its own with one of 4096 numbers."""
    seed = int(torch.randint(4096, (), generator=generator))
    return draw_signs(problem, num_probes, torch.Generator().manual_seed(seed))


@spoils("draw")
def last_probe_is_the_first(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Takes the first probe again for the last one."""
    Z = draw_signs(problem, num_probes, generator).clone()
    Z[:, -1] = Z[:, 0]
    return Z


@spoils("draw", as_values)
def one_probe_is_ones(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Takes the vector of ones where one probe is asked for."""
    Z = draw_signs(problem, num_probes, generator)
    return torch.ones_like(Z) if num_probes == 1 else Z


@spoils("draw", as_estimate)
def chunks_from_one_seed(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Draws probes in chunks of 64, each from the same seed."""
    seed = int(torch.randint(2**40, (), generator=generator))
    chunk = draw_signs(problem, 64, torch.Generator().manual_seed(seed))
    return chunk.repeat(1, -(-num_probes // 64))[:, :num_probes]


@spoils("forms")
def given_signed(problem: Problem, Z: Tensor) -> Tensor:
    """Takes the signs of the probes that it is given."""
    return quadratic_forms(problem, torch.where(Z < 0, -1.0, 1.0).to(Z))


# --- means and errors -------------------------------------------------------------------------------------------------


@spoils("reduce")
def mean_of_chunks(samples: Tensor) -> Tensor:
    """Averages the means of chunks of 16 probes, the last of which may be one probe."""
    return torch.stack([chunk.mean(0) for chunk in torch.split(samples, 16)]).mean(0)


@spoils("reduce", as_values)
def median_of_four_means(samples: Tensor) -> Tensor:
    """Takes the median of the means of four groups."""
    return torch.stack([group.mean(0) for group in samples.chunk(4)]).quantile(0.5, dim=0)


def _divided_by_k(problem: Problem, samples: Tensor) -> Tensor:
    return samples.std(0, unbiased=False) / math.sqrt(len(samples))


def _divided_by_one_less(problem: Problem, samples: Tensor) -> Tensor:
    return samples.std(0) / math.sqrt(max(len(samples) - 1, 1))


listed(
    "spread",
    stderr_without_correction=("Divides the squares by K where K − 1 is right.", _divided_by_k),
    stderr_corrected_twice=("Divides by √(K − 1) where √K is right, after the sum of squares was divided by K − 1.",
        _divided_by_one_less),
)  # fmt: skip
