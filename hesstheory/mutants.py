"""Would we notice? Wrong probes, estimators and formulas, each named by its sin.

A mutant stands in for the subject of a claim and must change the outcome of one of its checks. The first line of a
docstring is the sin as the report prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.curvature import ggn, hessian
from hesstheory.estimators import Estimate, Gaussian, LayerwiseTrace, Probe, Rademacher, Uniform
from hesstheory.problem import Problem

# --- layer-wise estimators ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongTrace:
    """A wrong layer-wise estimator: the right one, with one step spoilt."""

    num_probes: int = 10

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        return LayerwiseTrace(self.num_probes)(self.spoilt_problem(problem), generator, probes=probes)

    def spoilt_problem(self, problem: Problem) -> Problem:
        """The problem that the estimator sees instead of the one it is given."""
        return problem


class UnweightedBatches(WrongTrace):
    """Averages batches without weighting them by their size."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        spoilt = problem.with_batches(problem.batches)
        spoilt.batch_sizes = (1,) * len(problem.batches)
        return spoilt


class LastBatchOnly(WrongTrace):
    """Differentiates the last batch instead of the data set."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        return problem.with_batches(problem.batches[-1:])


class GaussNewtonInstead(WrongTrace):
    """Measures the Gauss-Newton matrix and calls it the Hessian."""

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        return LayerwiseTrace(self.num_probes, matrix=ggn)(problem, generator, probes=probes)


class ShiftedBlocks(WrongTrace):
    """Hands every block the trace of its neighbour."""

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        names = list(right.samples.columns)
        return replace(right, samples=right.samples.set_axis([*names[1:], names[0]], axis=1)[names])


class OnePercentHigh(WrongTrace):
    """Reports every trace one per cent too large."""

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        return replace(right, samples=1.01 * right.samples)


class JustOutsideRounding(WrongTrace):
    """Reports every trace off by one part in 10¹¹, just outside what rounding explains."""

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        return replace(right, samples=right.samples + 1e-11 * right.samples.abs().mean())


class ReseededPerLayer(WrongTrace):
    """Starts every layer's probe from the same random state, so that layers share signs."""

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        if probes is not None:
            probes = probes.clone()
            longest = max(problem.index.values(), key=len)
            for index in problem.index.values():
                probes[index] = probes[longest[: len(index)]]
        return LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)


class ReusedProbe(WrongTrace):
    """Draws one probe and reuses it for all products: right on average over runs, never within one."""

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        if probes is None:
            probes = Rademacher().sample(problem.num_params, 1, _given(generator)).expand(-1, self.num_probes)
        return LayerwiseTrace(self.num_probes)(problem, probes=probes)


class UnscaledProbes(WrongTrace):
    """Draws uniform entries on [−1, 1] without scaling them to unit variance."""

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        if probes is None:
            probes = Uniform().sample(problem.num_params, self.num_probes, _given(generator)) / 3**0.5
        return LayerwiseTrace(self.num_probes)(problem, probes=probes)


class BiasJustOutsideMargin(WrongTrace):
    """Adds 0.52 standard deviations of one probe to every trace, just outside the margin of 0.5."""

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        H = hessian(problem).to_dense()
        blocks = theory.probe_covariance_matrix(H, problem.index, 1.0).diagonal().sqrt()
        return replace(right, samples=right.samples + 0.52 * blocks.numpy())


