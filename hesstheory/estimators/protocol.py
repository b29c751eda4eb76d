"""The one contract: what an estimator is, ours or anybody's, and what it may say of itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory import theory
from hesstheory.estimators.probes import Probe, independent_entries, independent_probes
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

# Variance of ONE probe on block l from ‖H_ll‖², Σ_i H_ii² and Σ_{m≠l} ‖H_lm‖², in this order.
VarianceLaw = Callable[[float, float, float], float]


@runtime_checkable
class Estimator(Protocol):
    """A way to block traces; a call measures them.

    `num_probes` overrides the estimator's own number, `None` leaves it. Two optional attributes
    say what an estimator claims of itself. `variance_law` is a `VarianceLaw`, or `None` where
    there is no such law. `is_exact` is true where the answer is the trace up to rounding,
    whatever the generator.
    """

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
    ) -> Estimate: ...


class TakesProbes(Estimator, Protocol):
    """An estimator with the keyword `probes`, which unlocks the checks without sampling.

    `probes` is a P×K tensor in the order of `problem.params`. It takes the place of drawn probes.
    An estimator that cannot take probes does not have the keyword.
    """

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
        probes: Float[Tensor, "params probes"] | None = None,
    ) -> Estimate: ...


def variance_law_of(estimator: object) -> VarianceLaw | None:
    """The variance law that an estimator claims, `None` where it claims none."""
    return cast("VarianceLaw | None", getattr(estimator, "variance_law", None))


def claims_exactness(estimator: object) -> bool:
    """Whether an estimator claims the trace up to rounding."""
    return bool(getattr(estimator, "is_exact", False))


def law_of_probe(probe: Probe) -> VarianceLaw | None:
    """T2 for the kurtosis of a distribution; `None` where entries or probes are dependent."""
    if not (independent_entries(probe) and independent_probes(probe)):
        return None
    # Independent entries have one kurtosis, whatever the number of parameters.
    return partial(theory.probe_variance_from_norms, kurtosis=probe.kurtosis(1))
