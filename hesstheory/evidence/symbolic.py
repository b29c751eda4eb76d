"""Symbolic checks: sympy proves an identity."""

from __future__ import annotations

from typing import Any

import numpy as np

from hesstheory.evidence.checks import Check, Kind, Status


def symbolic(name: str, left: Any, right: Any) -> Check:
    """Proves left = right for sympy expressions, or for arrays of them, by simplifying every difference to 0.

    A floating-point number in them counts as the binary fraction that it is.
    """
    import sympy

    sides = np.asarray(left, dtype=object), np.asarray(right, dtype=object)
    if sides[0].shape != sides[1].shape or not sides[0].size:
        raise ValueError(f"{name}: the sides have shapes {sides[0].shape} and {sides[1].shape}")
    for a, b in zip(*map(np.ravel, sides), strict=True):
        difference = _with_fractions(sympy.sympify(a)) - _with_fractions(sympy.sympify(b))
        if (difference := sympy.expand(difference)) == 0:
            continue
        if point := _where_not_zero(difference):
            return Check(name, Kind.SYMBOLIC, Status.FAILED, f"the sides differ {point}")
        # Bringing a rational function to one fraction decides it, at a tenth of what the search of simplify costs.
        if (rest := sympy.cancel(difference)) != 0 and (rest := sympy.simplify(rest)) != 0:
            return Check(name, Kind.SYMBOLIC, Status.FAILED, f"the sides differ by {rest}")
    return Check(name, Kind.SYMBOLIC, Status.PASSED, "the difference simplifies to 0")


def _with_fractions(expression: Any) -> Any:
    import sympy

    return expression.xreplace(
        {number: sympy.Rational(number) for number in expression.atoms(sympy.Float)}
    )


def _where_not_zero(difference: Any) -> str:
    """A point at which an expression is a rational number other than 0, or nothing: squared primes have roots, too."""
    import sympy

    point = {
        x: sympy.Integer(sympy.prime(10 + n)) ** 2
        for n, x in enumerate(sorted(difference.free_symbols, key=str))
    }
    value = difference.xreplace(point)
    if not value.is_Rational or value == 0:
        return ""
    shown = value if len(str(value)) <= 20 else f"{float(value):.6g}"
    return f"by {shown} at " + ", ".join(f"{x} = {square}" for x, square in point.items())
