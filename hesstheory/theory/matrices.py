"""Matrices of numbers or symbols, checked once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

# Two aliases for what the formulas take. To a type checker both are `Any`: no type says "whatever
# has arithmetic", and torch, numpy and sympy share no base class.

# A torch tensor, a numpy array (sympy entries too) or a sympy matrix. A list becomes an array.
Matrix: TypeAlias = Any

# A number, a 0-d tensor or a sympy expression. Arithmetic alone works on arrays of them, too.
Scalar: TypeAlias = Any

# Norms come from iterations of the caller, which err by far less than this.
NORM_SLACK = 1e-6


def require(holds: object, message: str, *values: object) -> None:
    """Raise unless `holds`; a relation between free symbols is undecided and passes."""
    if getattr(holds, "free_symbols", None):
        return
    if not (holds.all() if hasattr(holds, "all") else holds):
        raise ValueError(message.format(*values))


def require_nonnegative(**quantities: Scalar) -> None:
    """Raise where a named quantity is negative or NaN."""
    message = "{} must be >= 0, got {}; an estimated variance must be clipped at 0 first"
    for name, x in quantities.items():
        require(x >= 0, message, name, x)


def check_num_probes(num_probes: Scalar) -> None:
    """Raise unless there is at least one probe."""
    require(num_probes >= 1, "num_probes must be >= 1, got {}; use at least one probe", num_probes)


def as_array(A: Matrix) -> Matrix:
    """The same entries as a torch tensor or a numpy array, integers as floats."""
    if hasattr(A, "new_zeros"):
        return A if A.is_floating_point() else A.double()
    A = np.array(A.tolist(), dtype=object) if getattr(A, "is_Matrix", False) else np.asarray(A)
    return A.astype(float) if A.dtype.kind in "biu" else A


def constant_like(A: Matrix, original: Matrix) -> Matrix:
    """`A` in the family of `original`: a sympy matrix where that was one."""
    return type(original)(A) if getattr(original, "is_Matrix", False) else A


def block_rows(index: Matrix) -> Matrix:
    """Row numbers of a block as an array of integers."""
    rows = np.asarray(index.tolist() if hasattr(index, "tolist") else list(index))
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(
            f"expected row numbers, got {index}; turn a mask into numbers, leave out empty blocks"
        )
    return rows


def rounding_of(A: Matrix) -> float:
    """How far from symmetric or positive rounding may leave a matrix, relative to its size: √eps.

    A Hessian of n sums has an asymmetry of about n·eps. √eps leaves room for n up to 10⁸.
    """
    if hasattr(A, "new_zeros"):
        import torch

        return float(torch.finfo(A.dtype).eps ** 0.5)
    return float(np.finfo(A.dtype).eps ** 0.5)


def eigenvalues_of(A: Matrix) -> Matrix:
    """Eigenvalues of a symmetric matrix, ascending."""
    if hasattr(A, "new_zeros"):
        import torch

        return torch.linalg.eigvalsh(A)
    return np.linalg.eigvalsh(A)


def transposed(A: Matrix) -> Matrix:
    """The transpose of a matrix, or of each matrix of a stack."""
    return A.swapaxes(-1, -2)


def diagonals(A: Matrix) -> Matrix:
    """The diagonal of a matrix, or of each matrix of a stack."""
    return A.diagonal(0, -2, -1)


def _largest_entries(A: Matrix) -> Matrix:
    """max_ij |A_ij| of a matrix, or of each matrix of a stack."""
    return abs(A).amax((-2, -1)) if hasattr(A, "new_zeros") else abs(A).max((-2, -1))


def checked_symmetric(A: Matrix, *, stack: bool = False) -> Matrix:
    """`as_array(A)`, checked to be square, finite and symmetric (symbols: entry by entry).

    With `stack`, matrices may lie along leading axes, and each is checked.
    """
    A = as_array(A)
    ranks_fit = A.ndim == 2 or (stack and A.ndim > 2)
    if not ranks_fit or A.shape[-1] != A.shape[-2] or len(A) == 0:
        raise ValueError(
            f"expected a square matrix, got shape {tuple(A.shape)}; "
            "pass H, or one diagonal block H_ll"
        )
    require(
        _is_symmetric(A),
        "the matrix is not symmetric, or not finite; "
        "pass a Hessian, or (A + Aᵀ)/2 for the form zᵀAz",
    )
    return A


def _is_symmetric(A: Matrix) -> object:
    """Whether A = Aᵀ up to rounding, exactly for symbols; False where an entry is not finite."""
    if A.dtype == object:
        return (transposed(A) == A).all()
    with np.errstate(invalid="ignore"):
        return _largest_entries(A - transposed(A)) <= rounding_of(A) * _largest_entries(A)


def off_diagonal(A: Matrix) -> Matrix:
    """The entries off the diagonal of a square matrix, or of each of a stack, as (n−1)×n."""
    # Dropping the first entry and reading rows of n+1 puts the diagonal into the last column.
    n = A.shape[-1]
    flat = A.reshape(*A.shape[:-2], n * n)
    return flat[..., 1:].reshape(*A.shape[:-2], n - 1, n + 1)[..., :-1]


def sqrt_of(x: Scalar) -> Scalar:
    """√x of a number or a symbol."""
    if hasattr(x, "free_symbols"):
        import sympy

        return sympy.sqrt(x)
    return x**0.5


def squared_norm(A: Matrix) -> Scalar:
    """Squared Frobenius norm.

    ‖A‖² = Σ_ij A_ij²

    Parameters
    ----------
    A
        A matrix or a vector.

    Returns
    -------
    Scalar
        In the units of A squared.

    Raises
    ------
    ValueError
        The sum is not finite.

    Examples
    --------
    >>> from hesstheory import theory
    >>> float(theory.squared_norm([[1.0, 2.0], [2.0, 4.0]]))
    25.0
    """
    A = as_array(A)
    return sum_of_squares(A, A.ndim)


def sum_of_squares(A: Matrix, rank: int) -> Scalar:
    """Squared norms over the last `rank` axes; raises where one is not finite."""
    norms2 = (A * A).sum(tuple(range(-rank, 0)))
    require(
        A.dtype == object or norms2 < math.inf,
        "NaN, infinite or overflowing entries; check the loss, use float64",
    )
    return norms2


def cross_term(H_ll: Matrix, cross_blocks: Iterable[Matrix]) -> Scalar:
    """Σ_{m≠l} ‖H_lm‖², of each matrix where H_ll is a stack."""
    blocks = [as_array(B) for B in cross_blocks]
    for B in blocks:
        if B.ndim != H_ll.ndim or B.shape[:-1] != H_ll.shape[:-1]:
            raise ValueError(
                f"H_lm of shape {tuple(B.shape)} beside {H_ll.shape[-2]} rows of H_ll; "
                "pass H_lm, not H_ml"
            )
    return sum(sum_of_squares(B, 2) for B in blocks)
