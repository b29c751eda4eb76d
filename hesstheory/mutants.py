"""Wrong estimators and wrong samplers, for authors of claims.

A claim names mutants: its checks must reject each of them. Those here serve claims about traces
from full-vector probes (`WrongTrace`), from separated probes (`WrongSeparated`) and about
distributions (functions of a `Probe`). The mutants of claim packages can be named here, too.
"""

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

# --- full-vector probes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongTrace:
    """A wrong layer-wise estimator: the right one, with one step spoilt.

    A subclass overrides one of the steps. It is called as any estimator is.

    Parameters
    ----------
    num_probes
        Probes of a call.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import LayerwiseTrace, zoo
    >>> from hesstheory.mutants import OnePercentHigh
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> probes = torch.ones(problem.num_params, 1, dtype=torch.float64)
    >>> wrong = OnePercentHigh()(problem, probes=probes)
    >>> right = LayerwiseTrace()(problem, probes=probes)
    >>> round(wrong["layer1"] / right["layer1"], 6)
    1.01
    """

    num_probes: int = 10

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
        probes: Tensor | None = None,
    ) -> Estimate:
        count = self.num_probes if num_probes is None else num_probes
        Z = self.spoilt_probes(problem, count, generator, probes)
        right = LayerwiseTrace(count, matrix=self.spoilt_matrix)
        return self.spoilt(right(self.spoilt_problem(problem), generator, probes=Z), problem)

    def spoilt_problem(self, problem: Problem) -> Problem:
        """The problem that the estimator sees instead of the one it is given."""
        return problem

    def spoilt_matrix(self, problem: Problem) -> Curvature:
        """The matrix that is measured."""
        return hessian(problem)

    def spoilt_probes(
        self,
        problem: Problem,
        num_probes: int,
        generator: torch.Generator | None,
        probes: Tensor | None,
    ) -> Tensor | None:
        """The probes that are used; `None` draws right ones from the generator."""
        return probes

    def spoilt(self, right: Estimate, problem: Problem) -> Estimate:
        """What is reported instead of the right estimate."""
        return right


class UnweightedBatches(WrongTrace):
    """Averages batches without weighting them by their size."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        spoilt = problem.with_batches(problem.batches)
        spoilt.samples_of_batch = (1,) * len(problem.batches)
        return spoilt


class LastBatchOnly(WrongTrace):
    """Differentiates the last batch instead of the data set."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        return problem.with_batches(problem.batches[-1:])


class GaussNewtonInstead(WrongTrace):
    """Measures the Gauss-Newton matrix and calls it the Hessian."""

    def spoilt_matrix(self, problem: Problem) -> Curvature:
        return ggn(problem)


class ShiftedBlocks(WrongTrace):
    """Hands every block the trace of its neighbour."""

    def spoilt(self, right: Estimate, problem: Problem) -> Estimate:
        names = list(right.samples.columns)
        shifted = right.samples.set_axis([*names[1:], names[0]], axis=1)
        return replace(right, samples=shifted[names])


class OnePercentHigh(WrongTrace):
    """Reports every trace one per cent too large."""

    def spoilt(self, right: Estimate, problem: Problem) -> Estimate:
        return replace(right, samples=1.01 * right.samples)


class JustOutsideRounding(WrongTrace):
    """Reports every trace off by one part in 10¹¹, just outside what rounding explains."""

    def spoilt(self, right: Estimate, problem: Problem) -> Estimate:
        return replace(right, samples=right.samples + 1e-11 * right.samples.abs().mean())


class ReseededPerLayer(WrongTrace):
    """Starts every layer's probe from the same random state, so that layers share signs."""

    def spoilt_probes(
        self,
        problem: Problem,
        num_probes: int,
        generator: torch.Generator | None,
        probes: Tensor | None,
    ) -> Tensor | None:
        if probes is None:
            return None
        spoilt = probes.clone()
        longest = max(problem.index.values(), key=len)
        for index in problem.index.values():
            spoilt[index] = spoilt[longest[: len(index)]]
        return spoilt


