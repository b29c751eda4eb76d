"""Ways to traces, with what to expect of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hesstheory.problem.risk import Problem

if TYPE_CHECKING:
    import pandas as pd


Estimator = Callable[..., Any]


@dataclass(frozen=True)
class Plan:
    """One way to the traces, with what to expect of it; a call measures them.

    `relative_error` holds by block the half-width of the interval, over the trace, that all blocks keep jointly at the
    level asked for; `gradients` is the cost in gradients of the whole risk, `seconds` the same by the clock.
    """

    estimator: Estimator
    num_probes: int
    relative_error: pd.Series[float]
    gradients: float
    seconds: float
    batch_size: int

    def __call__(self, problem: Problem, generator: torch.Generator) -> pd.Series[float]:
        """Traces by block, in batches of `batch_size`."""
        problem = problem.rebatched(self.batch_size)
        traces: pd.Series[float] = (
            self.estimator(problem) if self.is_exact else self.estimator(problem, generator).value
        )
        return traces

    @property
    def is_exact(self) -> bool:
        return self.num_probes == 0

    @property
    def worst(self) -> float:
        """The largest relative error that it leaves a block with."""
        return float(self.relative_error.max())

    def __str__(self) -> str:
        name = self.estimator.__name__ if self.is_exact else configured_name(self.estimator)
        error = "exact" if self.is_exact else f"within {100 * self.worst:.3g} %"
        if math.isinf(self.worst):
            unknown = [block for block, error in self.relative_error.items() if math.isinf(error)]
            return f"{name}: the pilot cannot tell the trace of {', '.join(map(str, unknown))} from zero"
        return f"{name}: {error}, {self.gradients:,.3g} gradients, {self.seconds:,.3g} s, batches of {self.batch_size}"


def configured_name(estimator: Any) -> str:
    """Its repr without the matrix, which is a function with an address."""
    kind, matrix, _ = repr(estimator).partition(", matrix=")
    return f"{kind})" if matrix else kind


@dataclass(frozen=True)
class Recommendation:
    """Plans that keep the error asked for, cheapest first, then those that do not."""

    plans: tuple[Plan, ...]

    @property
    def best(self) -> Plan:
        return self.plans[0]

    def __str__(self) -> str:
        return "\n".join(map(str, self.plans))
