"""How far rounding reaches in exact traces: what a spot check may find without other code."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem

# Two results differ by at most the sum of their errors. That of one is measured; that of the other,
# with other threads and another library, is taken to be at most three times as large.
_MARGIN = 4

Traces = Callable[[Problem], Tensor]


def rounding_of_traces(problem: Problem, traces: Traces, samples: int = 16) -> float:
    """Tolerance of the traces of a problem, relative to the largest of them.

    Single precision is compared with double precision on the first samples. Where the problem is in
    double precision, the difference is scaled by the two epsilons. A typed number would not do:
    batch norm of an untrained network amplifies rounding a thousandfold.

    Parameters
    ----------
    problem
        One batch of samples.
    traces
        Computes the traces of such a problem.
    samples
        How many are enough to see the rounding of a sample.
    """
    ((inputs, targets),) = problem.batches
    few: Batch = (inputs[:samples], targets[:samples])
    single = traces(_with_dtype(problem, few, torch.float32)).double()
    double = traces(_with_dtype(problem, few, torch.float64)).double()
    deviation = float((single - double).abs().max() / double.abs().max())
    ulps = deviation / torch.finfo(torch.float32).eps
    return _MARGIN * ulps * torch.finfo(problem.dtype).eps


def _with_dtype(problem: Problem, batch: Batch, dtype: torch.dtype) -> Problem:
    """The same network and loss on a batch, in another precision."""
    inputs, targets = batch
    model = copy.deepcopy(problem.model).to(dtype)
    return Problem(model, problem.loss_fn, [(inputs.to(dtype), targets)])
