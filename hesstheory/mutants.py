"""Would we notice? Wrong probes, estimators and formulas, each named by its sin.

A mutant stands in for the subject of a claim and must change the outcome of one of its checks. The first line of a
docstring is the sin as the report prints it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from hesstheory import theory
from hesstheory.curvature import Curvature, ggn, hessian, unrolled_hessian
from hesstheory.estimators import (
    BlockSeparatedTrace,
    Estimate,
    Gaussian,
    LayerwiseTrace,
    Probe,
    Rademacher,
    Uniform,
    hadamard_columns,
)
from hesstheory.evidence import SequentialTest, Status, Tail
from hesstheory.problem import Batch, Problem

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


@dataclass(frozen=True)
class WrongSeparated:
    """Wrong separated probes: the right ones, with one step spoilt."""

    num_probes: int = 10
    matrix: Callable[[Problem], Curvature] = hessian

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        right = BlockSeparatedTrace(self.num_probes, matrix=self.matrix)(problem, generator, probes=probes)
        return self.spoilt(right, problem, probes)

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor | None) -> Estimate:
        """What is reported instead of the right estimate."""
        return right


class SeparatedInNameOnly(WrongSeparated):
    """Reads all layers off one full-vector product and bills a whole sweep."""

    def spoilt(self, right: Estimate, problem: Problem, probes: Tensor | None) -> Estimate:
        return replace(LayerwiseTrace(self.num_probes)(problem, probes=probes), num_matvecs=right.num_matvecs)


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


def crossover_per_probe(H_ll: Any, cross_blocks: Iterable[Any], num_layers: Any, kurtosis: Any) -> Any:
    """Compares the designs probe by probe, as if a sweep cost one product."""
    return theory.crossover_margin(H_ll, cross_blocks, 1, kurtosis)


def crossover_one_layer_too_many(H_ll: Any, cross_blocks: Iterable[Any], num_layers: Any, kurtosis: Any) -> Any:
    """Multiplies by L instead of L − 1."""
    return theory.crossover_margin(H_ll, cross_blocks, num_layers + 1, kurtosis)


def crossover_without_cross_blocks(H_ll: Any, cross_blocks: Iterable[Any], num_layers: Any, kurtosis: Any) -> Any:
    """Takes the full-vector probe for as quiet as the separated one."""
    return theory.crossover_margin(H_ll, (), num_layers, kurtosis)


def crossover_with_doubled_cross_blocks(H_ll: Any, cross_blocks: Iterable[Any], num_layers: Any, kurtosis: Any) -> Any:
    """Gives the cross blocks the coefficient 2."""
    cross = list(cross_blocks)
    return theory.crossover_margin(H_ll, cross + cross, num_layers, kurtosis)


def crossover_of_normals(H_ll: Any, cross_blocks: Iterable[Any], num_layers: Any, kurtosis: Any) -> Any:
    """Uses the normal fourth moment whatever the probe."""
    return theory.crossover_margin(H_ll, cross_blocks, num_layers, 3)


def crossover_just_outside_rounding(H_ll: Any, cross_blocks: Iterable[Any], num_layers: Any, kurtosis: Any) -> Any:
    """Puts the threshold one part in 10⁶ too high."""
    return theory.crossover_margin(H_ll, cross_blocks, 1 + (num_layers - 1) * (1 + 2**-20), kurtosis)


# --- tied weights ---------------------------------------------------------------------------------------------------


def tied_bias_reversed(U: Any) -> Any:
    """Gives the bias the other sign."""
    return -theory.tied_bias(U)


def tied_bias_pairs_once(U: Any) -> Any:
    """Counts every pair of instances once instead of twice."""
    return theory.tied_bias(U) / 2


def tied_bias_of_neighbours(U: Any) -> Any:
    """Forgets pairs of instances that do not follow one another."""
    return -2 * sum(U[r, :, r + 1, :].trace() for r in range(len(U) - 1))


def tied_bias_none(U: Any) -> Any:
    """Takes independent probes for unbiased."""
    return 0 * theory.tied_bias(U)


def tied_bias_just_outside_rounding(U: Any) -> Any:
    """Is off by one part in 10⁹ of the trace that is counted."""
    return theory.tied_bias(U) + 2**-30 * sum(abs(U[r, :, r, :].trace()) for r in range(len(U)))


def _own_traces(U: Any) -> Any:
    return sum(U[r, :, r, :].trace() for r in range(len(U)))


def bounds_for_two_instances(U: Any) -> theory.Bounds:
    """Uses the lower bound of two instances whatever their number."""
    return theory.Bounds(low=-_own_traces(U), high=_own_traces(U))


def bounds_exchanged(U: Any) -> theory.Bounds:
    """Puts the factor T − 1 on the upper bound."""
    return theory.Bounds(low=-_own_traces(U), high=(len(U) - 1) * _own_traces(U))


def bounds_with_one_instance_more(U: Any) -> theory.Bounds:
    """Multiplies by T instead of T − 1: true, but never attained."""
    return theory.Bounds(low=-len(U) * _own_traces(U), high=_own_traces(U))


def bounds_just_outside_rounding(U: Any) -> theory.Bounds:
    """Is one part in 10⁹ too narrow."""
    right = theory.tied_bias_bounds(U)
    return theory.Bounds(low=right.low * (1 - 2**-30), high=right.high * (1 - 2**-30))


def bounds_unasked(U: Any) -> theory.Bounds:
    """Gives the bounds for any U."""
    return theory.Bounds(low=-(len(U) - 1) * _own_traces(U), high=_own_traces(U))


def bounds_for_positive_diagonal(U: Any) -> theory.Bounds:
    """Asks only for a positive diagonal of U."""
    if min(U[r, i, r, i] for r in range(U.shape[0]) for i in range(U.shape[1])) < 0:
        raise ValueError("U has a negative diagonal entry")
    return bounds_unasked(U)


def bounds_for_positive_blocks(U: Any) -> theory.Bounds:
    """Asks only for U_rr ⪰ 0, instance by instance."""
    if min(torch.linalg.eigvalsh(U[r, :, r, :]).min() for r in range(len(U))) < 0:
        raise ValueError("a diagonal block of U is indefinite")
    return bounds_unasked(U)


def bounds_for_positive_sum(U: Any) -> theory.Bounds:
    """Asks only for H_w = Σ_rs U_rs ⪰ 0."""
    if torch.linalg.eigvalsh(U.sum((0, 2))).min() < 0:
        raise ValueError("the Hessian of the tied tensor is indefinite")
    return bounds_unasked(U)


def unrolled_last_batch(problem: Problem, name: str) -> Tensor:
    """Unrolls the last batch instead of the data set."""
    return unrolled_hessian(problem.with_batches(problem.batches[-1:]), name)


def unrolled_unweighted(problem: Problem, name: str) -> Tensor:
    """Averages batches without weighting them by their size."""
    each = [unrolled_hessian(problem.with_batches([batch]), name) for batch in problem.batches]
    return torch.stack(each).mean(0)


def unrolled_without_cross_instances(problem: Problem, name: str) -> Tensor:
    """Keeps only the blocks of an instance with itself."""
    U = unrolled_hessian(problem, name)
    same = torch.eye(len(U), dtype=U.dtype)
    return U * same[:, None, :, None]


def unrolled_backwards(problem: Problem, name: str) -> Tensor:
    """Numbers the instances backwards along one side only."""
    return unrolled_hessian(problem, name).flip(0)


def unrolled_just_outside_rounding(problem: Problem, name: str) -> Tensor:
    """Is off by one part in 10⁹."""
    return unrolled_hessian(problem, name) * (1 + 2**-30)


def probe_per_instance(num_params: int, num_instances: int) -> Tensor:
    """Gives every instance its own independent probe."""
    return hadamard_columns(num_params * num_instances)


def probe_of_alternating_sign(num_params: int, num_instances: int) -> Tensor:
    """Copies one probe, with the sign of every second copy changed."""
    return torch.cat([(-1) ** r * hadamard_columns(num_params) for r in range(num_instances)])


def probe_of_unit_length(num_params: int, num_instances: int) -> Tensor:
    """Copies one probe divided by √T, as if the copies had to share its length."""
    return hadamard_columns(num_params).repeat(num_instances, 1).div(num_instances**0.5)


def probe_without_last_instance(num_params: int, num_instances: int) -> Tensor:
    """Forgets to copy the probe to the last instance."""
    Z = hadamard_columns(num_params).repeat(num_instances, 1)
    return torch.cat([Z[:-num_params], 0 * Z[-num_params:]])


def probe_copies_just_outside_rounding(num_params: int, num_instances: int) -> Tensor:
    """Copies a probe whose entries are one part in 10⁹ too large."""
    return hadamard_columns(num_params).repeat(num_instances, 1) * (1 + 2**-30)


# Traps: ways to lose a tie in PyTorch. Each takes a problem whose modules `owners` hold one `weight` between them, and
# gives what a user would take for the Hessian of that weight.


def own_blocks(loss: Tensor, leaves: Iterable[Tensor], *, allow_unused: bool = False) -> Tensor:
    """Sum over the leaves, all of one shape, of each one's own Hessian block, in plain PyTorch row by row.

    A leaf that the loss does not reach counts as zero with `allow_unused`, and raises without.
    """
    leaves = list(leaves)
    total = leaves[0].new_zeros(leaves[0].numel(), leaves[0].numel())
    gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=allow_unused)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in gradient.flatten()]
            total += torch.stack(rows).reshape(total.shape)
    return total


def plain_risk(problem: Problem, model: Callable[..., Tensor]) -> Tensor:
    """The risk of another model on the problem's data."""
    losses = [problem.loss_fn(model(inputs), targets) for inputs, targets in problem.batches]
    return torch.stack([weight * loss for weight, loss in zip(problem.weights, losses, strict=True)]).sum()


