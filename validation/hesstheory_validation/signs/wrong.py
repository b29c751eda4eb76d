"""Wrong signs, quadratic forms and tails."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.curvature.matrix import ggn, hessian
from hesstheory.problem.risk import Problem
from hesstheory.theory.matrices import Matrix, Scalar


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


def form_of_the_block(H: Matrix, index_l: Matrix) -> Scalar:
    """Takes H_ll alone for the matrix of the one-product estimate."""
    rows = list(index_l)
    outside = [i for i in range(H.shape[0]) if i not in rows]
    A = copy.deepcopy(theory.quadratic_form(H, rows))
    for i in rows:
        for j in outside:
            A[i, j] = A[j, i] = 0 * A[i, j]
    return A


def form_not_symmetrised(H: Matrix, index_l: Matrix) -> Scalar:
    """Takes E_l H, whose form is the same but whose norms and eigenvalues are not."""
    rows = list(index_l)
    A = 0 * H
    for i in rows:
        for j in range(H.shape[0]):
            A[i, j] = H[i, j]
    return A


def form_with_whole_cross_blocks(H: Matrix, index_l: Matrix) -> Scalar:
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
    return _tail_from(
        theory.quadratic_form(H, index_l), num_probes, error, replace(constants, spectral=0)
    )
