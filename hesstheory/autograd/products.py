"""Vector-Jacobian products on graphs that are kept, many columns at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesstheory.autograd.graph import second_derivatives

# Columns pushed through a graph at once. More gain nothing, even on the smallest networks.
MAX_CHUNK = 1024

# Columns times values of one chunk. Beyond this the caches set the pace, not the overhead.
CHUNK_ELEMENTS = 1_280_000


def columns_at_once(elements: int) -> int:
    """Columns to push at once through a graph of so many values: what the caches hold, or one."""
    return min(max(CHUNK_ELEMENTS // max(elements, 1), 1), MAX_CHUNK)


def chunks(num_columns: int, elements: int) -> Iterator[slice]:
    """Columns cut into parts that go at once through a graph of so many values."""
    size = columns_at_once(elements)
    return (slice(start, min(start + size, num_columns)) for start in range(0, num_columns, size))


def fits_one_chunk(num_columns: int) -> bool:
    """Whether so many columns may go at once through the smallest of graphs."""
    return num_columns <= MAX_CHUNK


def gradients_of(
    value: Tensor,
    inputs: Sequence[Tensor],
    *,
    create_graph: bool = False,
    grad_outputs: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of a tensor in its inputs; None where it does not depend on one."""
    if not value.requires_grad:
        return [None] * len(inputs)
    return list(
        torch.autograd.grad(
            value, list(inputs), grad_outputs, create_graph=create_graph, allow_unused=True
        )
    )


def vjp(
    values: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor | GradientEdge],
) -> list[Tensor | None]:
    """Vector-Jacobian products Σ_i (∂values_i/∂inputs)ᵀ cotangents_i on a graph that is kept.

    Parameters
    ----------
    values
        Tensors with a graph; None stands for zero.
    cotangents
        For each value a tensor of its shape behind an axis of K columns; None stands for zero.
    inputs
        Tensors, or edges of the graph, with respect to which to differentiate.

    Returns
    -------
    list[Tensor | None]
        For each input the K products along the first axis; None where they are zero.
    """
    live = [
        (value, cotangent)
        for value, cotangent in zip(values, cotangents, strict=True)
        if value is not None and cotangent is not None and value.requires_grad
    ]
    if not live:
        return [None] * len(inputs)
    outputs = [value for value, _ in live]
    grads = [cotangent for _, cotangent in live]
    num_columns = len(grads[0])
    with second_derivatives():  # for it names the operation that has none
        if num_columns > 1:
            # An operation without a batching rule fails here and may still work column by column.
            with suppress(RuntimeError):
                return _pull(outputs, grads, inputs, batched=True)
        return _stacked(
            [
                _pull(outputs, [g[k] for g in grads], inputs, batched=False)
                for k in range(num_columns)
            ]
        )


def _pull(
    outputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor],
    inputs: Sequence[Tensor | GradientEdge],
    batched: bool,
) -> list[Tensor | None]:
    """One call of autograd, on a graph that is kept."""
    return list(
        torch.autograd.grad(
            outputs,
            inputs,  # type: ignore[arg-type]  # a mixture of tensors and edges works
            grad_outputs,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
    )


def _stacked(columns: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Products of single columns along a first axis; an input is None for all or for none."""
    if len(columns) == 1:
        # A view: a copy of all parameters would cost as much as a part of the product.
        return [None if row is None else row[None] for row in columns[0]]
    return [None if rows[0] is None else torch.stack(rows) for rows in zip(*columns, strict=True)]


def dense_rows(value: Tensor, inputs: Sequence[Tensor]) -> Float[Tensor, "n all_inputs"]:
    """Derivatives of every entry of a tensor in all inputs, side by side."""
    eye = torch.eye(value.numel(), dtype=value.dtype, device=value.device)
    cotangents = eye.reshape(-1, *value.shape)
    return side_by_side(vjp([value], [cotangents], inputs), inputs, len(eye))


def side_by_side(
    rows: Sequence[Tensor | None], like: Sequence[Tensor], count: int
) -> Float[Tensor, "columns all"]:
    """Rows of several tensors laid end to end, None filled with zeros."""
    parts = [
        x.new_zeros(count, x.numel()) if row is None else row.reshape(count, -1)
        for row, x in zip(rows, like, strict=True)
    ]
    return torch.cat(parts, dim=1)


def unit_tangents(
    params: Sequence[Tensor], rows: Sequence[int], chunk: slice
) -> list[Tensor | None]:
    """Some of the unit vectors of the space that chosen tensors span, laid end to end.

    Parameters
    ----------
    params
        All parameters.
    rows
        Numbers of the chosen ones.
    chunk
        Which unit vectors: positions among the chosen tensors laid end to end.

    Returns
    -------
    list[Tensor | None]
        For each parameter a tensor of its shape behind an axis of `chunk`; None for zero.
    """
    # None and not zeros: a product leaves out the parameters that a chunk does not touch.
    tangents: list[Tensor | None] = [None] * len(params)
    start = 0
    for i in rows:
        n = params[i].numel()
        first = max(chunk.start, start)
        last = min(chunk.stop, start + n)
        if first < last:
            unit = params[i].new_zeros(chunk.stop - chunk.start, n)
            positions = torch.arange(first, last, device=unit.device)
            unit[positions - chunk.start, positions - start] = 1.0
            tangents[i] = unit.reshape(-1, *params[i].shape)
        start += n
    return tangents
