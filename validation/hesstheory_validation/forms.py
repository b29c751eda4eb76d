"""Blocks, traces, forms and variances of dense matrices: the second route of most checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.claims.context import Case

Index = Mapping[str, Tensor]


def cut(M: Tensor, index: Index, l: str, m: str) -> Tensor:
    """The block (l, m) of a matrix over the parameters, or of each matrix of a stack."""
    return M[..., index[l], :][..., index[m]]


def block_traces(case: Case) -> Tensor:
    """tr H_ll of every block from the dense Hessian."""
    return torch.stack([case.block(l, l).trace() for l in case.problem.index])


def traces(stack: Tensor, index: Index) -> np.ndarray:
    """tr M_ll of a stack of matrices, matrices × blocks."""
    diagonals = stack.diagonal(dim1=-2, dim2=-1)
    return torch.stack([diagonals[:, rows].sum(1) for rows in index.values()], dim=1).numpy()


def full_forms(M: Tensor, Z: Tensor, index: Index) -> np.ndarray:
    """q_l = z_lᵀ(Mz)_l of every column z of Z, columns × blocks.

    Claim T1 decides that the estimator gives the same for the Hessian.
    """
    products = Z * (M @ Z)
    return torch.stack([products[rows].sum(0) for rows in index.values()], dim=1).numpy()


def separated_forms(case: Case, Z: Tensor) -> np.ndarray:
    """z_lᵀH_ll z_l of every column z of Z, columns × blocks."""
    parts = ((case.block(l, l), Z[index]) for l, index in case.problem.index.items())
    return torch.stack([(z * (H_ll @ z)).sum(0) for H_ll, z in parts], dim=1).numpy()


# M_ll and what stands beside it in the rows of l.
Rows = tuple[Tensor, list[Tensor]]


def rows_by_block(M: Tensor, index: Index, l: str) -> Rows:
    """M_ll and M_lm for all m ≠ l."""
    return cut(M, index, l, l), [cut(M, index, l, m) for m in index if m != l]


def rows_in_two(M: Tensor, index: Index, l: str) -> Rows:
    """M_ll, made symmetric, and the rest of its rows in one piece."""
    own = cut(M, index, l, l)
    others = torch.ones(M.shape[-1], dtype=torch.bool)
    others[index[l]] = False
    # A well-learnt sample has hardly any curvature: its matrix is symmetric only up to rounding.
    return (own + own.mT) / 2, [M[..., index[l], :][..., others]]


def sign_variances(
    stack: Tensor, index: Index, rows: Callable[[Tensor, Index, str], Rows] = rows_in_two
) -> Tensor:
    """V_l of each of a stack of matrices for one sign probe (T2), matrices × blocks.

    How `rows` cuts them decides the order of a sum, and with it a rounding.
    """
    return torch.stack(
        [theory.probe_variance(*rows(stack, index, l), kurtosis=1.0) for l in index], dim=-1
    )
