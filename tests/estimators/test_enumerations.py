"""Sets of probes whose moments are those of a distribution, exactly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from builders import stream

from hesstheory import HadamardColumns
from hesstheory.estimators.enumerations import (
    all_signs,
    cube_over_gf2,
    hadamard_columns,
    strength_four_signs,
    three_point_grid,
)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 31])
def test_all_hadamard_columns_average_to_the_identity(size):
    Z = hadamard_columns(size)
    assert torch.equal(Z @ Z.mT / Z.shape[1], torch.eye(size))
    drawn = HadamardColumns().sample(size, Z.shape[1], stream())
    assert torch.equal(drawn @ drawn.mT / Z.shape[1], torch.eye(size))
    with pytest.raises(ValueError, match=f"ask for at most {Z.shape[1]}"):
        HadamardColumns().sample(size, Z.shape[1] + 1, stream())


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_all_signs_are_all_signs(size):
    Z = all_signs(size)
    assert Z.shape == (size, 2**size)
    assert {tuple(z.tolist()) for z in Z.mT} == set(itertools.product((-1.0, 1.0), repeat=size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 12, 15, 16])
def test_strength_four_signs_have_strength_four(size):
    """The mean of every product of one to four different rows is exactly 0."""
    Z = strength_four_signs(size)
    assert Z.shape == (size, 4 ** size.bit_length())
    assert (Z.abs() == 1).all()
    for order in (1, 2, 3, 4):
        subsets = torch.tensor(
            list(itertools.combinations(range(size), order)), dtype=torch.int64
        ).reshape(-1, order)
        for some in subsets.split(200):
            assert (Z[some].prod(1).mean(1) == 0).all()
    assert torch.equal(Z @ Z.mT / Z.shape[1], torch.eye(size))


@pytest.mark.parametrize("size", [31, 33, 63, 64, 100, 127])
def test_strength_four_of_larger_arrays_by_their_parity_checks(size):
    """No one to four of the linear functions add up to 0 over GF(2), so products average to 0."""
    m = size.bit_length()
    rows = [(x << m) | cube_over_gf2(x, m) for x in range(1, size + 1)]
    sums = [a ^ b for a, b in itertools.combinations(rows, 2)]
    assert len({0, *rows, *sums}) == 1 + len(rows) + len(sums)


@pytest.mark.parametrize("degree", range(1, 9))
def test_cubing_is_that_of_a_field(degree):
    """x ↦ x³ over GF(2^m) has no zero but 0, and is one-to-one where 3 does not divide 2^m − 1."""
    cube = [cube_over_gf2(x, degree) for x in range(1, 2**degree)]
    assert all(0 < value < 2**degree for value in cube)
    if math.gcd(3, 2**degree - 1) == 1:
        assert len(set(cube)) == len(cube)


@pytest.mark.parametrize("kurtosis", [1.0, 9 / 5, 3.0, 7.5])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_three_point_grid_has_exact_moments(size, kurtosis):
    Z, weights = three_point_grid(size, kurtosis)
    assert Z.shape == (size, 3**size)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-14)
    assert (weights >= 0).all()
    expected = {
        (1,): 0,
        (2,): 1,
        (3,): 0,
        (4,): kurtosis,
        (5,): 0,
        (1, 1): 0,
        (2, 2): 1,
        (3, 1): 0,
        (2, 1, 1): 0,
    }
    expected |= {(1, 1, 1, 1): 0, (4, 1): 0, (3, 2): 0}
    for powers, moment in expected.items():
        for entries in itertools.permutations(range(size), len(powers)):
            product = math.prod(
                (Z[i] ** power for i, power in zip(entries, powers, strict=True)), start=weights
            )
            assert float(product.sum()) == pytest.approx(moment, abs=1e-12)
