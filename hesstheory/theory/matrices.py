"""Matrices of numbers or symbols, checked once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

Matrix = Any  # a torch tensor, a numpy array (sympy entries too) or a sympy matrix; a list is read as a numpy array

Scalar = Any  # a number, a 0-d tensor or a sympy expression; an array of them where there is only arithmetic


def require(holds: Any, message: str, *values: Any) -> None:
    """Raise unless `holds`; a relation between free symbols is undecided and passes."""
    if not getattr(holds, "free_symbols", None) and not (
        holds.all() if hasattr(holds, "all") else holds
    ):
        raise ValueError(message.format(*values))


def require_nonnegative(**quantities: Scalar) -> None:
    for name, x in quantities.items():
        require(
            x >= 0,
            "{} must be >= 0, got {}; an estimated variance must be clipped at 0 first",
            name,
            x,
        )


def check_num_probes(num_probes: Scalar) -> None:
    require(num_probes >= 1, "num_probes must be >= 1, got {}; use at least one probe", num_probes)


def as_array(A: Matrix) -> Matrix:
    """The same entries as a torch tensor or a numpy array, integers as floats."""
    if hasattr(A, "new_zeros"):
        return A if A.is_floating_point() else A.double()
    A = np.array(A.tolist(), dtype=object) if getattr(A, "is_Matrix", False) else np.asarray(A)
    return A.astype(float) if A.dtype.kind in "biu" else A


def constant_like(A: Matrix, original: Matrix) -> Matrix:
    return type(original)(A) if getattr(original, "is_Matrix", False) else A


def block_rows(index: Any) -> Any:
    rows = np.asarray(index.tolist() if hasattr(index, "tolist") else list(index))
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(
            f"expected row numbers, got {index}; turn a mask into numbers, leave out empty blocks"
        )
    return rows


def rounding_of(A: Matrix) -> float:
    """How far from symmetric or positive a matrix may be through rounding alone, relative to its size: √eps."""
    if hasattr(A, "new_zeros"):
        import torch

        return float(torch.finfo(A.dtype).eps ** 0.5)
    return float(np.finfo(A.dtype).eps ** 0.5)


def eigenvalues_of(A: Matrix) -> Matrix:
    if hasattr(A, "new_zeros"):
        import torch

        return torch.linalg.eigvalsh(A)
    return np.linalg.eigvalsh(A)


def checked_symmetric(A: Matrix) -> Matrix:
    """`as_array(A)`, checked to be square, finite and symmetric (symbols: entry by entry)."""
    A = as_array(A)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or len(A) == 0:
        raise ValueError(
            f"expected a square matrix, got shape {tuple(A.shape)}; pass H, or one diagonal block H_ll"
        )
    with np.errstate(invalid="ignore"):
        exact = A.dtype == object
        holds = (A == A.T).all() if exact else abs(A - A.T).max() <= rounding_of(A) * abs(A).max()
    require(
        holds,
        "the matrix is not symmetric, or not finite; pass a Hessian, or (A + Aᵀ)/2 for the form zᵀAz",
    )
    return A


def off_diagonal(A: Matrix) -> Matrix:
    n = len(A)
    return A.reshape(-1)[1:].reshape(n - 1, n + 1)[:, :-1]


def sqrt_of(x: Scalar) -> Scalar:
    if hasattr(x, "free_symbols"):
        import sympy

        return sympy.sqrt(x)
    return x**0.5


def squared_norm(A: Matrix) -> Scalar:
    """The squared Frobenius norm ‖A‖² = Σ_ij A_ij²; raises where it is not finite."""
    A = as_array(A)
    norm2 = (A * A).sum()
    require(
        A.dtype == object or norm2 < math.inf,
        "NaN, infinite or overflowing entries; check the loss, use float64",
    )
    return norm2


def cross_term(H_ll: Matrix, cross_blocks: Iterable[Matrix]) -> Scalar:
    blocks = [as_array(B) for B in cross_blocks]
    for B in blocks:
        if B.ndim != 2 or len(B) != len(H_ll):
            raise ValueError(
                f"H_lm of shape {tuple(B.shape)} beside {len(H_ll)} rows of H_ll; pass H_lm, not H_ml"
            )
    return sum(squared_norm(B) for B in blocks)
