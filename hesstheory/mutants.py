"""Wrong estimators and samplers: layer-wise, separated and in train mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.claims.registry import catalogue
from hesstheory.curvature.matrix import Curvature, ggn, hessian
from hesstheory.estimators.probes import Gaussian, Probe, Rademacher, Uniform
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate


@dataclass(frozen=True)
class WrongTrace:
    """A wrong layer-wise estimator: the right one, with one step spoilt."""

    num_probes: int = 10

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        return LayerwiseTrace(self.num_probes)(
            self.spoilt_problem(problem), generator, probes=probes
        )

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
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        return LayerwiseTrace(self.num_probes, matrix=ggn)(problem, generator, probes=probes)


class ShiftedBlocks(WrongTrace):
    """Hands every block the trace of its neighbour."""

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        names = list(right.samples.columns)
        return replace(right, samples=right.samples.set_axis([*names[1:], names[0]], axis=1)[names])


class OnePercentHigh(WrongTrace):
    """Reports every trace one per cent too large."""

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        return replace(right, samples=1.01 * right.samples)


class JustOutsideRounding(WrongTrace):
    """Reports every trace off by one part in 10¹¹, just outside what rounding explains."""

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        return replace(right, samples=right.samples + 1e-11 * right.samples.abs().mean())


class ReseededPerLayer(WrongTrace):
    """Starts every layer's probe from the same random state, so that layers share signs."""

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
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
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        if probes is None:
            probes = (
                Rademacher()
                .sample(problem.num_params, 1, _given(generator))
                .expand(-1, self.num_probes)
            )
        return LayerwiseTrace(self.num_probes)(problem, probes=probes)


class UnscaledProbes(WrongTrace):
    """Draws uniform entries on [−1, 1] without scaling them to unit variance."""

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        if probes is None:
            probes = (
                Uniform().sample(problem.num_params, self.num_probes, _given(generator)) / 3**0.5
            )
        return LayerwiseTrace(self.num_probes)(problem, probes=probes)


class BiasJustOutsideMargin(WrongTrace):
    """Adds 0.52 standard deviations of one probe to every trace, just outside the margin of 0.5."""

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        H = hessian(problem).to_dense()
        blocks = theory.probe_covariance_matrix(H, problem.index, 1.0).diagonal().sqrt()
        return replace(right, samples=right.samples + 0.52 * blocks.numpy())


def _given(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise TypeError("pass a torch.Generator or probes=")
    return generator


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


@dataclass(frozen=True)
class WrongSeparated:
    """Wrong separated probes: the right ones, with one step spoilt."""

    num_probes: int = 10
    matrix: Callable[[Problem], Curvature] = hessian

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Tensor | None = None,
    ) -> Estimate:
        right = BlockSeparatedTrace(self.num_probes, matrix=self.matrix)(
            problem, generator, probes=probes
        )
        return self.spoilt(right, problem, probes)

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor | None) -> Estimate:
        """What is reported instead of the right estimate."""
        return right


class SeparatedInNameOnly(WrongSeparated):
    """Reads all layers off one full-vector product and bills a whole sweep."""

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor | None) -> Estimate:
        return replace(
            LayerwiseTrace(self.num_probes)(problem, probes=probes), num_matvecs=right.num_matvecs
        )


class LeaksIntoNeighbour(WrongSeparated):
    """Leaves the next layer's entries in the probe, so that one cross block stays."""

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor | None) -> Estimate:
        if probes is None:
            return right
        samples, names = right.samples.copy(), list(problem.index)
        for l, following in zip(names, [*names[1:], names[0]], strict=True):
            cut = torch.zeros_like(probes)
            for name in (l, following):
                cut[problem.index[name]] = probes[problem.index[name]]
            samples[l] = LayerwiseTrace()(problem, probes=cut).samples[l]
        return replace(right, samples=samples)


class SweepsForProducts(WrongSeparated):
    """Counts a sweep of L products as one product."""

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor | None) -> Estimate:
        return replace(right, num_matvecs=right.num_matvecs // len(problem.index))


class SeparatedJustOutsideRounding(WrongSeparated):
    """Reports every trace off by one part in 10⁹, just outside what rounding explains."""

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor | None) -> Estimate:
        return replace(right, samples=right.samples * (1 + 2**-30))


def __getattr__(name: str) -> Any:
    """The mutants of all claim packages by name, such as `hesstheory.mutants.doubled_cross_blocks`."""
    named = {
        mutant: subject
        for claim in catalogue().values()
        for mutant, subject in claim.mutants.items()
    }
    if name in named:
        return named[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
