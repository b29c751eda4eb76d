"""The one contract: what an estimator is, ours or anybody's, and what it may say of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

# Variance of ONE probe on block l from ‖H_ll‖², Σ_i H_ii² and Σ_{m≠l} ‖H_lm‖², in this order.
VarianceLaw = Callable[[float, float, float], float]


@runtime_checkable
class Estimator(Protocol):
    """A way to block traces; a call measures them.

    `num_probes` overrides the estimator's own number, `None` leaves it; `probes`, a P×K tensor in the order of
    `problem.params`, takes the place of drawn ones where the estimator accepts them. Two optional attributes say what
    an estimator claims of itself: `variance_law`, a `VarianceLaw`, and `is_exact`, true where the answer is the trace
    up to rounding, whatever the generator.
    """

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
        probes: Float[Tensor, "params probes"] | None = None,
    ) -> Estimate: ...
