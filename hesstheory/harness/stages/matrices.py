"""What is multiplied: the matrix of a run, its forms and the norms of its products by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.curvature.matrix import Curvature, ggn, hessian, residual
from hesstheory.harness.subject import Subject
from hesstheory.problem.risk import Problem

MatrixOf = Callable[[Problem], Curvature]


def matrix_of(subject: Subject) -> MatrixOf:
    """What is estimated: the Hessian where its block traces are known, else the Gauss-Newton."""
    return hessian if subject.piecewise_linear else ggn


def full_forms(
    subject: Subject, matrix: MatrixOf, problem: Problem, Z: Tensor
) -> Float[Tensor, "probes blocks"]:
    """z_lᵀ(Mz)_l of a problem that every process holds as a whole."""
    return subject.halving(lambda part: matrix(part).quadratic_forms(Z), problem).cpu()


def residual_forms(subject: Subject, problem: Problem, Z: Tensor) -> tuple[Tensor, Tensor]:
    """z_lᵀ(Rz)_l and ‖(Rz)_l‖ of R = H − G; zero where G is what is measured."""
    index = problem.index.values()
    if not subject.piecewise_linear:
        zero = torch.zeros(Z.shape[1], len(index), dtype=torch.float64)
        return zero, zero
    Y = subject.halving(lambda part: residual(part) @ Z.to(part.dtype), problem).double().cpu()
    z = Z.double().cpu()
    forms = torch.stack([(z[i] * Y[i]).sum(0) for i in index], dim=1)
    norms = torch.stack([Y[i].square().sum(0).sqrt() for i in index], dim=1)
    return forms, norms


def row_norms2(
    subject: Subject,
    matrix: MatrixOf,
    numbers: Sequence[int],
    problem: Problem | None = None,
    purpose: str = "norms",
) -> Float[Tensor, "probes blocks"]:
    """‖(Mz)_l‖² of the numbered probes, of all samples by default."""
    Z = subject.probes(numbers, purpose).to((problem or subject.problem).dtype)
    if problem is None or problem is subject.problem:
        Y = subject.over_samples(lambda local: matrix(local) @ Z)
    else:  # some samples, by every process
        Y = subject.halving(lambda part: matrix(part) @ Z, problem).double()
    index = subject.problem.index.values()
    return torch.stack([Y[i.to(Y.device)].square().sum(0) for i in index], dim=1).cpu()