class ReusedProbe(WrongTrace):
    """Draws one probe for all products: right on average over runs, never within one."""

    def spoilt_probes(
        self,
        problem: Problem,
        num_probes: int,
        generator: torch.Generator | None,
        probes: Tensor | None,
    ) -> Tensor | None:
        if probes is not None:
            return probes
        z = Rademacher().sample(problem.num_params, 1, _given(generator))
        return z.expand(-1, num_probes)


class UnscaledProbes(WrongTrace):
    """Draws uniform entries on [−1, 1] without scaling them to unit variance."""

    def spoilt_probes(
        self,
        problem: Problem,
        num_probes: int,
        generator: torch.Generator | None,
        probes: Tensor | None,
    ) -> Tensor | None:
        if probes is not None:
            return probes
        return Uniform().sample(problem.num_params, num_probes, _given(generator)) / 3**0.5


class BiasJustOutsideMargin(WrongTrace):
    """Adds 0.52 standard deviations of one probe to every trace, just outside the margin of 0.5."""

    def spoilt(self, right: Estimate, problem: Problem) -> Estimate:
        H = hessian(problem).to_dense()
        deviations = theory.probe_covariance_matrix(H, problem.index, 1.0).diagonal().sqrt()
        return replace(right, samples=right.samples + 0.52 * deviations.numpy())


def _given(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or TypeError where there is none."""
    if generator is None:
        raise TypeError("pass a torch.Generator or probes=")
    return generator


# --- distributions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoilt:
    """A probe distribution with its draws changed.

    Parameters
    ----------
    probe
        What is declared.
    change
        What is made of the P×K draws.
    """

    probe: Probe
    change: Callable[[Tensor], Tensor]

    def kurtosis(self, num_params: int) -> float:
        """That of what is declared."""
        return self.probe.kurtosis(num_params)

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Tensor:
        """Changed draws, P×K."""
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


# --- separated probes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongSeparated:
    """Wrong separated probes: the right ones, with what they report spoilt.

    Parameters
    ----------
    num_probes
        Sweeps of a call.
    matrix
        The matrix that is measured.
    """

    num_probes: int = 10
    matrix: Callable[[Problem], Curvature] = hessian

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
        probes: Tensor | None = None,
    ) -> Estimate:
        count = self.num_probes if num_probes is None else num_probes
        # The draws of the right estimator, known to the step that is spoilt.
        if probes is None:
            probes = Rademacher().sample(problem.num_params, count, _given(generator))
        Z = probes.to(problem.dtype)
        right = BlockSeparatedTrace(count, matrix=self.matrix)(problem, probes=Z)
        return self.spoilt(right, problem, Z)

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor) -> Estimate:
        """What is reported instead of the right estimate."""
        return right


class SeparatedInNameOnly(WrongSeparated):
    """Reads all layers off one full-vector product and bills a whole sweep."""

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor) -> Estimate:
        layerwise = LayerwiseTrace(self.num_probes)(problem, probes=probes)
        return replace(layerwise, num_matvecs=right.num_matvecs)


class LeaksIntoNeighbour(WrongSeparated):
    """Leaves the next layer's entries in the probe, so that one cross block stays."""

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor) -> Estimate:
        samples = right.samples.copy()
        names = list(problem.index)
        for l, following in zip(names, [*names[1:], names[0]], strict=True):
            cut = torch.zeros_like(probes)
            for name in (l, following):
                cut[problem.index[name]] = probes[problem.index[name]]
            samples[l] = LayerwiseTrace()(problem, probes=cut).samples[l]
        return replace(right, samples=samples)


class SweepsForProducts(WrongSeparated):
    """Counts a sweep of L products as one product."""

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor) -> Estimate:
        return replace(right, num_matvecs=right.num_matvecs // len(problem.index))


class SeparatedJustOutsideRounding(WrongSeparated):
    """Reports every trace off by one part in 10⁹, just outside what rounding explains."""

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor) -> Estimate:
        return replace(right, samples=right.samples * (1 + 2**-30))


# --- the mutants of claims ------------------------------------------------------------------------


def __getattr__(name: str) -> object:
    """The mutants of all claim packages by name, such as `mutants.doubled_cross_blocks`."""
    # Of two claims with a mutant of one name, the later one has it.
    for claim in reversed(list(catalogue().values())):
        if name in claim.mutants:
            return claim.mutants[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
