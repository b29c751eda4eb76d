"""What passes up to rounding, and no further."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hesstheory.evidence.checks import Kind, Status, holds
from hesstheory.evidence.exact import exact

INF, NAN = math.inf, math.nan
EPS = float(np.finfo(np.float64).eps)
NUMPY_WARNS = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


RIGHT = np.array([1.0, -1000.0, 0.0])


@pytest.mark.parametrize("terms", [1, 3, 100])
@pytest.mark.parametrize(
    "magnitude", [None, 1.0, np.array([1.0, 10.0, 1e-3])], ids=["default", "number", "entries"]
)
@pytest.mark.parametrize("entry", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_exact_passes_up_to_its_bound_and_no_further(terms, magnitude, entry, sign):
    """The bound of an entry is terms · eps · magnitude, the largest |right| by default; the worst
    entry is reported."""
    scale = np.broadcast_to(1000.0 if magnitude is None else magnitude, RIGHT.shape)
    bound = terms * EPS * scale[entry]
    for excess, status in ((0.5, Status.PASSED), (1.0, Status.PASSED), (2.0, Status.FAILED)):
        right = np.where(
            np.arange(3) == entry, 0.0, RIGHT
        )  # where every multiple of the bound is a number
        left = np.where(np.arange(3) == entry, sign * excess * bound, right)
        if magnitude is None and entry == 1:
            right[0] = left[0] = 1000.0
        check = exact("rounding", left, right, magnitude=magnitude, terms=terms)
        assert (check.status, check.kind) == (status, Kind.EXACT)
        if status is Status.FAILED:
            assert (check.discrepancy, check.bound) == (excess * bound, bound)


TWOS = [
    2.0,
    2,
    np.float32(2),
    [2.0],
    torch.tensor(2.0),
    torch.full((2, 2), 2.0, requires_grad=True),
]


@pytest.mark.parametrize("left", TWOS, ids=repr)
def test_exact_takes_numbers_arrays_and_tensors(left):
    shape = tuple(left.shape) if isinstance(left, torch.Tensor) else np.shape(left)
    assert exact("same", left, np.full(shape, 2.0)).status is Status.PASSED
    assert exact("other", left, np.full(shape, 2 + 1e-9)).status is Status.FAILED


NOT_FINITE = [
    (NAN, 1.0, None),
    (1.0, NAN, None),
    (NAN, NAN, None),
    (INF, 1.0, None),
    pytest.param(INF, INF, None, marks=NUMPY_WARNS),
    ([1.0, NAN], [1.0, 1.0], None),
    ([NAN, 5.0], [1.0, 1.0], None),
    (1.0, 1.0, NAN),
    ([1.0, 1.0], [1.0, 1.0], [1.0, NAN]),
    pytest.param(1.0, INF, None, marks=NUMPY_WARNS),
    pytest.param(-INF, INF, None, marks=NUMPY_WARNS),
    pytest.param([7.0, 1.0], [1.0, INF], None, marks=NUMPY_WARNS),
    pytest.param(7.0, 1.0, INF, marks=NUMPY_WARNS),
    pytest.param(INF, 1.0, INF, marks=NUMPY_WARNS),
]


@pytest.mark.parametrize(("left", "right", "magnitude"), NOT_FINITE, ids=str)
def test_what_is_not_finite_never_passes_as_exact(left, right, magnitude):
    assert exact("finite", left, right, magnitude=magnitude).status is Status.FAILED


def test_infinity_against_itself_fails_without_a_warning():
    assert exact("finite", INF, INF).status is Status.FAILED


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ([1.0, 1.0], [1.0], r"entry: the two routes have shapes \(2,\) and \(1,\)"),
        (1.0, [1.0], "shapes"),
        ([[1.0, 1.0]], [[1.0], [1.0]], "shapes"),
        ([], [], "entry: nothing to compare"),
    ],
)
def test_exact_refuses_other_shapes(left, right, message):
    with pytest.raises(ValueError, match=message):
        exact("entry", left, right)


@pytest.mark.parametrize(("a", "b"), [(NAN, 1.0), (1.0, NAN), (NAN, NAN), (INF, 1.0)])
def test_comparisons_with_nan_or_infinity_do_not_hold(a, b):
    assert holds("inequality", a <= b, "").status is Status.FAILED
