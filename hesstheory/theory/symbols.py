"""Symbols for proofs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hesstheory.theory.matrices import require


def symmetric_symbols(P: int, name: str = "h") -> Any:
    """The symmetric P×P sympy matrix of real symbols `name`_i_j, i ≤ j."""
    import sympy

    require(P >= 1, "P must be >= 1, got {}; ask for at least one row", P)
    return sympy.Matrix(
        P, P, lambda i, j: sympy.Symbol(f"{name}_{min(i, j)}_{max(i, j)}", real=True)
    )


def expectation(polynomial: Any, z: Sequence[Any], moments: Mapping[int, Any]) -> Any:
    """E of a polynomial in independent entries z_i with E z_i^k = `moments[k]`: Σ coefficient · Π_i moments[k_i].

    Expanded, so that equal expectations subtract to zero. Raises if a power occurs whose moment is not given.
    """
    import sympy

    terms = sympy.Poly(polynomial, *z).terms()
    missing = {k for powers, _ in terms for k in powers if k} - set(moments)
    if missing:
        raise ValueError(
            f"the polynomial needs E z^k for k = {sorted(missing)}; add them to moments"
        )
    return sympy.expand(sum(c * math.prod(moments[k] for k in powers if k) for powers, c in terms))
