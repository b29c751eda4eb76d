"""Symbolic checks: sympy proves an identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hesstheory.evidence.checks import Check, Kind, Status

if TYPE_CHECKING:
    import sympy

# A value with more characters than this is shown as a decimal number.
_LONGEST_SHOWN = 20


def symbolic(name: str, left: object, right: object) -> Check:
    """Proves left = right by simplifying the difference to 0.

    Parameters
    ----------
    name
        Name of the check, of its own within the claim.
    left, right
        Expressions of sympy, or arrays of them of one shape. A floating-point number in them counts
        as the binary fraction that it is.

    Returns
    -------
    Check
        Of kind `symbolic`. Where it fails, the detail has a point at which the sides differ.

    Raises
    ------
    ValueError
        If the shapes differ, or if there is nothing to compare.

    Examples
    --------
    >>> import sympy
    >>> a, b = sympy.symbols("a b")
    >>> print(symbolic("binomial", (a + b) ** 2, a**2 + 2 * a * b + b**2).status)
    passed
    >>> print(symbolic("no binomial", (a + b) ** 2, a**2 + b**2).status)
    failed
    """
    import sympy

    sides = np.asarray(left, dtype=object), np.asarray(right, dtype=object)
    if sides[0].shape != sides[1].shape or not sides[0].size:
        raise ValueError(f"{name}: the sides have shapes {sides[0].shape} and {sides[1].shape}")
    for a, b in zip(*map(np.ravel, sides), strict=True):
        difference = _with_fractions(sympy.sympify(a)) - _with_fractions(sympy.sympify(b))
        if found := _how_they_differ(difference):
            return Check(name, Kind.SYMBOLIC, Status.FAILED, f"the sides differ {found}")
    return Check(name, Kind.SYMBOLIC, Status.PASSED, "the difference simplifies to 0")


def _how_they_differ(difference: sympy.Expr) -> str:
    """Nothing where the difference is 0, else a point with its value there, or the difference."""
    import sympy

    difference = sympy.expand(difference)
    if difference == 0:
        return ""
    if point := _where_not_zero(difference):
        return point
    # One fraction decides a rational function, at a tenth of what the search of simplify costs.
    rest = sympy.cancel(difference)
    if rest != 0:
        rest = sympy.simplify(rest)
    return "" if rest == 0 else f"by {rest}"


def _with_fractions(expression: sympy.Expr) -> sympy.Expr:
    """The expression with rational numbers for floating-point ones."""
    import sympy

    floats = expression.atoms(sympy.Float)
    return expression.xreplace({number: sympy.Rational(number) for number in floats})


def _where_not_zero(difference: sympy.Expr) -> str:
    """A point at which an expression is a rational number other than 0, or nothing."""
    import sympy

    # Squares of primes: their roots are rational too, and products of them are all different. From
    # the tenth prime on, so that small factors in the formula do not cancel them.
    symbols = sorted(difference.free_symbols, key=str)
    point = {x: sympy.Integer(sympy.prime(10 + n)) ** 2 for n, x in enumerate(symbols)}
    value = difference.xreplace(point)
    if not value.is_Rational or value == 0:
        return ""
    shown = value if len(str(value)) <= _LONGEST_SHOWN else f"{float(value):.6g}"
    return f"by {shown} at " + ", ".join(f"{x} = {square}" for x, square in point.items())
