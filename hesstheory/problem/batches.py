"""Batches of samples: their sizes, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from hesstheory.run.memory import free_memory

Batch = tuple[Any, Any] | list[Any]  # (inputs, targets); a DataLoader gives lists

# Says of a batch how many terms its loss averages.
Weight = Callable[[Batch], float]

Part = TypeVar("Part")


def to_double(leaf: object) -> object:
    """A float64 copy of a real tensor; anything else as it is."""
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def cut(part: Part, start: int, stop: int) -> Part:
    """Rows start..stop of every tensor in a nest of tuples, lists and dicts."""

    def rows(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        if leaf.is_sparse:  # takes no slices
            numbers = torch.arange(start, min(stop, len(leaf)), device=leaf.device)
            return leaf.index_select(0, numbers)
        return leaf[start:stop]

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
    return next(iter(_lengths(part)), None)


def _lengths(part: object) -> list[int]:
    """Lengths along the first axis of every tensor that has one."""
    return [len(leaf) for leaf in tree_leaves(part) if isinstance(leaf, Tensor) and leaf.ndim]


# --- reading ------------------------------------------------------------------------------------

# Batches beyond which a loader is taken to be endless: a pass through them would take hours.
_MANY = 1_000_000


def read_batches(
    batches: Iterable[Batch | Mapping[str, Any]], *, has_own_loss: bool = False
) -> tuple[Batch, ...]:
    """All batches, read once.

    Parameters
    ----------
    batches
        Pairs of inputs and targets.
    has_own_loss
        A batch may be a Mapping of inputs, its targets among them.

    Raises
    ------
    TypeError
        It is no sequence of batches.
    MemoryError
        The batches hold more than half of the free memory, or do not end.
    """
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is a {type(batches).__name__}: pass a list of (inputs, targets), or a "
            "DataLoader"
        )
    budget = free_memory(torch.device("cpu")) // 2
    held = 0
    read = list[Batch]()
    with torch.random.fork_rng([]):  # a DataLoader draws from the global stream
        for number, batch in zip(count(), batches):  # count() has no end
            if has_own_loss and isinstance(batch, Mapping):
                batch = (batch, None)
            read.append(_with_keywords(batch))
            # A list lies in memory already.
            held += 0 if isinstance(batches, list | tuple) else _bytes_on_cpu(batch)
            if held > budget or number >= _MANY:
                raise MemoryError(
                    f"{number + 1:,} batches were read, with {held:,} bytes, and more follow: "
                    "pass fewer, such as itertools.islice(loader, 100)"
                )
    return tuple(read)


def _with_keywords(batch: Any) -> Batch:
    """The batch with inputs of any Mapping, such as a tokenizer's, as a plain dict."""
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    if is_pair and isinstance(batch[0], Mapping) and type(batch[0]) is not dict:
        return dict(batch[0]), batch[1]
    same: Batch = batch
    return same


def _bytes_on_cpu(batch: object) -> int:
    """Bytes of the tensors of a batch that lie in the host's memory."""
    leaves = tree_leaves(batch)
    return sum(x.nbytes for x in leaves if isinstance(x, Tensor) and x.device.type == "cpu")


# --- numbers of samples -------------------------------------------------------------------------


def samples_of_batches(batches: Sequence[Batch], weight: Weight | None) -> tuple[int | None, ...]:
    """Number of samples of every batch, None where it cannot be told.

    It is told by the first axes of all tensors, which must agree.

    Raises
    ------
    TypeError, ValueError
        There is no batch, a batch is no pair or empty, inputs and targets differ in length, or the
        samples of one of several batches cannot be told; the last two only without `weight`. The
        weight of a batch is no positive number.
    """
    if not batches:
        raise ValueError("batches is empty: pass at least one (inputs, targets) pair")
    known = tuple(_samples(number, batch, weight) for number, batch in enumerate(batches))
    if weight is not None:
        terms_of_batches(batches, weight)  # refuses what gives no numbers
    if len(batches) > 1 and weight is None and None in known:
        number = known.index(None)
        raise ValueError(
            f"the samples of batch {number} cannot be counted: its inputs are "
            f"{described(batches[number][0])}, its targets {described(batches[number][1])}. "
            "Pass weight=, a function of a batch that says how many terms its loss averages, such "
            "as weight=lambda batch: len(batch[1])"
        )
    return known


def terms_of_batches(batches: Sequence[Batch], weight: Weight) -> tuple[float, ...]:
    """How many terms every batch averages; raises ValueError where that is no positive number."""
    return tuple(_terms(number, batch, weight) for number, batch in enumerate(batches))


def _terms(number: int, batch: Batch, weight: Weight) -> float:
    """How many terms one batch averages."""
    try:
        terms = float(weight(batch))
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"weight fails on batch {number} ({type(error).__name__}: {error}): let it take a "
            "batch (inputs, targets) and return one number"
        ) from error
    if not 0 < terms < float("inf"):
        raise ValueError(
            f"weight gives {terms} for batch {number}: let it return the number of terms that the "
            "loss of the batch averages, and drop batches without any"
        )
    return terms


def _samples(number: int, batch: Batch, weight: Weight | None) -> int | None:
    """Number of samples of one batch."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"batch {number} is a {type(batch).__name__}, not a pair: pass (inputs, targets) for "
            "every batch"
        )
    inputs, targets = batch
    _check_tensors(number, inputs)
    if not _has_rows(inputs, targets):
        return None
    lengths = set(_lengths(inputs))
    if not lengths or 0 in lengths:
        raise ValueError(
            f"batch {number} has no samples: drop it, or pass tensors with the samples along axis 0"
        )
    of_targets = set(_lengths(targets)) or lengths
    if len(lengths) == len(of_targets) == 1 and lengths != of_targets and weight is None:
        raise ValueError(
            f"batch {number} has {min(lengths)} inputs but {min(of_targets)} targets: give one "
            "target per input, or pass weight=, a function of a batch that says how many terms "
            "its loss averages"
        )
    # Tensors of several lengths, such as nodes and edges: none of them is guessed to be it.
    return min(lengths) if len(lengths | of_targets) == 1 else None


def _has_rows(inputs: object, targets: object) -> bool:
    """Whether the first axis of every tensor is that of the samples, by what kind of input it is.

    A list may hold one tensor per sample as well as several tensors with a row per sample.
    """
    if isinstance(inputs, PackedSequence):
        return False
    if isinstance(inputs, list) and (len(inputs) > 1 or isinstance(targets, list)):
        return False
    leaves = tree_leaves(inputs)
    return all(isinstance(x, Tensor | int | float | None) for x in leaves) and not any(
        isinstance(x, Tensor) and x.is_nested for x in leaves
    )


def _check_tensors(number: int, inputs: object) -> None:
    """Raises TypeError for arrays and numbers where tensors are meant."""
    leaves = tree_leaves(inputs)
    if any(isinstance(x, Tensor) for x in leaves):
        return
    if all(isinstance(x, np.ndarray | np.generic | int | float | str | None) for x in leaves):
        raise TypeError(
            f"the inputs of batch {number} are {type(inputs).__name__}: pass tensors, such as "
            "torch.as_tensor(inputs)"
        )
