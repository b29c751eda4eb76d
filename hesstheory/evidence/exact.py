"""Exact checks: two routes agree up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from hesstheory.evidence.checks import Check, Kind, Status


def exact(
    name: str, left: Any, right: Any, *, magnitude: Any = None, terms: int = 1, detail: str = ""
) -> Check:
    """Compares float64 results of two routes up to rounding: |left − right| ≤ terms · eps · magnitude, entry by entry.

    `terms` counts the roundings that an entry goes through; `magnitude` bounds the sum of absolute values that it is
    made of (default: the largest |right|), as in Higham (2002), section 4.2.
    """
    a, b = as_array(left), as_array(right)
    if a.shape != b.shape:
        raise ValueError(f"{name}: the two routes have shapes {a.shape} and {b.shape}")
    scale = np.max(np.abs(b), initial=0.0) if magnitude is None else as_array(magnitude)
    bound = np.broadcast_to(terms * np.finfo(np.float64).eps * scale, a.shape)
    if not a.size:
        raise ValueError(f"{name}: nothing to compare")
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        error = np.abs(a - b)
        excess = np.where(np.isfinite(bound), error - bound, np.nan)
    worst = int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))
    passed = bool(np.all(excess <= 0))
    shown = f"{np.ravel(a)[worst]:.17g} against {np.ravel(b)[worst]:.17g}" + (
        f"; {detail}" if detail else ""
    )
    status = Status.PASSED if passed else Status.FAILED
    return Check(
        name,
        Kind.EXACT,
        status,
        shown,
        float(np.ravel(error)[worst]),
        float(np.ravel(bound)[worst]),
    )


def as_array(value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