def every_alias_counted(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Lists the weight under all of its names with named_parameters(remove_duplicate=False)."""
    named = dict(problem.model.named_parameters(remove_duplicate=False))
    return own_blocks(plain_risk(problem, problem.model), [named[f"{owner}.weight"] for owner in owners])


def untied_functional_call(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Hands a copy under every name to functional_call(tie_weights=False)."""
    named = {f"{owner}.weight": _fresh(weight_of(problem.model, owner)) for owner in owners}
    model = partial(functional_call, problem.model, named, tie_weights=False)
    return own_blocks(plain_risk(problem, model), named.values())


def one_alias_untied(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Hands the weight under its first name only to functional_call(tie_weights=False)."""
    weight = _fresh(weight_of(problem.model, owners[0]))
    model = partial(functional_call, problem.model, {f"{owners[0]}.weight": weight}, tie_weights=False)
    return own_blocks(plain_risk(problem, model), [weight])


def two_parameters_one_storage(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Wraps the storage of the weight in an nn.Parameter for every module."""
    model = copy.deepcopy(problem.model)
    for owner in owners:
        model.get_submodule(owner).weight = nn.Parameter(weight_of(model, owner).data)
    return own_blocks(plain_risk(problem, model), [weight_of(model, owner) for owner in owners])


def parametrised_tensors(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Differentiates in the modules' parametrised weights, held fast by parametrize.cached()."""
    model = with_parametrisation(problem.model, owners)
    with parametrize.cached():
        weights = [weight_of(model, owner) for owner in owners]
        return own_blocks(plain_risk(problem, model), weights)


def unused_parametrised_tensors(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Differentiates in the modules' parametrised weights and lets allow_unused=True hide that they are new ones."""
    model = with_parametrisation(problem.model, owners)
    weights = [weight_of(model, owner) for owner in owners]
    return own_blocks(plain_risk(problem, model), weights, allow_unused=True)


def reentrant_checkpoint(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Checkpoints the first module that uses the weight with use_reentrant=True."""
    model = with_checkpoint(problem.model, owners[0], use_reentrant=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        return own_blocks(plain_risk(problem, model), [weight_of(model, owners[1])])


def hessian_just_outside_rounding(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Is off by one part in 10⁹."""
    weight = weight_of(problem.model, owners[0])
    return own_blocks(plain_risk(problem, problem.model), [weight]) * (1 + 2**-30)


def with_parametrisation(model: nn.Module, owners: Iterable[str]) -> nn.Module:
    """A copy whose weights are what a parametrisation, here a plain copy, makes of their common original."""
    model = copy.deepcopy(model)
    for owner in owners:
        parametrize.register_parametrization(model.get_submodule(owner), "weight", _Copied())
    return model


def with_checkpoint(model: nn.Module, owner: str, *, use_reentrant: bool) -> nn.Module:
    """A copy with one module checkpointed."""
    model = copy.deepcopy(model)
    module = model.get_submodule(owner)
    module.forward = partial(checkpoint, module.forward, use_reentrant=use_reentrant)
    return model


class _Copied(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.clone()


def weight_of(model: nn.Module, owner: str) -> Tensor:
    """The weight of a submodule: its parameter, or what its parametrisation makes of it now."""
    weight = model.get_submodule(owner).weight
    assert isinstance(weight, Tensor)
    return weight


def _fresh(weight: Tensor) -> Tensor:
    return weight.detach().clone().requires_grad_()


def all_traps_alike(U: Tensor) -> dict[str, Tensor]:
    """Expects every trap to keep the blocks of each instance with itself."""
    own = torch.stack([U[r, :, r, :] for r in range(len(U))]).sum(0)
    return dict.fromkeys(("aliases", "one alias", "unused", "reentrant"), own)


def traps_harmless(U: Tensor) -> dict[str, Tensor]:
    """Expects every trap to give the Hessian of the tied weight."""
    return dict.fromkeys(("aliases", "one alias", "unused", "reentrant"), U.sum((0, 2)))


def traps_at_the_other_instance(U: Tensor) -> dict[str, Tensor]:
    """Exchanges the instance that a trap keeps with the one that it loses."""
    kept = {"one alias": U[1, :, 1, :], "reentrant": U[0, :, 0, :]}
    return {"aliases": 2 * U.sum((0, 2)), "unused": 0 * U[0, :, 0, :], **kept}


# --- probe trade-off: batches, K*, cost, ANOVA ----------------------------------------------------------------------


def floor_averaged_away(mean_batch_probe_variance: Any, batch_variance: Any, num_probes: Any) -> Any:
    """Averages the batch noise over the probes too, as if each had a batch of its own."""
    return theory.fresh_batch_variance(mean_batch_probe_variance, batch_variance, num_probes)


def floor_forgotten(mean_batch_probe_variance: Any, batch_variance: Any, num_probes: Any) -> Any:
    """Omits the batch noise: the error bar of the probes alone."""
    return mean_batch_probe_variance / num_probes


def probe_noise_not_averaged(mean_batch_probe_variance: Any, batch_variance: Any, num_probes: Any) -> Any:
    """Forgets to divide the probe noise by the number of probes."""
    return mean_batch_probe_variance + batch_variance


def total_just_outside_rounding(mean_batch_probe_variance: Any, batch_variance: Any, num_probes: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.total_variance(mean_batch_probe_variance, batch_variance, num_probes) * (1 + 2**-30)


def batch_kept_for_all_probes(mean_batch_probe_variance: Any, batch_variance: Any, num_probes: Any) -> Any:
    """Uses the variance of one batch for all probes where every probe has its own."""
    return theory.total_variance(mean_batch_probe_variance, batch_variance, num_probes)


def batch_noise_forgotten(mean_batch_probe_variance: Any, batch_variance: Any, num_probes: Any) -> Any:
    """Omits the batch noise of fresh batches."""
    return mean_batch_probe_variance / num_probes


def fresh_just_outside_rounding(mean_batch_probe_variance: Any, batch_variance: Any, num_probes: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.fresh_batch_variance(mean_batch_probe_variance, batch_variance, num_probes) * (1 + 2**-30)


def no_finite_population_correction(S_t2: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Takes S²/b, as if the data set were infinite."""
    return S_t2 / b


def replacement_swapped(S_t2: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Takes draws with replacement for draws without, and the other way round."""
    return theory.batch_trace_variance(S_t2, b, n, not replacement)


def denominator_n(S_t2: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Divides the per-sample sum of squares by n where the formula wants n − 1."""
    return theory.batch_trace_variance(S_t2 * (n - 1) / n, b, n, replacement)


def batch_variance_just_outside_rounding(S_t2: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Is off by one part in 10⁹."""
    return theory.batch_trace_variance(S_t2, b, n, replacement) * (1 + 2**-30)


def full_batch_plugged_in(V_of_mean: Any, S_q: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Plugs in the full-batch Hessian for that of the mini-batch."""
    return V_of_mean


def spread_of_hessians_not_corrected(V_of_mean: Any, S_q: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Leaves the finite-population factor out of the spread of the per-sample Hessians."""
    return V_of_mean + S_q / b


def spread_of_hessians_not_averaged(V_of_mean: Any, S_q: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Forgets that a batch averages the spread of the per-sample Hessians."""
    return V_of_mean + S_q * theory.finite_population_factor(b, n, replacement)


def mean_probe_variance_just_outside_rounding(
    V_of_mean: Any, S_q: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Is off by one part in 10⁹."""
    return theory.mean_batch_probe_variance(V_of_mean, S_q, b, n, replacement) * (1 + 2**-30)


def ratio_inverted(probe_variance: Any, batch_variance: Any) -> Any:
    """Divides the batch noise by the probe noise."""
    return theory.critical_num_probes(batch_variance, probe_variance)


def ratio_of_standard_deviations(probe_variance: Any, batch_variance: Any) -> Any:
    """Compares standard deviations where variances add."""
    return theory.critical_num_probes(probe_variance, batch_variance) ** 0.5


def share_of_total(probe_variance: Any, batch_variance: Any) -> Any:
    """Divides by the whole variance instead of the floor."""
    return theory.critical_num_probes(probe_variance, probe_variance + batch_variance)


def critical_just_outside_rounding(probe_variance: Any, batch_variance: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.critical_num_probes(probe_variance, batch_variance) * (1 + 2**-30)


def full_batch_numerator(V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Puts the probe variance of the full-batch Hessian over the batch noise."""
    return theory.critical_num_probes(V_of_mean, theory.batch_trace_variance(S_t2, b, n, replacement))


def batch_size_ignored(V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Reports the count of single samples whatever the batch size."""
    return theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2, b / b, n, replacement)


def infinite_population(V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Drops the finite-population factor."""
    return (b * V_of_mean + S_q) / S_t2


def spread_of_traces_not_squared(V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Divides by the standard deviation of the per-sample traces instead of their variance."""
    return theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2**0.5, b, n, replacement)


def critical_of_batch_just_outside_rounding(
    V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False
) -> Any:
    """Is off by one part in 10⁹."""
    return theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2, b, n, replacement) * (1 + 2**-30)


def clipped_to_published_range(V_of_mean: Any, S_q: Any, S_t2: Any, b: Any, n: Any, replacement: bool = False) -> Any:
    """Reports the published 5 to 10 whatever the data say."""
    return min(max(theory.critical_num_probes_of_batch(V_of_mean, S_q, S_t2, b, n, replacement), 5.0), 10.0)


def root_forgotten(overhead: Any, cost_per_probe: Any, critical: Any) -> Any:
    """Forgets the square root of the cost-optimal count."""
    return overhead / cost_per_probe * critical


def costs_swapped(overhead: Any, cost_per_probe: Any, critical: Any) -> Any:
    """Takes c0 for c1."""
    return theory.cost_optimal_num_probes(cost_per_probe, overhead, critical)


def critical_count_whatever_the_cost(overhead: Any, cost_per_probe: Any, critical: Any) -> Any:
    """Recommends K* itself, whatever a batch costs."""
    return critical


def optimum_just_outside_rounding(overhead: Any, cost_per_probe: Any, critical: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.cost_optimal_num_probes(overhead, cost_per_probe, critical) * (1 + 2**-30)


def between_holds_probe_noise(q: Any) -> theory.Anova:
    """Reports the variance of the batch means as the batch noise, without subtracting within/K."""
    right = theory.anova(q)
    return replace(right, between=right.between + right.within / q.shape[1])


def between_clipped_at_zero(q: Any) -> theory.Anova:
    """Replaces a negative between component by 0."""
    right = theory.anova(q)
    return replace(right, between=max(right.between, 0.0))


def within_of_all_numbers(q: Any) -> theory.Anova:
    """Takes the variance of all numbers for the probe noise."""
    return replace(theory.anova(q), within=q.var(ddof=1))


def within_divided_by_count(q: Any) -> theory.Anova:
    """Divides the sum of squares within batches by MK instead of M(K−1)."""
    right, probes = theory.anova(q), q.shape[1]
    return replace(right, within=right.within * (probes - 1) / probes)


def components_just_outside_rounding(q: Any) -> theory.Anova:
    """Reports both components off by one part in 10⁹."""
    right = theory.anova(q)
    return replace(right, within=right.within * (1 + 2**-30), between=right.between * (1 + 2**-30))


def inverse_bias_without_signal(rho: Any, num_batches: Any, num_probes: Any) -> Any:
    """Takes the bias of 1/K̂* to be the same whatever K*."""
    return theory.anova_inverse_bias(0 * rho, num_batches, num_probes)


def inverse_bias_of_many_batches(rho: Any, num_batches: Any, num_probes: Any) -> Any:
    """Uses the leading term 2(1 + Kρ)/(Kν₂), which only many batches justify."""
    return 2 * (1 + num_probes * rho) / (num_probes * num_batches * (num_probes - 1))


def inverse_bias_denied(rho: Any, num_batches: Any, num_probes: Any) -> Any:
    """Takes 1/K̂* for unbiased, because both components are."""
    return 0 * theory.anova_inverse_bias(rho, num_batches, num_probes)


def inverse_bias_just_outside_rounding(rho: Any, num_batches: Any, num_probes: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.anova_inverse_bias(rho, num_batches, num_probes) * (1 + 2**-30)


def critical_count_of_clipped_noise(q: Any) -> theory.Anova:
    """Keeps the between component above a tenth of the within one, which makes K̂* at most 10."""
    right = theory.anova(q)
    return replace(right, critical_num_probes=right.within / max(right.between, right.within / 10))


def critical_count_by_absolute_value(q: Any) -> theory.Anova:
    """Drops the sign of a negative between component."""
    right = theory.anova(q)
    return replace(right, critical_num_probes=abs(right.within / right.between) if right.between else float("inf"))


def critical_count_zero_without_signal(q: Any) -> theory.Anova:
    """Reports K̂* = 0 where no batch noise is seen, as if no probe were needed."""
    right = theory.anova(q)
    return right if right.between > 0 else replace(right, critical_num_probes=0.0)


# --- train mode, signs, detection, probe designs --------------------------------------------------------------------


def batch_norm_in_eval_mode(problem: Problem, batch: Batch) -> Tensor:
    """Switches batch norm to its running statistics before it looks."""
    model = copy.deepcopy(problem.model).eval()
    return hessian(Problem(model, problem.loss_fn, [batch])).to_dense()


def statistics_of_all_samples(problem: Problem, batch: Batch) -> Tensor:
    """Normalises every mini-batch with the statistics of the whole data set, held fixed."""
    model = copy.deepcopy(problem.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    model(torch.cat([inputs for inputs, _ in problem.batches]))
    return hessian(Problem(model.eval(), problem.loss_fn, [batch])).to_dense()


def average_of_pairs(problem: Problem, batch: Batch) -> Tensor:
    """Cuts the mini-batch into all its pairs and averages their Hessians."""
    inputs, targets = batch
    rows = [list(pair) for pair in combinations(range(len(inputs)), 2)]
    return torch.stack([hessian(problem.with_batches([(inputs[r], targets[r])])).to_dense() for r in rows]).mean(0)


def first_half_of_the_batch(problem: Problem, batch: Batch) -> Tensor:
    """Differentiates only the first half of the mini-batch, two samples at least."""
    half = max(len(batch[0]) // 2, 2)
    return hessian(problem.with_batches([(batch[0][:half], batch[1][:half])])).to_dense()


class DropoutSwitchedOff(WrongTrace):
    """Measures the network without dropout."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        model = copy.deepcopy(problem.model).eval()
        return Problem(model, problem.loss_fn, problem.batches, problem.partition)


class FreshMaskPerProbe(WrongTrace):
    """Draws another dropout mask for every probe."""

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        right = LayerwiseTrace(self.num_probes)(problem, generator, probes=probes)
        if probes is None:
            return right
        samples = right.samples.copy()
        with torch.random.fork_rng():
            for k in range(probes.shape[1]):
                torch.rand(1)
                samples.iloc[k] = LayerwiseTrace()(problem, probes=probes[:, k : k + 1]).samples.iloc[0]
        return replace(right, samples=samples)


class UnscaledMask(WrongTrace):
    """Zeroes units without dividing the others by the probability of staying."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        model = copy.deepcopy(problem.model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.register_forward_hook(lambda module, _, output: (1 - module.p) * output)
        return Problem(model, problem.loss_fn, problem.batches, problem.partition, allow_train_mode=True)


class UpdatesRunningStatistics(WrongTrace):
    """Runs the model's own forward pass, which moves the running statistics of batch norm."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        with torch.random.fork_rng():
            problem.model(problem.batches[0][0])
        return problem


class LeavesEvalMode(WrongTrace):
    """Switches the model to eval mode and forgets to switch it back."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        problem.model.eval()
        return problem


class MovesGlobalStream(WrongTrace):
    """Draws from the global random stream."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        torch.rand(1)
        return problem


class LeavesGradients(WrongTrace):
    """Leaves gradients behind in the parameters."""

    def spoilt_problem(self, problem: Problem) -> Problem:
        problem.loss(problem.batches[0]).backward()  # type: ignore[no-untyped-call]
        return problem


def gauss_newton_matrix(problem: Problem) -> Tensor:
    """Takes the Gauss-Newton matrix, which has no negative trace, for the Hessian."""
    return ggn(problem).to_dense()


def positive_part(problem: Problem) -> Tensor:
    """Cuts negative eigenvalues off at zero."""
    eigenvalues, vectors = torch.linalg.eigh(hessian(problem).to_dense())
    cut: Tensor = vectors @ torch.diag(eigenvalues.clamp(min=0)) @ vectors.mT
    return cut


def absolute_curvature(problem: Problem) -> Tensor:
    """Takes the absolute values of the eigenvalues."""
    eigenvalues, vectors = torch.linalg.eigh(hessian(problem).to_dense())
    folded: Tensor = vectors @ torch.diag(eigenvalues.abs()) @ vectors.mT
    return folded


def form_of_the_block(H: Any, index_l: Any) -> Any:
    """Takes H_ll alone for the matrix of the one-product estimate."""
    rows = list(index_l)
    outside = [i for i in range(H.shape[0]) if i not in rows]
    A = copy.deepcopy(theory.quadratic_form(H, rows))
    for i in rows:
        for j in outside:
            A[i, j] = A[j, i] = 0 * A[i, j]
    return A


def form_not_symmetrised(H: Any, index_l: Any) -> Any:
    """Takes E_l H, whose form is the same but whose norms and eigenvalues are not."""
    rows = list(index_l)
    A = 0 * H
    for i in rows:
        for j in range(H.shape[0]):
            A[i, j] = H[i, j]
    return A


def form_with_whole_cross_blocks(H: Any, index_l: Any) -> Any:
    """Gives the cross blocks their whole weight on both sides."""
    return 2 * theory.quadratic_form(H, list(index_l)) - form_of_the_block(H, index_l)


def _tail_from(A: Tensor, num_probes: int, error: float, constants: theory.TailConstants) -> float:
    A = A - torch.diag(A.diagonal()) if constants.off_diagonal else A
    frobenius, spectral = (float(torch.linalg.matrix_norm(A, order)) for order in ("fro", 2))
    return theory.tail_bound(num_probes, frobenius, spectral, error, constants)


def tail_of_the_block(
    H: Tensor, index_l: Tensor, num_probes: int, error: float, constants: theory.TailConstants
) -> float:
    """Puts the norms of H_ll into the tail bound."""
    return _tail_from(H[index_l][:, index_l], num_probes, error, constants)


def tail_of_twice_the_probes(
    H: Tensor, index_l: Tensor, num_probes: int, error: float, constants: theory.TailConstants
) -> float:
    """Doubles the number of probes in the exponent."""
    return _tail_from(theory.quadratic_form(H, index_l), 2 * num_probes, error, constants)


def tail_of_a_normal(
    H: Tensor, index_l: Tensor, num_probes: int, error: float, constants: theory.TailConstants
) -> float:
    """Drops the spectral norm, as if the estimate had the tail of a normal."""
    return _tail_from(theory.quadratic_form(H, index_l), num_probes, error, replace(constants, spectral=0))


def alarms_in_lower_tail(alarms: int, runs: int, rate: float) -> float:
    """Looks at the tail of too few alarms."""
    from scipy.stats import binom

    return float(binom.cdf(alarms, runs, rate))


def alarms_with_largest_variance(alarms: int, runs: int, rate: float) -> float:
    """Uses the normal approximation with the variance of a rate of one half."""
    return 2 * NormalDist().cdf(-abs(alarms - runs * rate) / (runs / 4) ** 0.5)


def alarms_corrected_for_runs(alarms: int, runs: int, rate: float) -> float:
    """Multiplies the p-value by the number of runs, although the rate is one of runs already."""
    from scipy.stats import binomtest

    return min(1.0, runs * float(binomtest(alarms, runs, rate).pvalue))


def alarms_as_standard_deviations(alarms: int, runs: int, rate: float) -> float:
    """Reads the count as a number of standard deviations."""
    return 2 * NormalDist().cdf(-alarms)


def per_sample_sum(sample_variances: Any) -> Any:
    """Averages the samples' variances, without the second 1/N of a mean."""
    return theory.per_sample_probe_variance(sample_variances) * len(sample_variances)


def per_sample_pairs_left_out(sample_variances: Any) -> Any:
    """Divides by N(N − 1)."""
    N = len(sample_variances)
    return theory.per_sample_probe_variance(sample_variances) * N / (N - 1)


def per_sample_of_the_first(sample_variances: Any) -> Any:
    """Takes the variance of the first sample for that of all."""
    return sample_variances[0] / len(sample_variances)


def per_sample_just_outside_rounding(sample_variances: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.per_sample_probe_variance(sample_variances) * (1 + 2**-30)


def per_sample_always_wins(V_of_mean: Any, S_q: Any, num_samples: Any) -> bool:
    """Believes that a probe per sample is always better."""
    return True


def per_sample_wins_below_one_mean(V_of_mean: Any, S_q: Any, num_samples: Any) -> bool:
    """Compares S_q with V(H̄), not with N times that."""
    return bool(S_q < V_of_mean)


def per_sample_wins_below_one_sample_less(V_of_mean: Any, S_q: Any, num_samples: Any) -> bool:
    """Takes N − 1 for N, as if S_q were divided by N."""
    return bool(S_q < (num_samples - 1) * V_of_mean)


def orthogonal_as_independent(probe_variance: Any, num_probes: Any, num_params: Any) -> Any:
    """Takes orthogonal probes for independent."""
    return probe_variance / num_probes


def orthogonal_with_replacement(probe_variance: Any, num_probes: Any, num_params: Any) -> Any:
    """Puts P for P − 1, as for a variance with the denominator P."""
    return probe_variance / num_probes * (num_params - num_probes) / num_params


def orthogonal_off_by_one_probe(probe_variance: Any, num_probes: Any, num_params: Any) -> Any:
    """Counts the first probe as one that gains already."""
    return probe_variance / num_probes * (num_params - num_probes + 1) / num_params


def orthogonal_just_outside_rounding(probe_variance: Any, num_probes: Any, num_params: Any) -> Any:
    """Is off by one part in 10⁹ of the variance of one probe."""
    right = theory.orthogonal_probe_variance(probe_variance, num_probes, num_params)
    return right + 2**-30 * probe_variance


def signs_of_layers_repeated(num_layers: int) -> Tensor:
    """Gives two layers the same Hadamard row."""
    rows = hadamard_columns(num_layers)
    return torch.cat([rows[:1], rows[:1], rows[2:]])


def signs_of_layers_too_few(num_layers: int) -> Tensor:
    """Stops after half of the Hadamard columns."""
    rows = hadamard_columns(num_layers)
    return rows[:, : rows.shape[1] // 2]


def signs_of_layers_alike(num_layers: int) -> Tensor:
    """Uses the same signs in every layer, one full-vector probe again and again."""
    return torch.ones_like(hadamard_columns(num_layers))


# --- tests ----------------------------------------------------------------------------------------------------------


class ZTestFirstLook(SequentialTest):
    """Takes the mean of a first look of ten draws for normal."""

    def half_width(self, num_draws: int) -> Any:
        level = self.alpha / len(self.looks)
        return -NormalDist().inv_cdf(level / 2) * (self.tail.variance / num_draws) ** 0.5


class NoSpendingForLooks(SequentialTest):
    """Tests at the full level at every look, as if there were one."""

    def half_width(self, num_draws: int) -> Any:
        return self.tail.half_width(num_draws, self.alpha)


class ZTestAtEveryLook(SequentialTest):
    """Takes every mean for normal and tests at the full level at every look."""

    def half_width(self, num_draws: int) -> Any:
        return -NormalDist().inv_cdf(self.alpha / 2) * (self.tail.variance / num_draws) ** 0.5


class SubGaussianTail(SequentialTest):
    """Drops the scale of the tail, as if all draws had tails like a normal."""

    def half_width(self, num_draws: int) -> Any:
        return Tail(self.tail.variance, 0.0).half_width(num_draws, self.alpha / len(self.looks))


class PilotForTarget(SequentialTest):
    """Takes the mean of a pilot of ten draws for the exact target."""

    def run(
        self, draw: Callable[[int, torch.Generator], Any], target: Any, generator: torch.Generator
    ) -> tuple[Status, Any, int, Any]:
        return super().run(draw, np.mean(draw(10, generator), axis=0), generator)


class StudentErrorBar(SequentialTest):
    """Judges the mean by its own standard error instead of by what is known beforehand."""

    def run(
        self, draw: Callable[[int, torch.Generator], Any], target: Any, generator: torch.Generator
    ) -> tuple[Status, Any, int, Any]:
        seen: list[Any] = []
        for n in self.looks:
            seen.extend(np.asarray(draw(n - len(seen), generator)))
            mean, spread = np.mean(seen, axis=0), np.std(seen, axis=0, ddof=1)
            width = -NormalDist().inv_cdf(self.alpha / len(self.looks) / 2) * spread / n**0.5
            if np.abs(mean - target) > width:
                return Status.FAILED, mean, n, width
        return Status.PASSED, mean, n, width


class DetectableAtTheLastLook(SequentialTest):
    """Forgets that an early look may agree with what the last one could tell apart."""

    @property
    def detectable(self) -> Any:
        return self.half_width(self.looks[-1]) + self.tail.half_width(self.looks[-1], 2 * (1 - self.power))


class NotRejectedMeansEqual(SequentialTest):
    """Agrees at the first look that does not reject."""

    def decide(self, error: Any, num_draws: int) -> Status | None:
        return super().decide(error, num_draws) or Status.PASSED


class MeanInsideMarginMeansEqual(SequentialTest):
    """Agrees as soon as the mean lies inside the margin, whatever the width of the interval."""

    def decide(self, error: Any, num_draws: int) -> Status | None:
        outcome = super().decide(error, num_draws)
        return Status.PASSED if outcome is None and np.all(error <= self.margin) else outcome


class MarginDoubled(SequentialTest):
    """Agrees within twice the margin that it declares."""

    def decide(self, error: Any, num_draws: int) -> Status | None:
        outcome = super().decide(error, num_draws)
        agrees = np.all(error + self.half_width(num_draws) <= 2 * self.margin)
        return Status.PASSED if outcome is None and agrees else outcome
