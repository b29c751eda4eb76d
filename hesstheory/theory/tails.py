"""Tail bounds, and the number of probes that they ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from hesstheory.theory.matrices import check_num_probes, require, require_nonnegative


@dataclass(frozen=True)
class TailConstants:
    """A tail P(|mean of K − tr A| ≥ ε) ≤ 2 exp(−Kε²/(c_F‖A‖² + c_2 ε‖A‖₂)); `off_diagonal`: norms without diag A."""

    frobenius: float
    spectral: float
    off_diagonal: bool


# Normal probes, from −½log(1−2s) − s ≤ s²/(1−2s) on every eigenvalue. Cortinovis & Kressner 2021, Theorem 1.
GAUSSIAN_TAIL = TailConstants(frobenius=4, spectral=4, off_diagonal=False)

# Signs, for which the diagonal adds no noise. Cortinovis & Kressner 2021.
RADEMACHER_TAIL = TailConstants(frobenius=8, spectral=8, off_diagonal=True)

# Signs, with half the spectral constant (ours). For ψ(λ) = log E exp(λ zᵀAz), λ > 0, diag A = 0, s = ‖A‖₂:
#   the log-Sobolev inequality on signs (Boucheron, Lugosi & Massart 2013, Theorem 5.1) gives
#   h := λψ′ − ψ ≤ 2λ² E[‖Az‖² e^{λzᵀAz}] e^{−ψ};
#   the variational formula of entropy bounds that mean by (h + log E e^{θ‖Az‖²})/θ ≤ h/θ + ‖A‖²/(1 − 2θs²);
#   θ = λ/s gives (ψ/λ)′ = h/λ² ≤ 2‖A‖²/(1 − 2λs)², hence ψ ≤ 2λ²‖A‖²/(1 − 2λs), which is the tail.
SHARP_RADEMACHER_TAIL = TailConstants(frobenius=8, spectral=4, off_diagonal=True)


def _check_request(error: float, level: float) -> None:
    require(
        error > 0,
        "error must be > 0, got {}; it is absolute: for 1 % of a trace t give 0.01·|t|",
        error,
    )
    require(
        0 < level < 1,
        "level must lie in (0, 1), got {}; it is the chance of failure, 0.05 for 95 %",
        level,
    )


def num_probes_chebyshev(variance: float, error: float, level: float) -> int:
    """Probes that keep |estimate − trace| < ε except with probability δ, for any distribution: ⌈V/(δε²)⌉.

    `variance` is that of one probe (T2), `error` the absolute ε (0.01·|trace| for one per cent), `level` δ. Chebyshev.
    """
    _check_request(error, level)
    require_nonnegative(variance=variance)
    return max(1, math.ceil(variance / (level * error**2)))


def num_probes_normal(variance: float, error: float, level: float) -> int:
    """The same count if the mean were normal: ⌈z²V/ε²⌉, z the 1 − δ/2 quantile; an approximation, no guarantee."""
    _check_request(error, level)
    require_nonnegative(variance=variance)
    return max(1, math.ceil(NormalDist().inv_cdf(level / 2) ** 2 * variance / error**2))


def _tail_scale(
    frobenius_norm: float, spectral_norm: float, error: float, constants: TailConstants
) -> float:
    holds = 0 <= spectral_norm <= frobenius_norm * (1 + 1e-6) < math.inf
    require(
        holds,
        "need 0 <= spectral {} <= frobenius_norm {}; swapped or squared?",
        spectral_norm,
        frobenius_norm,
    )
    return float(
        constants.frobenius * frobenius_norm**2 + constants.spectral * error * spectral_norm
    )


def num_probes_subexponential(
    frobenius_norm: float,
    spectral_norm: float,
    error: float,
    level: float,
    constants: TailConstants,
) -> int:
    """The guaranteed count ⌈(c_F‖A‖² + c_2 ε‖A‖₂)/ε² · log(2/δ)⌉ for Gaussian or Rademacher probes.

    The norms are those of A = `quadratic_form(H, l)` for a layer from one product (T17), of H_ll for separated probes;
    without the diagonal where `constants.off_diagonal`. ε absolute, δ = `level`. Cortinovis & Kressner 2021.
    """
    _check_request(error, level)
    scale = _tail_scale(frobenius_norm, spectral_norm, error, constants)
    return max(1, math.ceil(scale / error**2 * math.log(2 / level)))


def tail_bound(
    num_probes: int,
    frobenius_norm: float,
    spectral_norm: float,
    error: float,
    constants: TailConstants,
) -> float:
    """The bound on P(|estimate − trace| ≥ ε) that `num_probes_subexponential` inverts, at most 1; 0 for A = 0."""
    check_num_probes(num_probes)
    _check_request(error, 0.5)
    scale = _tail_scale(frobenius_norm, spectral_norm, error, constants)
    return min(1.0, 2 * math.exp(-num_probes * error**2 / scale)) if scale > 0 else 0.0
