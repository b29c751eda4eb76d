"""Wrong control variates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesstheory.curvature.matrix import ggn, residual
from hesstheory.estimators.probes import Probe, Rademacher
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd


if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class WrongControl:
    """A wrong control variate: the right one, with one step spoilt."""

    num_probes: int = 10
    probe: Probe = field(default_factory=Rademacher)

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        known, rest = self.parts(problem, generator, probes)
        return Estimate(rest.samples + known, rest.num_matvecs)

    def parts(
        self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None
    ) -> tuple[pd.Series[float] | float, Estimate]:
        """What is added exactly, and the estimate of the rest."""
        rest = LayerwiseTrace(self.num_probes, self.probe, residual)(
            problem, generator, probes=probes
        )
        return exact_traces(problem, matrix=ggn).value, rest


class ControlOnTheHessian(WrongControl):
    """Adds tr G to probes on H, so that G is counted twice."""

    def parts(
        self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None
    ) -> tuple[pd.Series[float] | float, Estimate]:
        rest = LayerwiseTrace(self.num_probes, self.probe)(problem, generator, probes=probes)
        return exact_traces(problem, matrix=ggn).value, rest


class NoControl(WrongControl):
    """Probes H, as if there were no control variate."""

    def parts(
        self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None
    ) -> tuple[pd.Series[float] | float, Estimate]:
        return 0.0, LayerwiseTrace(self.num_probes, self.probe)(problem, generator, probes=probes)


class ResidualForgotten(WrongControl):
    """Reports tr G for tr H."""

    def parts(
        self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None
    ) -> tuple[pd.Series[float] | float, Estimate]:
        known, rest = super().parts(problem, generator, probes)
        return known, Estimate(0 * rest.samples, rest.num_matvecs)


class ControlBySeparatedProbes(WrongControl):
    """Cuts the probes to one layer at a time, which drops the cross blocks of R at the price of L
    products."""

    def parts(
        self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None
    ) -> tuple[pd.Series[float] | float, Estimate]:
        rest = BlockSeparatedTrace(self.num_probes, self.probe, residual)(
            problem, generator, probes=probes
        )
        return exact_traces(problem, matrix=ggn).value, rest


class ControlJustOutsideRounding(WrongControl):
    """Adds tr G off by one part in 10¹¹, just outside what rounding explains."""

    def parts(
        self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None
    ) -> tuple[pd.Series[float] | float, Estimate]:
        known, rest = super().parts(problem, generator, probes)
        return known * (1 + 1e-11), rest
