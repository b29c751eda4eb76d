"""Wrong biases, bounds and probes of tied weights."""

from __future__ import annotations

import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.curvature.uses import unrolled_hessian
from hesstheory.estimators.enumerations import hadamard_columns
from hesstheory.problem.risk import Problem
from hesstheory.theory.matrices import Matrix, Scalar


def tied_bias_reversed(U: Matrix) -> Scalar:
    """Gives the bias the other sign."""
    return -theory.tied_bias(U)


def tied_bias_pairs_once(U: Matrix) -> Scalar:
    """Counts every pair of instances once instead of twice."""
    return theory.tied_bias(U) / 2


def tied_bias_of_neighbours(U: Matrix) -> Scalar:
    """Forgets pairs of instances that do not follow one another."""
    return -2 * sum(U[r, :, r + 1, :].trace() for r in range(len(U) - 1))


def tied_bias_none(U: Matrix) -> Scalar:
    """Takes independent probes for unbiased."""
    return 0 * theory.tied_bias(U)


def tied_bias_just_outside_rounding(U: Matrix) -> Scalar:
    """Is off by one part in 10⁹ of the trace that is counted."""
    return theory.tied_bias(U) + 2**-30 * sum(abs(U[r, :, r, :].trace()) for r in range(len(U)))


def _own_traces(U: Matrix) -> Scalar:
    return sum(U[r, :, r, :].trace() for r in range(len(U)))


def bounds_for_two_instances(U: Matrix) -> theory.Bounds:
    """Uses the lower bound of two instances whatever their number."""
    return theory.Bounds(low=-_own_traces(U), high=_own_traces(U))


def bounds_exchanged(U: Matrix) -> theory.Bounds:
    """Puts the factor T − 1 on the upper bound."""
    return theory.Bounds(low=-_own_traces(U), high=(len(U) - 1) * _own_traces(U))


def bounds_with_one_instance_more(U: Matrix) -> theory.Bounds:
    """Multiplies by T instead of T − 1: true, but never attained."""
    return theory.Bounds(low=-len(U) * _own_traces(U), high=_own_traces(U))


def bounds_just_outside_rounding(U: Matrix) -> theory.Bounds:
    """Is one part in 10⁹ too narrow."""
    right = theory.tied_bias_bounds(U)
    return theory.Bounds(low=right.low * (1 - 2**-30), high=right.high * (1 - 2**-30))


def bounds_unasked(U: Matrix) -> theory.Bounds:
    """Gives the bounds for any U."""
    return theory.Bounds(low=-(len(U) - 1) * _own_traces(U), high=_own_traces(U))


def bounds_for_positive_diagonal(U: Matrix) -> theory.Bounds:
    """Asks only for a positive diagonal of U."""
    if min(U[r, i, r, i] for r in range(U.shape[0]) for i in range(U.shape[1])) < 0:
        raise ValueError("U has a negative diagonal entry")
    return bounds_unasked(U)


def bounds_for_positive_blocks(U: Matrix) -> theory.Bounds:
    """Asks only for U_rr ⪰ 0, instance by instance."""
    if min(torch.linalg.eigvalsh(U[r, :, r, :]).min() for r in range(len(U))) < 0:
        raise ValueError("a diagonal block of U is indefinite")
    return bounds_unasked(U)


def bounds_for_positive_sum(U: Matrix) -> theory.Bounds:
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
