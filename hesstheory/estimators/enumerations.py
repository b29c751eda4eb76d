"""Probe vectors whose moments are those of a distribution, exactly."""

from __future__ import annotations

import math
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.estimators.probes import power_of_two, walsh

# Irreducible polynomials over GF(2) by degree, as bit masks: 0b1011 is x³ + x + 1.
_IRREDUCIBLE = {
    1: 0b11,
    2: 0b111,
    3: 0b1011,
    4: 0b10011,
    5: 0b100101,
    6: 0b1000011,
    7: 0b10000011,
    8: 0b100011101,
    9: 0b1000010001,
    10: 0b10000001001,
}


def hadamard_columns(num_params: int) -> Float[Tensor, "params probes"]:
    """All columns of the Sylvester-Hadamard matrix cut to P rows.

    The mean of zzᵀ is I, hence that of q_l is tr H_ll.
    """
    order = power_of_two(num_params)
    return walsh(torch.arange(num_params), torch.arange(order))


def all_signs(num_params: int) -> Float[Tensor, "params probes"]:
    """All 2^P sign vectors, P ≤ 16: every moment of the Rademacher distribution, exactly."""
    # 2^16 vectors of 16 entries take 8 MiB in float64; every further parameter doubles that.
    if num_params > 16:
        raise ValueError(
            f"2^{num_params} sign vectors are too many: use strength_four_signs, which need about "
            "P²"
        )
    return walsh(2 ** torch.arange(num_params), torch.arange(2**num_params))


def strength_four_signs(num_params: int) -> Float[Tensor, "params probes"]:
    """4^m sign vectors, P < 2^m, of exact Rademacher mean AND variance.

    Any four entries are independent: the array is orthogonal of strength four. Row x is the linear
    function c ↦ ⟨(x, x³), c⟩ over GF(2). The columns (x, x³), x ∈ GF(2^m)∖{0}, are the parity
    checks of the double-error-correcting BCH code. Its distance is 5, so any four are linearly
    independent. Source: Bose and Ray-Chaudhuri (1960).

    Parameters
    ----------
    num_params
        P, below 1024.

    Raises
    ------
    ValueError
        There are more parameters.
    """
    m = num_params.bit_length()
    # 4^10 vectors of 1023 entries take 8 GiB in float64; the next m takes eight times as much.
    if m > 10:
        raise ValueError(
            f"{num_params} parameters need 4^{m} sign vectors: enumerate problems below 1024 "
            "parameters"
        )
    rows = torch.tensor([(x << m) | cube_over_gf2(x, m) for x in range(1, num_params + 1)])
    return walsh(rows, torch.arange(4**m))


def three_point_grid(
    num_params: int, kurtosis: float
) -> tuple[Float[Tensor, "params probes"], Float[Tensor, " probes"]]:
    """All 3^P vectors over {−√κ, 0, √κ} with their probabilities: moments exact up to order five.

    An entry is ±√κ with probability 1/(2κ) each. Its mean is 0, its variance 1, its fourth moment
    κ.

    Parameters
    ----------
    num_params
        P, at most 10.
    kurtosis
        κ ≥ 1.

    Returns
    -------
    tuple[Tensor, Tensor]
        The vectors as columns, P × 3^P, and the probability of each.

    Raises
    ------
    ValueError
        P or κ is out of range.
    """
    if num_params > 10:  # 3^10 vectors are 59,049
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


def cube_over_gf2(x: int, m: int) -> int:
    """x³ in GF(2^m), polynomials over GF(2) read as the bits of whole numbers."""
    return _product(x, _product(x, x, m), m)


def _product(a: int, b: int, m: int) -> int:
    """a·b in GF(2^m), by shifts and additions."""
    out = 0
    while b:
        if b & 1:
            out ^= a
        b >>= 1
        a <<= 1
        if a >> m:
            a ^= _IRREDUCIBLE[m]
    return out
