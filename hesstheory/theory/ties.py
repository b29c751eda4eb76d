"""Bias of a tied tensor's trace."""

from __future__ import annotations

from dataclasses import dataclass

from hesstheory.theory.matrices import (
    Matrix,
    Scalar,
    as_array,
    checked_symmetric,
    eigenvalues_of,
    require,
    rounding_of,
)


@dataclass(frozen=True)
class Bounds:
    """A closed interval [low, high].

    Parameters
    ----------
    low, high
        Its ends.
    """

    low: Scalar
    high: Scalar


def _unrolled(U: Matrix) -> Matrix:
    """`as_array(U)`, checked to be the symmetric unrolled Hessian of T instances of n entries."""
    U = as_array(U)
    if U.ndim != 4 or U.shape[:2] != U.shape[2:]:
        raise ValueError(
            f"U must have shape (T, n, T, n), got {tuple(U.shape)}; reshape the unrolled Hessian"
        )
    checked_symmetric(U.reshape(U.shape[0] * U.shape[1], -1))
    return U


def tied_bias(U: Matrix) -> Scalar:
    """Bias of a tied tensor's trace when each of its T uses is estimated with its own probe.

    E[Σ_r q_r] − tr H_w = Σ_r tr U_rr − Σ_rs tr U_rs = −Σ_{r≠s} tr U_rs

    The sign can be +, − or 0.

    Parameters
    ----------
    U
        Unrolled Hessian, T×n×T×n: `U[r, :, s, :]` is the block U_rs of uses r and s.

    Returns
    -------
    Scalar
        Bias, in the units of H.

    Raises
    ------
    ValueError
        U has another shape, or is not symmetric.

    Notes
    -----
    Claim T7.

    Examples
    --------
    >>> import numpy as np
    >>> from hesstheory import theory
    >>> U = np.array([[1.0, 0.5], [0.5, 1.0]]).reshape(2, 1, 2, 1)
    >>> float(theory.tied_bias(U))
    -1.0
    """
    U = _unrolled(U)
    T = len(U)
    return -sum(
        (U[r, :, s, :].trace() for r in range(T) for s in range(T) if r != s),
        start=0 * U[0, 0, 0, 0],
    )


def tied_bias_bounds(U: Matrix) -> Bounds:
    """Where the bias of `tied_bias` lies if U ⪰ 0.

    −(T−1) Σ_r tr U_rr ≤ bias ≤ Σ_r tr U_rr

    Parameters
    ----------
    U
        Unrolled Hessian, T×n×T×n, positive semi-definite. Symbols are taken on trust.

    Returns
    -------
    Bounds
        Both ends can be attained.

    Raises
    ------
    ValueError
        U is indefinite: its bias has no such bounds.

    Notes
    -----
    Claim T8.

    Examples
    --------
    >>> import numpy as np
    >>> from hesstheory import theory
    >>> bounds = theory.tied_bias_bounds(np.array([[1.0, 0.5], [0.5, 1.0]]).reshape(2, 1, 2, 1))
    >>> float(bounds.low), float(bounds.high)
    (-2.0, 2.0)
    """
    U = _unrolled(U)
    T, n = U.shape[:2]
    if U.dtype != object:
        lam = eigenvalues_of(U.reshape(T * n, T * n))
        require(
            lam.min() >= -rounding_of(U) * abs(lam).max(),
            "U has the eigenvalue {:.3g} < 0; the bounds need U ⪰ 0, a Gauss-Newton matrix",
            lam.min(),
        )
    own = sum(U[r, :, r, :].trace() for r in range(T))
    return Bounds(low=-(T - 1) * own, high=own)
