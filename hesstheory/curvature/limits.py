"""What is refused at the edge of a product: wrong shapes, too little memory, infinite values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Real
from torch import Tensor

from hesstheory.problem.risk import Problem
from hesstheory.run.memory import free_memory


def check_problem(problem: object) -> None:
    """Raises TypeError for anything but a problem, such as the network alone."""
    if not isinstance(problem, Problem):
        raise TypeError(
            f"pass a Problem, not a {type(problem).__name__}: Problem(model, loss_fn, batches)"
        )


def checked_columns(
    problem: Problem, V: Tensor, dtypes: Sequence[torch.dtype] = (), copies: int = 0
) -> Real[Tensor, "columns params"]:
    """The columns of a matrix as contiguous rows, once they are found fit for a product.

    Parameters
    ----------
    problem
        Its model says how many rows, which dtype and which device.
    V
        One vector (P) or a matrix (P × K).
    dtypes
        Dtypes that are allowed; that of the model where none is given.
    copies
        How many matrices of this size must fit into free memory.

    Raises
    ------
    ValueError
        Another shape, dtype or device.
    MemoryError
        The copies do not fit.
    """
    if not isinstance(V, Tensor) or V.ndim not in (1, 2) or len(V) != problem.num_params:
        shape = tuple(V.shape) if isinstance(V, Tensor) else type(V).__name__
        raise ValueError(
            f"expected a tensor of {problem.num_params} rows, one per parameter, got {shape}"
        )
    if V.dtype not in (dtypes or (problem.dtype,)) or V.device != problem.device:
        raise ValueError(
            f"the vectors are {V.dtype} on {V.device}, the model {problem.dtype} on "
            f"{problem.device}: use .to()"
        )
    if copies and V.ndim == 2:
        check_fits(problem, V.shape[1], copies * V.itemsize, "columns of a product")
    return (V[None] if V.ndim == 1 else V.mT).detach().contiguous()


def check_finite(values: Tensor) -> None:
    """Raises ValueError where a product holds NaN or infinity."""
    # The extremes need no second array of the size of a dense matrix, as torch.isfinite does.
    # A NaN is both of them.
    if values.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(values)):
        raise ValueError(
            "a Hessian product is not finite although the loss is: a second derivative overflows "
            "or is undefined (sqrt or norm at 0, log at 0, float16), or an input is infinite; use "
            "a smooth variant, float64, or finite inputs"
        )


def check_dense_fits(side: int, device: torch.device) -> None:
    """Raises MemoryError where a float64 matrix of side² entries cannot be held."""
    needed = 8 * side * side  # bytes of a float64
    available = free_memory(device)
    if needed > available:
        raise MemoryError(
            f"a dense float64 matrix of this size needs {needed:,} bytes and {available:,} are "
            "free: use products (`@`), .block(l, m) of smaller blocks, or an estimator such as "
            "LayerwiseTrace"
        )


def check_fits(problem: Problem, num_columns: int, bytes_per_entry: int, what: str) -> None:
    """Raises MemoryError where so many vectors of parameters cannot be held.

    The message says how many can.
    """
    each = bytes_per_entry * problem.num_params
    available = free_memory(problem.device)
    if num_columns * each > available:
        raise MemoryError(
            f"{num_columns} {what} need {num_columns * each:,} bytes with all copies and "
            f"{available:,} are free: {available // each} fit; ask for no more at a time, or use "
            "a smaller dtype"
        )
