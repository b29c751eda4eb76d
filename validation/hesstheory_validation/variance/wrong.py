"""Wrong variances and covariances of one product."""

from __future__ import annotations

from collections.abc import Iterable

from hesstheory import theory
from hesstheory.theory.matrices import Matrix, Scalar


def dropped_cross_blocks(H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Omits the cross-block term Σ_{m≠l} ‖H_lm‖²."""
    return theory.probe_variance(H_ll, (), kurtosis)


def doubled_cross_blocks(H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Gives the cross-block term the coefficient 2 of the diagonal block."""
    cross = list(cross_blocks)
    return theory.probe_variance(H_ll, cross + cross, kurtosis)


def kurtosis_ignored(H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Uses the normal fourth moment whatever the probe."""
    return theory.probe_variance(H_ll, cross_blocks, 3)


def kurtosis_on_cross_blocks(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar
) -> Scalar:
    """Scales the cross-block term with κ − 2, as if its coefficient depended on the probe."""
    cross = list(cross_blocks)
    own = theory.probe_variance(H_ll, (), kurtosis)
    return own + (kurtosis - 2) * (theory.probe_variance(H_ll, cross, kurtosis) - own)


def excess_kurtosis(H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Takes κ for the excess kurtosis κ − 3, so the diagonal is counted three times too much."""
    cross = list(cross_blocks)
    return theory.probe_variance(H_ll, cross, kurtosis + 3)


def variance_just_outside_rounding(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar
) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.probe_variance(H_ll, cross_blocks, kurtosis) * (1 + 2**-30)


def covariance_doubled(H_lm: Matrix) -> Scalar:
    """Counts both H_lm and H_ml in the covariance of two layers."""
    return 2 * theory.probe_covariance(H_lm)


def covariance_of_signs_zero(H_lm: Matrix) -> Scalar:
    """Takes the layers' estimates for uncorrelated, because their probes are independent."""
    return 0 * theory.probe_covariance(H_lm)


def covariance_just_outside_rounding(H_lm: Matrix) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.probe_covariance(H_lm) * (1 + 2**-30)


def advantage_halved(H_ll: Matrix) -> Scalar:
    """Forgets the factor 2 of the gap between normal and sign probes."""
    return theory.rademacher_advantage(H_ll) / 2


def advantage_of_the_trace(H_ll: Matrix) -> Scalar:
    """Puts the squared trace for the sum of squares of the diagonal."""
    return 2 * H_ll.trace() ** 2


def advantage_of_the_whole_block(H_ll: Matrix) -> Scalar:
    """Sums the squares of the whole block, not of its diagonal."""
    return 2 * theory.squared_norm(H_ll)


def sphere_as_normal(H_ll: Matrix, cross_blocks: Iterable[Matrix], num_params: Scalar) -> Scalar:
    """Takes a point of the sphere for a normal vector."""
    return theory.probe_variance(H_ll, cross_blocks, 3)


def sphere_without_trace_term(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_params: Scalar
) -> Scalar:
    """Omits −2/(P+2)·(tr H_ll)²."""
    return num_params * theory.probe_variance(H_ll, cross_blocks, 3) / (num_params + 2)


def sphere_of_the_block_only(
    H_ll: Matrix, cross_blocks: Iterable[Matrix], num_params: Scalar
) -> Scalar:
    """Puts the size of the block for that of the whole probe."""
    return theory.sphere_variance(H_ll, cross_blocks, H_ll.shape[0])
