"""What sympy proves, and how it shows a difference."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

from hesstheory.evidence.checks import Kind, Status
from hesstheory.evidence.symbolic import symbolic

x, y = sp.symbols("x y", real=True)
IDENTITIES = {
    "square": ((x + y) ** 2, x**2 + 2 * x * y + y**2),
    "trigonometric": (sp.sin(x) ** 2 + sp.cos(x) ** 2, 1),
    "rational": (1 / x - 1 / y, (y - x) / (x * y)),
    "numbers": (3, sp.Integer(3)),
    "binary fractions": (0.5 * x + 0.25, (2 * x + 1) / 4),
    "arrays": (np.array([[x + x, 0]], dtype=object), np.array([[2 * x, 0]], dtype=object)),
    "matrices": (sp.Matrix([[x, y], [y, x]]).det(), x**2 - y**2),
}
MISTAKES = {
    "sign": ((x - y) ** 2, x**2 + 2 * x * y + y**2),
    "last entry": (sp.Matrix([x, x, x]), sp.Matrix([x, x, y])),
    "only at positive x": (sp.sqrt(x**2), x),
    "nan against itself": (sp.nan, sp.nan),
    "infinity against itself": (sp.oo, sp.oo),
    "rounding is no identity": (0.1 + 0.2, 0.3),
    "a decimal is no tenth": (0.1 * x, x / 10),
    "last bit": ((1 + 2**-52) * x, x),
}


@pytest.mark.parametrize(("left", "right"), IDENTITIES.values(), ids=IDENTITIES.keys())
def test_symbolic_proves_identities(left, right):
    check = symbolic("identity", left, right)
    assert (check.status, check.kind, check.name) == (Status.PASSED, Kind.SYMBOLIC, "identity")


@pytest.mark.parametrize(("left", "right"), MISTAKES.values(), ids=MISTAKES.keys())
def test_symbolic_names_the_difference(left, right):
    check = symbolic("mistake", left, right)
    assert check.status is Status.FAILED
    assert check.detail.startswith("the sides differ by ")


DIFFERENCES = {
    "at a point": (x * y, x + y, "by 806399 at x = 841, y = 961"),
    "of floats, exactly": ((1 + 2**-30) * x, x, "by 841/1073741824 at x = 841"),
    "of many digits": (0.1 * x, x / 10, "by 4.66849e-15 at x = 841"),
    "with roots": (sp.sqrt(sp.Abs(x)), 1, "by 28 at x = 841"),
    "zero at the point": (sp.sqrt(x**2), x, "by -x + Abs(x)"),
}


@pytest.mark.parametrize(("left", "right", "shown"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_symbolic_shows_where_the_sides_differ(left, right, shown):
    assert symbolic("mistake", left, right).detail == f"the sides differ {shown}"


SHAPES = {"longer": ([x, x], [x]), "shorter": ([x], [x, x])}
SYMBOLIC_MISUSE = [
    *SHAPES.values(),
    pytest.param(sp.Matrix(1, 4, [x] * 4), sp.Matrix(2, 2, [x] * 4)),
    pytest.param([], []),
]


@pytest.mark.parametrize(("left", "right"), SYMBOLIC_MISUSE, ids=str)
def test_symbolic_refuses_other_shapes(left, right):
    with pytest.raises(ValueError):  # noqa: PT011 (of zip)
        symbolic("shapes", left, right)