def _given(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise TypeError("pass a torch.Generator or probes=")
    return generator


# --- samplers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoilt:
    """A probe distribution with its draws changed."""

    probe: Probe
    change: Callable[[Tensor], Tensor]

    def kurtosis(self, num_params: int) -> float:
        return self.probe.kurtosis(num_params)

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Tensor:
        return self.change(self.probe.sample(num_params, num_probes, generator))


def normals_for_signs(probe: Probe) -> Probe:
    """Draws normals where signs are declared: the mean stays right, the variance does not."""
    return Gaussian() if isinstance(probe, Rademacher) else probe


def signs_for_normals(probe: Probe) -> Probe:
    """Draws signs where normals are declared."""
    return Rademacher() if isinstance(probe, Gaussian) else probe


def probe_shared_by_entries(probe: Probe) -> Probe:
    """Gives the first two entries of the probe one and the same value."""
    return Spoilt(probe, lambda Z: torch.cat([Z[:1], Z[:1], Z[2:]]))


def variance_just_outside_margin(probe: Probe) -> Probe:
    """Scales the probe so that E z² is 4 % above 1, just outside the margin of 3 %."""
    return Spoilt(probe, lambda Z: 1.04**0.5 * Z)


# --- variance formulas ----------------------------------------------------------------------------------------------


def dropped_cross_blocks(H_ll: Any, cross_blocks: Iterable[Any], kurtosis: Any) -> Any:
    """Omits the cross-block term Σ_{m≠l} ‖H_lm‖²."""
    return theory.probe_variance(H_ll, (), kurtosis)


def doubled_cross_blocks(H_ll: Any, cross_blocks: Iterable[Any], kurtosis: Any) -> Any:
    """Gives the cross-block term the coefficient 2 of the diagonal block."""
    cross = list(cross_blocks)
    return theory.probe_variance(H_ll, cross + cross, kurtosis)


def kurtosis_ignored(H_ll: Any, cross_blocks: Iterable[Any], kurtosis: Any) -> Any:
    """Uses the normal fourth moment whatever the probe."""
    return theory.probe_variance(H_ll, cross_blocks, 3)


def kurtosis_on_cross_blocks(H_ll: Any, cross_blocks: Iterable[Any], kurtosis: Any) -> Any:
    """Scales the cross-block term with κ − 2, as if its coefficient depended on the probe."""
    cross = list(cross_blocks)
    own = theory.probe_variance(H_ll, (), kurtosis)
    return own + (kurtosis - 2) * (theory.probe_variance(H_ll, cross, kurtosis) - own)


def excess_kurtosis(H_ll: Any, cross_blocks: Iterable[Any], kurtosis: Any) -> Any:
    """Takes κ for the excess kurtosis κ − 3, so the diagonal is counted three times too much."""
    cross = list(cross_blocks)
    return theory.probe_variance(H_ll, cross, kurtosis + 3)


def variance_just_outside_rounding(H_ll: Any, cross_blocks: Iterable[Any], kurtosis: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.probe_variance(H_ll, cross_blocks, kurtosis) * (1 + 2**-30)


# --- covariance, sphere, crossover ----------------------------------------------------------------------------------


def covariance_doubled(H_lm: Any) -> Any:
    """Counts both H_lm and H_ml in the covariance of two layers."""
    return 2 * theory.probe_covariance(H_lm)


def covariance_of_signs_zero(H_lm: Any) -> Any:
    """Takes the layers' estimates for uncorrelated, because their probes are independent."""
    return 0 * theory.probe_covariance(H_lm)


def covariance_just_outside_rounding(H_lm: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.probe_covariance(H_lm) * (1 + 2**-30)


def advantage_halved(H_ll: Any) -> Any:
    """Forgets the factor 2 of the gap between normal and sign probes."""
    return theory.rademacher_advantage(H_ll) / 2


def advantage_of_the_trace(H_ll: Any) -> Any:
    """Puts the squared trace for the sum of squares of the diagonal."""
    return 2 * H_ll.trace() ** 2


def advantage_of_the_whole_block(H_ll: Any) -> Any:
    """Sums the squares of the whole block, not of its diagonal."""
    return 2 * theory.squared_norm(H_ll)


def sphere_as_normal(H_ll: Any, cross_blocks: Iterable[Any], num_params: Any) -> Any:
    """Takes a point of the sphere for a normal vector."""
    return theory.probe_variance(H_ll, cross_blocks, 3)


def sphere_without_trace_term(H_ll: Any, cross_blocks: Iterable[Any], num_params: Any) -> Any:
    """Omits −2/(P+2)·(tr H_ll)²."""
    return num_params * theory.probe_variance(H_ll, cross_blocks, 3) / (num_params + 2)


def sphere_of_the_block_only(H_ll: Any, cross_blocks: Iterable[Any], num_params: Any) -> Any:
    """Puts the size of the block for that of the whole probe."""
    return theory.sphere_variance(H_ll, cross_blocks, H_ll.shape[0])


# --- tied weights ---------------------------------------------------------------------------------------------------


# --- probe trade-off: batches, K*, cost, ANOVA ----------------------------------------------------------------------


# --- train mode, signs, detection, probe designs --------------------------------------------------------------------


# --- tests ----------------------------------------------------------------------------------------------------------
