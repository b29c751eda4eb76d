"""Wrong thresholds between full-vector and separated probes."""

from __future__ import annotations

from collections.abc import Iterable

from hesstheory import theory
from hesstheory.theory.matrices import Matrix, Scalar


def crossover_per_probe(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar
) -> Scalar:
    """Compares the designs probe by probe, as if a sweep cost one product."""
    return theory.crossover_margin(H_ll, cross_blocks, 1, kurtosis)


def crossover_one_layer_too_many(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar
) -> Scalar:
    """Multiplies by L instead of L − 1."""
    return theory.crossover_margin(H_ll, cross_blocks, num_layers + 1, kurtosis)


def crossover_without_cross_blocks(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar
) -> Scalar:
    """Takes the full-vector probe for as quiet as the separated one."""
    return theory.crossover_margin(H_ll, (), num_layers, kurtosis)


def crossover_with_doubled_cross_blocks(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar
) -> Scalar:
    """Gives the cross blocks the coefficient 2."""
    cross = list(cross_blocks)
    return theory.crossover_margin(H_ll, cross + cross, num_layers, kurtosis)


def crossover_of_normals(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar
) -> Scalar:
    """Uses the normal fourth moment whatever the probe."""
    return theory.crossover_margin(H_ll, cross_blocks, num_layers, 3)


def crossover_just_outside_rounding(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_layers: Scalar, kurtosis: Scalar
) -> Scalar:
    """Puts the threshold one part in 10⁶ too high."""
    return theory.crossover_margin(
        H_ll, cross_blocks, 1 + (num_layers - 1) * (1 + 2**-20), kurtosis
    )
