"""Sums over batches and terms of what one linearised batch gives: products, forms, dense rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Real
from torch import Tensor

from hesstheory.autograd.graph import differentiating, second_derivatives
from hesstheory.autograd.products import side_by_side, unit_tangents
from hesstheory.curvature.linearised import Linearise, Push
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import keep_freed_memory

# The coefficients c_i and the matrices M_i of a sum Σ_i c_i M_i.
Terms = tuple[tuple[float, Linearise], ...]


def pushes(problem: Problem, terms: Terms) -> Iterator[tuple[float, Push]]:
    """Weighted linearisations, one batch and term at a time, so that one graph is alive."""
    keep_freed_memory()
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        for coefficient, linearise in terms:
            with second_derivatives():
                push = linearise(problem, batch)
            yield coefficient * weight, push


def tangents(problem: Problem, columns: Real[Tensor, "columns params"]) -> list[Tensor]:
    """Rows of a K×P matrix cut into one K×shape tensor per parameter, in the model's dtype."""
    return [
        columns[:, start:stop].to(problem.dtype).reshape(len(columns), *p.shape)
        for (start, stop), p in zip(problem.offsets.values(), problem.params.values(), strict=True)
    ]


@differentiating()
def products(
    problem: Problem, terms: Terms, columns: Float[Tensor, "columns params"]
) -> Float[Tensor, "columns params"]:
    """Products with K vectors, each a row; one graph per batch serves all of them."""
    params = list(problem.params.values())
    out = torch.zeros_like(columns)
    for weight, push in pushes(problem, terms):
        for chunk in push.chunks(len(columns), problem.num_params):
            rows = push(tangents(problem, columns[chunk]), range(len(params)))
            out[chunk] += weight * side_by_side(rows, params, len(out[chunk]))
    return out


@differentiating()
def forms(
    problem: Problem,
    terms: Terms,
    columns: Real[Tensor, "columns params"],
    parts: Sequence[Sequence[int]],
) -> Float[Tensor, "columns blocks"]:
    """Forms z_lᵀ(C z_part)_l by block l, in float64, one product for each part of the tensors.

    Parameters
    ----------
    problem, terms
        The matrix.
    columns
        Probes z, each a row; signs may come as int8.
    parts
        Numbers of the tensors of each part. In the product of a part the probe is cut to it.
    """
    of_tensor = columns.new_zeros(len(columns), len(problem.params), dtype=torch.float64)
    for weight, push in pushes(problem, terms):
        for chunk in push.chunks(len(columns), problem.num_params):
            # Cast and multiplied chunk by chunk: no product is held for longer than that.
            probes = tangents(problem, columns[chunk])
            for part in parts:
                # None for the other tensors, so that nothing goes through what depends on them.
                only = [probe if j in part else None for j, probe in enumerate(probes)]
                for j, row in zip(part, push(only, part), strict=True):
                    if row is not None:
                        of_tensor[chunk, j] += weight * _inner(row, probes[j])
    return of_tensor @ membership(problem).to(of_tensor)


def _inner(rows: Tensor, probes: Tensor) -> Float[Tensor, " columns"]:
    """Inner products of K rows with K probes, summed in float64."""
    return (rows * probes).reshape(len(rows), -1).sum(1, dtype=torch.float64)


@differentiating()
def add_rows(
    problem: Problem,
    terms: Terms,
    out: Float[Tensor, "rows columns"],
    rows: Sequence[int],
    columns: Sequence[int],
) -> Tensor:
    """Adds rows of the dense matrix to a tensor in place, and returns it.

    Parameters
    ----------
    problem, terms
        The matrix.
    out
        Has a row for every entry of the tensors in `rows`, a column for those in `columns`.
        In place because copies of large pieces cost as much as the products themselves.
    rows, columns
        Numbers of tensors.
    """
    params = list(problem.params.values())
    for weight, push in pushes(problem, terms):
        for chunk in push.chunks(len(out), problem.num_params):
            parts = push(unit_tangents(params, rows, chunk), columns)
            start = 0
            for j, part in zip(columns, parts, strict=True):
                stop = start + params[j].numel()
                if part is not None:
                    out[chunk, start:stop].add_(part.reshape(len(part), -1), alpha=weight)
                start = stop
    return out


def membership(problem: Problem) -> Float[Tensor, "tensors blocks"]:
    """0/1 table of which block a tensor belongs to."""
    order = {name: j for j, name in enumerate(problem.params)}
    table = torch.zeros(len(order), len(problem.partition.blocks), dtype=torch.float64)
    for b, names in enumerate(problem.partition.blocks.values()):
        table[[order[name] for name in names], b] = 1.0
    return table


def membership_of_parameters(problem: Problem) -> Float[Tensor, "params blocks"]:
    """0/1 table of which block every single parameter belongs to."""
    sizes = torch.tensor([p.numel() for p in problem.params.values()])
    return membership(problem).repeat_interleave(sizes, dim=0)
