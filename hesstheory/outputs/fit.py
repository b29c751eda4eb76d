"""Batches that fit into memory together with what a trace keeps of them."""

from __future__ import annotations

import torch

from hesstheory.autograd.graph import graph_values
from hesstheory.autograd.rows import apart_by_graph
from hesstheory.outputs.per_sample import Linearised, first_samples
from hesstheory.outputs.separable import bytes_of_root
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import free_memory

# Bytes that are there without asking the system, which takes longer than a small network's trace.
_LITTLE = 16 * 2**20

# Times the values of the forward graph that are held at most: these, the slopes, the patches and
# the Gram matrices.
_KEPT = 3


def fitted(problem: Problem, few: Linearised | None = None) -> Problem:
    """The same risk in batches that half of the free memory holds with what a trace keeps of them.

    All samples are taken to be of the size of the first ones of the largest batch.

    Parameters
    ----------
    problem
        Its batches are cut where they are too large.
    few
        Its first samples, linearised, if they are there already.

    Raises
    ------
    MemoryError
        A single sample is too large, or the model gives other outputs in smaller batches.
    """
    few = first_samples(problem) if few is None else few
    largest = max(problem.batch_sizes)
    at_most = _bytes_of(problem, few, few.pushed_values) * largest
    if at_most <= _LITTLE or at_most <= (budget := free_memory(problem.device) // 2):
        return problem
    of_sample = _bytes_of_sample(problem, few)
    if of_sample is None:
        return problem
    if of_sample > budget:
        raise MemoryError(
            f"a single sample takes about {of_sample:,} bytes and {budget:,} may be used: free "
            "memory, or use smaller inputs or a smaller dtype"
        )
    size = budget // of_sample
    if size >= largest:
        return problem
    parts = problem.rebatched(size)
    if not apart_by_graph(few.outputs):
        _check_same_in_parts(problem, parts)
    return parts


def _bytes_of(problem: Problem, few: Linearised, values: int) -> int:
    """Bytes of so many values of a graph, and of a sample's loss Hessian with its root."""
    of_loss = bytes_of_root(few.outputs)
    return _KEPT * (problem.dtype.itemsize * max(values, 1) + of_loss)


def _bytes_of_sample(problem: Problem, few: Linearised) -> int | None:
    """What a second sample adds; None for a model that takes whole batches alone."""
    largest = problem.largest()
    try:
        one = largest.head(1)
        two = largest.head(2)
        alone = one.outputs(one.batches[0])
        both = two.outputs(two.batches[0])
    except (RuntimeError, ValueError, IndexError):
        return None
    if alone.numel() == both.numel():
        return None
    # The difference leaves out the parameters, which lie there already.
    return _bytes_of(problem, few, graph_values(both) - graph_values(alone))


def _check_same_in_parts(problem: Problem, parts: Problem) -> None:
    """Raises MemoryError where smaller batches have other outputs."""
    with torch.no_grad():
        whole = torch.cat([problem.outputs(batch) for batch in problem.batches])
        cut = torch.cat([parts.outputs(batch) for batch in parts.batches])
    # Half of the digits: kernels of another size add up in another order, a model that mixes
    # samples changes leading digits.
    bound = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max()
    if not bool(((whole - cut).abs() <= bound).all()):
        raise MemoryError(
            f"batches of {max(problem.batch_sizes)} samples take too much memory, and cut into "
            f"parts of {max(parts.batch_sizes)} the model gives other outputs: free memory, or "
            "use a smaller dtype"
        )
