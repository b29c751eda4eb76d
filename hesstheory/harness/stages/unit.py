"""The unit of cost: one gradient of the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from hesstheory.autograd.graph import differentiating
from hesstheory.harness.stages.stage import Found, Stage
from hesstheory.harness.subject import Subject
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import best_of, seconds_of
from hesstheory.run.memory import keep_freed_memory

_REPEATS = 6  # the first of them fill caches; of the others the quickest counts


def gradient(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """Seconds of the quickest gradient by this process, with memory kept as products keep it."""
    keep_freed_memory()

    def of(problem: Problem) -> float:
        once = partial(flat_gradient, problem)
        return best_of(_REPEATS, lambda: seconds_of(once, subject.device))

    return Stage(seconds={"gradient": subject.halving(of, subject.problem)})


def flat_gradient(problem: Problem) -> Tensor:
    """The gradient of the risk, all parameters in one vector."""
    total = torch.zeros(problem.num_params, dtype=problem.dtype, device=problem.device)
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        with differentiating():
            parts = torch.autograd.grad(problem.loss(batch), list(problem.params.values()))
        total += weight * torch.cat([part.reshape(-1) for part in parts])
    return total
