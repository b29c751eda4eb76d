"""Norms of Gauss-Newton blocks from random combinations of rows, where the rows are too many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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
@differentiating()
def sketched_norms(
    problem: Problem,
    generator: torch.Generator,
    *,
    num_rows: int = 32,
    samples: range | None = None,
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> SketchedNorms:
    """Norms from pairs of independent combinations q_a = B_lᵀε_a: E (q_aᵀq_b)² = ‖G_ll‖².

    One backward pass gives one combination. All pairs of them enter every mean.

    Parameters
    ----------
    problem
        Its loss must be convex in the outputs.
    generator
        Draws ε, signs for every row of B: for all samples, whatever part of them this process has.
    num_rows
        Combinations. `num_rows` × P numbers are held.
    samples
        The samples of this process, by default all.
    total
        Adds up over the processes.
    """
    _, roots = weighted_roots(problem)
    signs = [
        torch.randint(2, (S.shape[1], num_rows), generator=generator, device=generator.device)
        for S in roots
    ]
    combined = [S @ (2 * flips - 1).to(S) for S, flips in zip(roots, signs, strict=True)]
    own = range(problem.num_samples) if samples is None else samples
    q = {name: p.new_zeros(num_rows, p.numel()) for name, p in problem.params.items()}
    for part, numbers in _own_parts(problem, own):
        _add_rows(list(q.values()), part, torch.stack([combined[n] for n in numbers]))
    norms2 = list[Tensor]()
    diagonals = list[Tensor]()
    # Every pair counts twice here and in the sums below.
    pairs = num_rows * (num_rows - 1)
    for names in problem.partition.blocks.values():
        of_block = [total(q.pop(name)) for name in names]
        gram, _ = gram_of_rows(of_block)
        norms2.append((gram.square().sum() - gram.diagonal().square().sum()) / pairs)
        diagonals.append(_of_diagonal(of_block) / pairs)
    blocks = tuple(problem.partition.blocks)
    return SketchedNorms(blocks, torch.stack(norms2), torch.stack(diagonals))


def _own_parts(problem: Problem, own: range) -> Iterator[tuple[Problem, range]]:
    """Of every batch the part that lies in a range of samples, with their numbers."""
    first = 0
    for batch, size in zip(problem.batches, problem.batch_sizes, strict=True):
        inside = range(max(own.start, first), min(own.stop, first + size))
        if len(inside):
            rows = slice(inside.start - first, inside.stop - first)
            yield problem.with_batches([tree_map(partial(_cut, rows=rows), batch)]), inside
        first += size


def _add_rows(
    q: Sequence[Tensor], part: Problem, combined: Float[Tensor, "samples outputs rows"]
) -> None:
    """Adds what the samples of one batch give, one backward pass for each combination."""
    params = list(part.params.values())
    with differentiating():
        outputs = part.outputs(part.batches[0])
        for a in range(combined.shape[2]):
            u = combined[:, :, a].reshape(outputs.shape)
            pulled = torch.autograd.grad(outputs, params, u, retain_graph=True, allow_unused=True)
            for row, found in zip(q, pulled, strict=True):
                if found is not None:
                    row[a] += found.reshape(-1)


def _of_diagonal(rows: Sequence[Tensor]) -> Tensor:
    """Σ_{a≠b} Σ_i q_ai² q_bi² of one block, in float64."""
    total = rows[0].new_zeros((), dtype=torch.float64)
    for row in rows:
        squares = row.double().square()
        total = total + (squares.sum(0).square().sum() - squares.square().sum())
    return total


def _cut(leaf: object, rows: slice) -> object:
    """Some rows of a tensor; anything else as it is."""
    return leaf[rows] if isinstance(leaf, Tensor) else leaf
