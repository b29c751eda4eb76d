"""Tail bounds, and the number of probes that they ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from hesstheory.theory.matrices import (
    NORM_SLACK,
    check_num_probes,
    require,
    require_nonnegative,
)


@dataclass(frozen=True)
class TailConstants:
    """Constants of a tail bound P(|mean of K − tr A| ≥ ε) ≤ 2 exp(−Kε²/(c_F‖A‖² + c_2 ε‖A‖₂)).

    Parameters
    ----------
    frobenius
        c_F.
    spectral
        c_2.
    off_diagonal
        Whether the norms are those of A without its diagonal.
    """

    frobenius: float
    spectral: float
    off_diagonal: bool


# Normal probes, from −½log(1−2s) − s ≤ s²/(1−2s) on every eigenvalue.
# Cortinovis & Kressner 2021, Theorem 1.
GAUSSIAN_TAIL = TailConstants(frobenius=4, spectral=4, off_diagonal=False)

# Signs, for which the diagonal adds no noise. Cortinovis & Kressner 2021, Theorem 2.
RADEMACHER_TAIL = TailConstants(frobenius=8, spectral=8, off_diagonal=True)

# Signs, with half the spectral constant (ours).
# Let ψ(λ) = log E exp(λ zᵀAz), λ > 0, diag A = 0, s = ‖A‖₂.
# 1. The log-Sobolev inequality on signs (Boucheron, Lugosi & Massart 2013, Theorem 5.1) gives
#    h := λψ′ − ψ ≤ 2λ² E[‖Az‖² e^{λzᵀAz}] e^{−ψ}.
# 2. The variational formula of entropy bounds that mean by
#    (h + log E e^{θ‖Az‖²})/θ ≤ h/θ + ‖A‖²/(1 − 2θs²).
# 3. θ = λ/s gives (ψ/λ)′ = h/λ² ≤ 2‖A‖²/(1 − 2λs)².
# Hence ψ ≤ 2λ²‖A‖²/(1 − 2λs), which is the tail.
SHARP_RADEMACHER_TAIL = TailConstants(frobenius=8, spectral=4, off_diagonal=True)


def _check_request(error: float, level: float) -> None:
    """Raise unless the error is positive and the level a probability."""
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
    """Probes that keep the error below ε, except with probability δ, for any distribution.

    K = ⌈V/(δε²)⌉

    Parameters
    ----------
    variance
        V of one probe (`probe_variance`).
    error
        ε, absolute: 0.01·|trace| for one per cent.
    level
        δ, the chance of failure.

    Returns
    -------
    int
        K ≥ 1.

    Raises
    ------
    ValueError
        V < 0, ε ≤ 0, or δ outside (0, 1).

    Notes
    -----
    Chebyshev's inequality.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.num_probes_chebyshev(4.0, error=0.5, level=0.25)
    64
    """
    _check_request(error, level)
    require_nonnegative(variance=variance)
    return max(1, math.ceil(variance / (level * error**2)))


def num_probes_normal(variance: float, error: float, level: float) -> int:
    """Probes that would keep the error below ε if the mean were normal; no guarantee.

    K = ⌈z²V/ε²⌉, z the 1 − δ/2 quantile

    Takes the arguments of `num_probes_chebyshev`, and raises as it does.

    Returns
    -------
    int
        K ≥ 1.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.num_probes_normal(4.0, error=0.1, level=0.05)
    1537
    """
    _check_request(error, level)
    require_nonnegative(variance=variance)
    return max(1, math.ceil(NormalDist().inv_cdf(level / 2) ** 2 * variance / error**2))


def _tail_scale(
    frobenius_norm: float, spectral_norm: float, error: float, constants: TailConstants
) -> float:
    """c_F‖A‖² + c_2 ε‖A‖₂."""
    holds = 0 <= spectral_norm <= frobenius_norm * (1 + NORM_SLACK) < math.inf
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
    """The guaranteed number of Gaussian or Rademacher probes.

    K = ⌈(c_F‖A‖² + c_2 ε‖A‖₂)/ε² · log(2/δ)⌉

    Parameters
    ----------
    frobenius_norm, spectral_norm
        ‖A‖ and ‖A‖₂ of A = `quadratic_form(H, l)` for a layer from one product, of H_ll for
        separated probes; without the diagonal where `constants.off_diagonal`.
    error
        ε, absolute.
    level
        δ, the chance of failure.
    constants
        `GAUSSIAN_TAIL`, `RADEMACHER_TAIL` or `SHARP_RADEMACHER_TAIL`.

    Returns
    -------
    int
        K ≥ 1.

    Raises
    ------
    ValueError
        ‖A‖₂ > ‖A‖, ε ≤ 0, or δ outside (0, 1).

    Notes
    -----
    Cortinovis & Kressner 2021.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.num_probes_subexponential(2.0, 0.7, 0.5, 0.05, theory.GAUSSIAN_TAIL)
    257
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
    """The bound on the chance of an error of ε or more, which `num_probes_subexponential` inverts.

    P(|estimate − trace| ≥ ε) ≤ 2 exp(−Kε²/(c_F‖A‖² + c_2 ε‖A‖₂))

    Parameters
    ----------
    num_probes
        K.
    frobenius_norm, spectral_norm, error, constants
        As in `num_probes_subexponential`.

    Returns
    -------
    float
        At most 1; 0 for A = 0.

    Raises
    ------
    ValueError
        K < 1, ‖A‖₂ > ‖A‖, or ε ≤ 0.

    Examples
    --------
    >>> from hesstheory import theory
    >>> round(theory.tail_bound(257, 2.0, 0.7, 0.5, theory.GAUSSIAN_TAIL), 3)
    0.05
    """
    check_num_probes(num_probes)
    _check_request(error, 0.5)  # the level is not asked for; any valid one will do
    scale = _tail_scale(frobenius_norm, spectral_norm, error, constants)
    return min(1.0, 2 * math.exp(-num_probes * error**2 / scale)) if scale > 0 else 0.0
