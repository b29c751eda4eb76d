"""Vector-Jacobian products on graphs that are kept, many columns at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesstheory.autograd.graph import second_derivatives


def chunks(num_columns: int, elements: int) -> Iterator[slice]:
    """Columns to push at once through a graph of so many values: one at least, so many that the caches hold them."""
    size = min(max(CHUNK_ELEMENTS // max(elements, 1), 1), MAX_CHUNK)
    return (slice(start, min(start + size, num_columns)) for start in range(0, num_columns, size))


MAX_CHUNK = (
    1024  # columns pushed through a graph at once; more gain nothing even on the smallest networks
)

CHUNK_ELEMENTS = 1_280_000  # columns × values of one chunk; beyond this the caches, not the overhead, set the pace


def gradients_of(value: Tensor, inputs: Sequence[Tensor], **options: Any) -> list[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(inputs)
    return list(torch.autograd.grad(value, list(inputs), allow_unused=True, **options))


def vjp(
    values: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor | GradientEdge],
) -> list[Tensor | None]:
    """Σ_i (∂values_i/∂inputs)ᵀ cotangents_i for K cotangents at once, on a graph that is kept; None for zero."""
    live = [
        (value, cotangent)
        for value, cotangent in zip(values, cotangents, strict=True)
        if value is not None and cotangent is not None and value.requires_grad
    ]
    if not live:
        return [None] * len(inputs)
    outputs, grads, into = (
        [value for value, _ in live],
        [cotangent for _, cotangent in live],
        list[Any](inputs),
    )

    def pull(grad_outputs: list[Tensor], batched: bool) -> list[Tensor | None]:
        return list(
            torch.autograd.grad(
                outputs,
                into,
                grad_outputs,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )
        )

    with second_derivatives():
        if len(grads[0]) > 1:
            with suppress(
                RuntimeError
            ):  # an operation without a batching rule: one by one, it may still work
                return pull(grads, batched=True)
        columns = [pull([g[k] for g in grads], batched=False) for k in range(len(grads[0]))]
        if len(columns) == 1:  # a view: a copy of all parameters is not for nothing
            return [None if row is None else row[None] for row in columns[0]]
        return [
            None if rows[0] is None else torch.stack(rows)
            for rows in map(list, zip(*columns, strict=True))
        ]


def dense_rows(value: Tensor, inputs: Sequence[Tensor]) -> Float[Tensor, "n all_inputs"]:
    """Derivatives of every entry of a tensor in all inputs, side by side."""
    eye = torch.eye(value.numel(), dtype=value.dtype, device=value.device).reshape(-1, *value.shape)
    return side_by_side(vjp([value], [eye], inputs), inputs, len(eye))


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
    """Unit vectors number chunk.start..chunk.stop of the given tensors laid end to end; None for untouched tensors."""
    tangents: list[Tensor | None] = [None] * len(params)
    start = 0
    for i in rows:
        n = params[i].numel()
        lo, hi = max(chunk.start, start), min(chunk.stop, start + n)
        if lo < hi:
            unit = params[i].new_zeros(chunk.stop - chunk.start, n)
            positions = torch.arange(lo, hi, device=unit.device)
            unit[positions - chunk.start, positions - start] = 1.0
            tangents[i] = unit.reshape(-1, *params[i].shape)
        start += n
    return tangents
