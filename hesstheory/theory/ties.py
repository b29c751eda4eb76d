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
    """A closed interval [low, high]."""

    low: Scalar
    high: Scalar


def _unrolled(U: Matrix) -> Matrix:
    U = as_array(U)
    if U.ndim != 4 or U.shape[:2] != U.shape[2:]:
        raise ValueError(
            f"U must have shape (T, n, T, n), got {tuple(U.shape)}; reshape the unrolled Hessian"
        )
    checked_symmetric(U.reshape(U.shape[0] * U.shape[1], -1))
    return U


def tied_bias(U: Matrix) -> Scalar:
    """Bias of a tied tensor's trace when each of its T instances is estimated by itself, with its own probe.

    E[Σ_r q_r] − tr H_w = Σ_r tr U_rr − Σ_rs tr U_rs = −Σ_{r≠s} tr U_rs

    `U[r, :, s, :]` is the n×n block U_rs of the unrolled Hessian. The sign can be +, − or 0. Claim T7.
    """
    U = _unrolled(U)
    T = len(U)
    return -sum(
        (U[r, :, s, :].trace() for r in range(T) for s in range(T) if r != s),
        start=0 * U[0, 0, 0, 0],
    )


def tied_bias_bounds(U: Matrix) -> Bounds:
    """Where the bias of T7 lies if U ⪰ 0: −(T−1) Σ_r tr U_rr ≤ bias ≤ Σ_r tr U_rr.

    Raises for an indefinite U, whose bias has no such bounds (symbols are taken on trust). Claim T8.
    """
    U = _unrolled(U)
    T, n = U.shape[:2]
    if U.dtype != object:
        lam = eigenvalues_of(U.reshape(T * n, T * n))
        holds = lam.min() >= -rounding_of(U) * abs(lam).max()
        require(
            holds,
            "U has the eigenvalue {:.3g} < 0; the bounds need U ⪰ 0, a Gauss-Newton matrix",
            lam.min(),
        )
    own = sum(U[r, :, r, :].trace() for r in range(T))
    return Bounds(low=-(T - 1) * own, high=own)
