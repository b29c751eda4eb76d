"""Probe vectors whose moments are those of a distribution, exactly."""

from __future__ import annotations

import math
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.estimators.probes import power_of_two, walsh


def hadamard_columns(num_params: int) -> Float[Tensor, "params probes"]:
    """All columns of the Sylvester-Hadamard matrix cut to P rows: the mean of zzᵀ is I, that of q_l tr H_ll."""
    order = power_of_two(num_params)
    return walsh(torch.arange(num_params), torch.arange(order))


def all_signs(num_params: int) -> Float[Tensor, "params probes"]:
    """All 2^P sign vectors, P ≤ 16: every moment of the Rademacher distribution, exactly."""
    if num_params > 16:
        raise ValueError(
            f"2^{num_params} sign vectors are too many: use strength_four_signs, which need about P²"
        )
    return walsh(2 ** torch.arange(num_params), torch.arange(2**num_params))


def strength_four_signs(num_params: int) -> Float[Tensor, "params probes"]:
    """4^m sign vectors, P < 2^m, any four entries of which are independent: exact Rademacher mean AND variance.

    Row x of the array is the linear function c ↦ ⟨(x, x³), c⟩ over GF(2): the columns (x, x³), x ∈ GF(2^m)∖{0}, are the
    parity checks of the double-error-correcting BCH code of distance 5, so any four are linearly independent (Bose and
    Ray-Chaudhuri 1960; orthogonal array of strength 4).
    """
    m = num_params.bit_length()
    if m > 10:
        raise ValueError(
            f"{num_params} parameters need 4^{m} sign vectors: enumerate problems below 1024 parameters"
        )
    rows = torch.tensor([(x << m) | _cube(x, m) for x in range(1, num_params + 1)])
    return walsh(rows, torch.arange(4**m))


def three_point_grid(
    num_params: int, kurtosis: float
) -> tuple[Float[Tensor, "params probes"], Float[Tensor, " probes"]]:
    """All 3^P vectors over {−√κ, 0, √κ} with their probabilities: exact moments up to order five for any κ ≥ 1.

    One entry is ±√κ with probability 1/(2κ) each, so its mean is 0, its variance 1 and its fourth moment κ. P ≤ 10.
    """
    if num_params > 10:
        raise ValueError(
            f"3^{num_params} vectors are too many: enumerate problems of at most 10 parameters"
        )
    if kurtosis < 1:
        raise ValueError(
            f"kurtosis is {kurtosis}: no variable of unit variance has a fourth moment below 1"
        )
    levels = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=num_params)), dtype=torch.float64)
    nonzero = levels.abs().sum(1)
    weights = (1 / (2 * kurtosis)) ** nonzero * (1 - 1 / kurtosis) ** (num_params - nonzero)
    return (math.sqrt(kurtosis) * levels).mT, weights


_PRIMITIVE = {1: 0b11, 2: 0b111, 3: 0b1011, 4: 0b10011, 5: 0b100101, 6: 0b1000011, 7: 0b10000011, 8: 0b100011101,
              9: 0b1000010001, 10: 0b10000001001}  # irreducible polynomials over GF(2), by degree  # fmt: skip


def _cube(x: int, m: int) -> int:
    """x³ in GF(2^m)."""

    def times(a: int, b: int) -> int:
        out = 0
        while b:
            out ^= a if b & 1 else 0
            a, b = a << 1, b >> 1
            a ^= _PRIMITIVE[m] if a >> m else 0
        return out

    return times(x, times(x, x))
