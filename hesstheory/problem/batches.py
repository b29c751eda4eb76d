"""Batches of samples: their sizes, and their rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Batch = tuple[Any, Any] | list[Any]  # (inputs, targets); a DataLoader gives lists

Part = TypeVar("Part")


def to_double(leaf: object) -> object:
    """A float64 copy of a real tensor; anything else as it is."""
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def cut(part: Part, start: int, stop: int) -> Part:
    """Rows start..stop of every tensor in a nest of tuples, lists and dicts."""

    def rows(leaf: object) -> object:
        return leaf[start:stop] if isinstance(leaf, Tensor) and leaf.ndim else leaf

    same: Part = tree_map(rows, part)
    return same


def described(part: object) -> str:
    """Dtype, shape and device of every tensor, and the kind of what is none."""
    return ", ".join(
        f"{leaf.dtype} {tuple(leaf.shape)} on {leaf.device}"
        if isinstance(leaf, Tensor)
        else type(leaf).__name__
        for leaf in tree_leaves(part)
    )


def num_rows(part: object) -> int | None:
    """Rows of the first tensor that has any; None where there is no such tensor."""
    return next(
        (len(leaf) for leaf in tree_leaves(part) if isinstance(leaf, Tensor) and leaf.ndim), None
    )


def read_batches(batches: Iterable[Batch]) -> tuple[Batch, ...]:
    """All batches, read once; raises TypeError for what is no sequence of batches."""
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is a {type(batches).__name__}: pass a list of (inputs, targets), or a "
            "DataLoader"
        )
    with torch.random.fork_rng([]):  # a DataLoader draws from the global stream
        return tuple(batches)


def sizes_of_batches(batches: Sequence[Batch]) -> tuple[int, ...]:
    """Number of samples of every batch; raises ValueError where there is no such number."""
    if not batches:
        raise ValueError("batches is empty: pass at least one (inputs, targets) pair")
    return tuple(_size(number, batch) for number, batch in enumerate(batches))


def _size(number: int, batch: Batch) -> int:
    """Number of samples of one batch."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"batch {number} is a {type(batch).__name__}, not a pair: pass (inputs, targets) for "
            "every batch"
        )
    inputs, targets = (num_rows(part) for part in batch)
    if inputs is None and not any(isinstance(x, Tensor) for x in tree_leaves(batch[0])):
        raise TypeError(
            f"the inputs of batch {number} are {type(batch[0]).__name__}: pass tensors, such as "
            "torch.as_tensor(inputs)"
        )
    if not inputs:
        raise ValueError(
            f"batch {number} has no samples: drop it, or pass tensors with the samples along axis 0"
        )
    if targets is not None and inputs != targets:
        raise ValueError(
            f"batch {number} has {inputs} inputs but {targets} targets: give one target per input"
        )
    return inputs
