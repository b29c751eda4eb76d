"""Exact checks: two routes agree up to rounding."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from hesstheory.evidence.checks import Check, Kind, Status

Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_EPS = float(np.finfo(np.float64).eps)


def exact(
    name: str,
    left: object,
    right: object,
    *,
    magnitude: object = None,
    terms: int = 1,
    detail: str = "",
) -> Check:
    """Compares the results of two routes up to rounding: |left − right| ≤ terms · ε · magnitude.

    Parameters
    ----------
    name
        Name of the check, of its own within the claim.
    left, right
        Numbers, arrays or tensors of one shape, taken as float64. They are compared entry by entry.
    magnitude
        Bound of the sum of absolute values that an entry is made of, a number or an array. By
        default it is the largest |right|.
    terms
        Number of roundings that an entry goes through (Higham 2002, section 4.2).
    detail
        What else the outcome should say.

    Returns
    -------
    Check
        Of kind `exact`, with the worst entry as its discrepancy and the bound there.

    Raises
    ------
    ValueError
        If the shapes differ, or if there is no entry.

    Examples
    --------
    >>> sum_of_tenths = sum([0.1] * 10)
    >>> print(exact("ten tenths", sum_of_tenths, 1.0, terms=10).status)
    passed
    >>> print(exact("ten tenths", sum_of_tenths, 1.0001, terms=10).status)
    failed
    """
    a = as_array(left)
    b = as_array(right)
    if a.shape != b.shape:
        raise ValueError(f"{name}: the two routes have shapes {a.shape} and {b.shape}")
    if not a.size:
        raise ValueError(f"{name}: nothing to compare")
    scale = np.max(np.abs(b), initial=0.0) if magnitude is None else as_array(magnitude)
    bound = np.broadcast_to(terms * _EPS * scale, a.shape)
    error, worst, passed = _worst(a, b, bound)
    shown = f"{np.ravel(a)[worst]:.17g} against {np.ravel(b)[worst]:.17g}"
    return Check(
        name,
        Kind.EXACT,
        Status.PASSED if passed else Status.FAILED,
        f"{shown}; {detail}" if detail else shown,
        discrepancy=error,
        bound=float(np.ravel(bound)[worst]),
    )


def _worst(a: Array, b: Array, bound: Array) -> tuple[float, int, bool]:
    """Error and index of the entry that exceeds its bound most, and whether all stay within."""
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        error = np.abs(a - b)
        # A bound that is no number decides nothing, and an error that is none is the worst of all.
        excess = np.where(np.isfinite(bound), error - bound, np.nan)
    worst = int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))
    return float(np.ravel(error)[worst]), worst, bool(np.all(excess <= 0))


def as_array(value: object) -> Array:
    """Numbers, arrays and tensors as float64."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value, dtype=np.float64)
