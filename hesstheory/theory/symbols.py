"""Symbols for proofs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hesstheory.theory.matrices import Matrix, Scalar, require


def symmetric_symbols(P: int, name: str = "h") -> Matrix:
    """The symmetric sympy matrix of real symbols `name`_i_j, i ≤ j.

    Parameters
    ----------
    P
        Rows and columns.
    name
        Stem of the symbols' names.

    Returns
    -------
    Matrix
        P×P.

    Raises
    ------
    ValueError
        P < 1.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.symmetric_symbols(2)
    Matrix([
    [h_0_0, h_0_1],
    [h_0_1, h_1_1]])
    """
    import sympy

    require(P >= 1, "P must be >= 1, got {}; ask for at least one row", P)
    return sympy.Matrix(
        P, P, lambda i, j: sympy.Symbol(f"{name}_{min(i, j)}_{max(i, j)}", real=True)
    )


def expectation(polynomial: Scalar, z: Sequence[Scalar], moments: Mapping[int, Scalar]) -> Scalar:
    """Expectation of a polynomial in independent, identically distributed entries z_i.

    E Σ_k c_k Π_i z_i^k_i = Σ_k c_k Π_i m_{k_i}

    The result is expanded, so that equal expectations subtract to zero.

    Parameters
    ----------
    polynomial
        A sympy expression; other symbols in it are constants.
    z
        The random symbols.
    moments
        m_k = E z_i^k by power k, from 1 on.

    Returns
    -------
    Scalar
        A sympy expression.

    Raises
    ------
    ValueError
        A power occurs whose moment is not given.

    Examples
    --------
    >>> import sympy
    >>> from hesstheory import theory
    >>> z, w, a = sympy.symbols("z w a")
    >>> theory.expectation(a * z**2 * w**2 + z * w, [z, w], {1: 0, 2: 1})
    a
    """
    import sympy

    terms = sympy.Poly(polynomial, *z).terms()
    missing = {k for powers, _ in terms for k in powers if k} - set(moments)
    if missing:
        raise ValueError(
            f"the polynomial needs E z^k for k = {sorted(missing)}; add them to moments"
        )
    return sympy.expand(sum(c * math.prod(moments[k] for k in powers if k) for powers, c in terms))
