"""Distributions have the moments that they declare, and follow their generator."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from builders import stream

from hesstheory import Gaussian, HadamardColumns, Rademacher, SparseSigns, Sphere, Uniform
from hesstheory.estimators.probes import Probe

PROBES = [
    Rademacher(),
    Gaussian(),
    Uniform(),
    Sphere(),
    SparseSigns(0.25),
    SparseSigns(1.0),
    HadamardColumns(),
]


each_probe = pytest.mark.parametrize("probe", PROBES, ids=repr)


NUM_DRAWS = 40_000


@each_probe
def test_a_probe_has_the_moments_that_it_declares(probe):
    """Mean 0, E zzᵀ = I and E z⁴ = κ, six standard errors wide; the seed is fixed."""
    P = 8
    repeats = NUM_DRAWS // P if isinstance(probe, HadamardColumns) else 1
    draw = stream()
    Z = torch.cat([probe.sample(P, NUM_DRAWS // repeats, draw) for _ in range(repeats)], dim=1)
    assert Z.shape == (P, NUM_DRAWS)
    assert Z.dtype is torch.float64
    moments = [(Z, torch.zeros(P, 1)), (Z**4, torch.full((P, 1), probe.kurtosis(P)))]
    moments.append((torch.einsum("ik,jk->ijk", Z, Z), torch.eye(P)[:, :, None]))
    for powers, expected in moments:
        error = (powers.mean(-1, keepdim=True) - expected).abs()
        stderr = powers.std(-1, keepdim=True) / NUM_DRAWS**0.5
        assert (error <= 6 * stderr + 1e-12).all()


SUPPORTS = {
    Rademacher(): lambda Z: (Z.abs() == 1).all(),
    HadamardColumns(): lambda Z: (Z.abs() == 1).all(),
    Uniform(): lambda Z: (Z.abs() <= 3**0.5).all(),
    Sphere(): lambda Z: (Z.square().sum(0) - len(Z)).abs().max() <= 1e-12 * len(Z),
    SparseSigns(0.25): lambda Z: ((Z == 0) | (Z.abs() == 2)).all(),
}


@pytest.mark.parametrize(("probe", "belongs"), SUPPORTS.items(), ids=map(repr, SUPPORTS))
def test_a_probe_keeps_to_its_support(probe, belongs):
    assert belongs(probe.sample(50, 64, stream()))


@each_probe
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (7, 3), (20, 8)])
def test_a_probe_follows_its_generator(probe, size):
    count = (
        min(size[1], 2 ** math.ceil(math.log2(size[0])))
        if isinstance(probe, HadamardColumns)
        else size[1]
    )
    first, again, later = stream(), stream(), stream(0)
    Z = probe.sample(size[0], count, first)
    assert Z.shape == (size[0], count)
    assert torch.equal(Z, probe.sample(size[0], count, again))
    probe.sample(size[0], count, later)
    many = [probe.sample(size[0], count, later) for _ in range(20)]
    assert any(not torch.equal(Z, other) for other in many)
    assert isinstance(probe, Probe)
    assert probe == replace(probe)


@pytest.mark.parametrize(
    "probe", [p for p in PROBES if not isinstance(p, HadamardColumns)], ids=repr
)
def test_more_probes_begin_with_fewer(probe):
    """Probe k does not depend on how many are asked for: a longer run goes on from a shorter."""
    draws = stream()
    both = torch.cat([probe.sample(9, 4, draws), probe.sample(9, 4, draws)], dim=1)
    assert torch.equal(probe.sample(9, 4, stream()), both[:, :4])
