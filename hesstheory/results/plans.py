"""Ways to traces, with what to expect of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import torch

from hesstheory.results.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd


class Rebatched(Protocol):
    """A problem, as far as a plan knows it: its samples can be cut into batches of another size."""

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Number of samples of every batch."""
        ...

    def rebatched(self, size: int) -> Self:
        """The same risk in batches of so many samples."""
        ...


@dataclass(frozen=True)
class Plan:
    """One way to the traces, with what to expect of it; a call measures them.

    Parameters
    ----------
    estimator
        What measures: `estimator(problem, generator)`, or `estimator(problem)` where it is exact.
    num_probes
        How many probes it draws, 0 where it is exact.
    relative_error
        By block the half-width of the interval over the trace. The intervals of all blocks hold
        jointly at the level that was asked for. Infinite where the trace may be zero.
    gradients
        The cost, in gradients of the whole risk.
    seconds
        The cost by the clock.
    batch_size
        Samples in a batch, at most.

    Examples
    --------
    >>> import pandas as pd
    >>> from hesstheory import LayerwiseTrace, Plan
    >>> errors = pd.Series({"0": 0.02, "2": 0.05})
    >>> plan = Plan(LayerwiseTrace(400), 400, errors, gradients=900.0, seconds=3.0, batch_size=64)
    >>> print(str(plan).partition(": ")[2])
    within 5 %, 900 gradients, 3 s, batches of 64
    """

    estimator: Callable[..., Estimate]
    num_probes: int
    relative_error: pd.Series[float]
    gradients: float
    seconds: float
    batch_size: int

    def __call__(self, problem: Rebatched, generator: torch.Generator) -> Estimate:
        """Traces by block, in batches of `batch_size`; an exact plan draws nothing."""
        if max(problem.batch_sizes) > self.batch_size:
            problem = problem.rebatched(self.batch_size)
        return self.estimator(problem) if self.is_exact else self.estimator(problem, generator)

    @property
    def is_exact(self) -> bool:
        """Whether the traces are exact up to rounding."""
        return self.num_probes == 0

    @property
    def worst(self) -> float:
        """The largest relative error that it leaves a block with."""
        return float(self.relative_error.max())

    def __str__(self) -> str:
        name = self.estimator.__name__ if self.is_exact else configured_name(self.estimator)
        if math.isinf(self.worst):
            unknown = [block for block, error in self.relative_error.items() if math.isinf(error)]
            return (
                f"{name}: the pilot cannot tell the trace of {', '.join(map(str, unknown))} "
                "from zero"
            )
        error = "exact" if self.is_exact else f"within {100 * self.worst:.3g} %"
        return (
            f"{name}: {error}, {self.gradients:,.3g} gradients, {self.seconds:,.3g} s, "
            f"batches of {self.batch_size}"
        )


def configured_name(estimator: object) -> str:
    """Its repr without the matrix, which is a function with an address."""
    kind, matrix, _ = repr(estimator).partition(", matrix=")
    return f"{kind})" if matrix else kind


@dataclass(frozen=True)
class Recommendation:
    """Plans that keep the error asked for, cheapest first, then those that do not.

    Examples
    --------
    >>> import pandas as pd
    >>> from hesstheory import Plan, Recommendation, exact_traces
    >>> plan = Plan(exact_traces, 0, pd.Series({"0": 0.0}), 9.0, 0.1, batch_size=64)
    >>> print(Recommendation((plan,)).best)
    exact_traces: exact, 9 gradients, 0.1 s, batches of 64
    """

    plans: tuple[Plan, ...]

    @property
    def best(self) -> Plan:
        """The cheapest plan that keeps the error; where none does, the cheapest of all."""
        return self.plans[0]

    def __str__(self) -> str:
        return "\n".join(map(str, self.plans))
