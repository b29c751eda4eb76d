"""Wrong variances of a probe per sample, orthogonal probes and Hadamard patterns."""

from __future__ import annotations

import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.estimators.enumerations import hadamard_columns
from hesstheory.theory.matrices import Matrix, Scalar


def per_sample_sum(sample_variances: Matrix) -> Scalar:
    """Averages the samples' variances, without the second 1/N of a mean."""
    return theory.per_sample_probe_variance(sample_variances) * len(sample_variances)


def per_sample_pairs_left_out(sample_variances: Matrix) -> Scalar:
    """Divides by N(N − 1)."""
    N = len(sample_variances)
    return theory.per_sample_probe_variance(sample_variances) * N / (N - 1)


def per_sample_of_the_first(sample_variances: Matrix) -> Scalar:
    """Takes the variance of the first sample for that of all."""
    return sample_variances[0] / len(sample_variances)


def per_sample_just_outside_rounding(sample_variances: Matrix) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.per_sample_probe_variance(sample_variances) * (1 + 2**-30)


def per_sample_always_wins(V_of_mean: Scalar, S_q: Scalar, num_samples: Scalar) -> bool:
    """Believes that a probe per sample is always better."""
    return True


def per_sample_wins_below_one_mean(V_of_mean: Scalar, S_q: Scalar, num_samples: Scalar) -> bool:
    """Compares S_q with V(H̄), not with N times that."""
    return bool(S_q < V_of_mean)


def per_sample_wins_below_one_sample_less(
    V_of_mean: Scalar, S_q: Scalar, num_samples: Scalar
) -> bool:
    """Takes N − 1 for N, as if S_q were divided by N."""
    return bool(S_q < (num_samples - 1) * V_of_mean)


def orthogonal_as_independent(
    probe_variance: Scalar, num_probes: Scalar, num_params: Scalar
) -> Scalar:
    """Takes orthogonal probes for independent."""
    return probe_variance / num_probes


def orthogonal_with_replacement(
    probe_variance: Scalar, num_probes: Scalar, num_params: Scalar
) -> Scalar:
    """Puts P for P − 1, as for a variance with the denominator P."""
    return probe_variance / num_probes * (num_params - num_probes) / num_params


def orthogonal_off_by_one_probe(
    probe_variance: Scalar, num_probes: Scalar, num_params: Scalar
) -> Scalar:
    """Counts the first probe as one that gains already."""
    return probe_variance / num_probes * (num_params - num_probes + 1) / num_params


def orthogonal_just_outside_rounding(
    probe_variance: Scalar, num_probes: Scalar, num_params: Scalar
) -> Scalar:
    """Is off by one part in 10⁹ of the variance of one probe."""
    right = theory.orthogonal_probe_variance(probe_variance, num_probes, num_params)
    return right + 2**-30 * probe_variance


def signs_of_layers_repeated(num_layers: int) -> Tensor:
    """Gives two layers the same Hadamard row."""
    rows = hadamard_columns(num_layers)
    return torch.cat([rows[:1], rows[:1], rows[2:]])


def signs_of_layers_too_few(num_layers: int) -> Tensor:
    """Stops after half of the Hadamard columns."""
    rows = hadamard_columns(num_layers)
    return rows[:, : rows.shape[1] // 2]


def signs_of_layers_alike(num_layers: int) -> Tensor:
    """Uses the same signs in every layer, one full-vector probe again and again."""
    return torch.ones_like(hadamard_columns(num_layers))
