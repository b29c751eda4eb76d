"""Norms of Gauss-Newton blocks from random combinations of rows, where the rows are too many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from hesstheory.autograd.graph import differentiating
from hesstheory.outputs.gram import gram_of_rows, weighted_roots
from hesstheory.problem.risk import Problem
from hesstheory.run.precision import full_precision


@dataclass(frozen=True)
class SketchedNorms:
    """Unbiased estimates of ‖G_ll‖² and ‖diag G_ll‖² from random combinations of the rows."""

    blocks: tuple[str, ...]
    norms2: Float[Tensor, " blocks"]
    diagonal_norms2: Float[Tensor, " blocks"]


@full_precision()
def sketched_norms(
    problem: Problem,
    generator: torch.Generator,
    *,
    num_rows: int = 32,
    samples: range | None = None,
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> SketchedNorms:
    """Norms from pairs of independent combinations q_a = B_lᵀε_a, one backward pass each: E (q_aᵀq_b)² = ‖G_ll‖².

    ε are signs for every row of B, drawn for all samples whatever part of them this process has. `num_rows` × P numbers
    are held; half as many pairs of them as a square enter every mean.
    """
    (_, roots), params = weighted_roots(problem), list(problem.params.values())
    signs = [
        torch.randint(2, (S.shape[1], num_rows), generator=generator, device=generator.device)
        for S in roots
    ]
    q = [p.new_zeros(num_rows, p.numel()) for p in params]
    own, first = range(problem.num_samples) if samples is None else samples, 0
    for batch, size in zip(problem.batches, problem.batch_sizes, strict=True):
        inside = range(max(own.start, first), min(own.stop, first + size))
        if len(inside):
            part = problem.with_batches(
                [
                    tree_map(
                        partial(_cut, rows=slice(inside.start - first, inside.stop - first)), batch
                    )
                ]
            )
            combined = torch.stack([roots[n] @ (2 * signs[n] - 1).to(roots[n]) for n in inside])
            with differentiating():
                outputs = part.outputs(part.batches[0])
                for a in range(num_rows):
                    u = combined[:, :, a].reshape(outputs.shape)
                    pulled = torch.autograd.grad(
                        outputs, params, u, retain_graph=True, allow_unused=True
                    )
                    for row, found in zip(q, pulled, strict=True):
                        if found is not None:
                            row[a] += found.reshape(-1)
        first += size
    rows = dict(zip(problem.params, q, strict=True))
    norms2, diagonals, pairs = list[Tensor](), list[Tensor](), num_rows * (num_rows - 1)
    for names in problem.partition.blocks.values():
        of_block = [total(rows.pop(name)) for name in names]
        gram, _ = gram_of_rows(of_block)
        norms2.append((gram.square().sum() - gram.diagonal().square().sum()) / pairs)
        squares = [row.double().square() for row in of_block]
        diagonals.append(sum(x.sum(0).square().sum() - x.square().sum() for x in squares) / pairs)  # type: ignore[arg-type]
    return SketchedNorms(
        tuple(problem.partition.blocks), torch.stack(norms2), torch.stack(diagonals)
    )


def _cut(leaf: Any, rows: slice) -> Any:
    return leaf[rows] if isinstance(leaf, Tensor) else leaf
