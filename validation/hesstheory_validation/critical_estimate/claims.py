"""Claim T14: the estimate of K* on line, from q[batch, probe] by analysis of variance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement, product

import numpy as np
import sympy
import torch
from scipy import special, stats

from hesstheory import theory
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.estimators.enumerations import all_signs
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory_validation.critical_estimate import wrong
from hesstheory_validation.probe_tradeoff.samplings import (
    Array,
    Moments,
    Sampling,
    tiny_cases,
)
from hesstheory_validation.subjects import Formula

DESIGNS = ((3, 2), (2, 3))  # batches × probes


@dataclass(frozen=True)
class Draws:
    """All that K probes on one mini-batch can show, with its probability: q of shape outcomes ×
    K."""

    name: str
    q: Array
    p: Array
    within: float
    between: float


def _draws(case: Case, num_params: int, num_probes: int) -> Draws:
    """The first parameters of a network, all but the last of them a layer; pairs of three
    samples."""
    sampling = Sampling(2, 3)
    rows = {"block": torch.arange(num_params - 1)}
    H = case.per_sample[:3, :num_params, :num_params]
    Z = all_signs(num_params)[:, : 2 ** (num_params - 1)]  # z and −z give the same form
    of_samples = Moments.of([H], rows)
    outcomes = [
        list(
            combinations_with_replacement(
                (Z[:-1] * (H[list(B)].mean(0) @ Z)[:-1]).sum(0).tolist(), num_probes
            )
        )
        for B in sampling.batches
    ]
    index = list(combinations_with_replacement(range(Z.shape[1]), num_probes))
    orders = np.array([math.factorial(num_probes) / _repeats(choice) for choice in index])
    p = np.concatenate([orders / Z.shape[1] ** num_probes] * len(outcomes)) / len(outcomes)
    within = float(of_samples.probe_variance(sampling)[0])
    between = float(of_samples.batch_variance(sampling)[0])
    return Draws(f"{case}, {num_params} parameters", np.concatenate(outcomes), p, within, between)


def _repeats(choice: Sequence[int]) -> int:
    return math.prod(math.factorial(choice.count(value)) for value in set(choice))


@lru_cache(maxsize=64)
def _tables(
    draws_of: tuple[Case, int], num_batches: int, num_probes: int
) -> tuple[Draws, list[Array], Array]:
    """Every table batches × probes up to the order of its independent batches, with its
    probability."""
    draws = _draws(*draws_of, num_probes)
    choices = list(combinations_with_replacement(range(len(draws.p)), num_batches))
    weights = [
        math.prod(draws.p[list(c)]) * math.factorial(num_batches) / _repeats(c) for c in choices
    ]
    return draws, [draws.q[list(choice)] for choice in choices], np.array(weights)


def _components(anova: Formula, q: Array) -> tuple[float, float]:
    """Within and between.

    The estimator refuses tables without probe noise: 0 and the variance of the batch means.
    """
    if np.ptp(q, axis=1).max() == 0:
        return 0.0, float(q[:, 0].var(ddof=1))
    found = anova(q)
    return float(found.within), float(found.between)


@claim(
    "T14",
    "One-way analysis of variance of q[batch, probe] estimates both parts of K* without bias, "
    "for any distribution: E within = E_B[V_l(H_B)] and E between = Var_B[tr H_B,ll]. Both "
    "errors vanish like 1/√M, hence K̂* → K*.",
    formula=r"\mathbb{E}\,\hat\sigma_w^2=\mathbb{E}_B[V_l(H_B)],\quad"
    r"\mathbb{E}\,\hat\sigma_b^2=\operatorname{Var}_B[\operatorname{tr}H_{B,ll}]",
    reason="given the batches the probes are independent. The mean squares have the means "
    "σ_w² and σ_w² "
    "+ Kσ_b².",
    rests_on=["T11"],
    subject=theory.anova,
    mutants=[
        wrong.between_holds_probe_noise,
        wrong.between_clipped_at_zero,
        wrong.within_of_all_numbers,
        wrong.within_divided_by_count,
        wrong.components_just_outside_rounding,
    ],
)
def critical_count_from_variance_components(anova: Formula, context: Context) -> Iterator[Check]:
    """Means and variances of both components over all tables of sign probes."""
    worlds = [
        (case, P) for case in tiny_cases(context) for P in ((2, 3) if context.is_thorough else (2,))
    ]
    for world, (M, K) in product(worlds, DESIGNS):
        yield _unbiased(anova, world, M, K)
    for world in worlds[:1] if context.profile == "smoke" else worlds:
        yield from (_variance_of_components(anova, world, M, 2) for M in (3, 4))


def _unbiased(anova: Formula, world: tuple[Case, int], M: int, K: int) -> Check:
    draws, tables, weights = _tables(world, M, K)
    found = np.array([_components(anova, q) for q in tables])
    return exact(
        f"{draws.name}: {M} batches of {K} probes, all of them",
        weights @ found,
        [draws.within, draws.between],
        magnitude=4 * np.abs(draws.q).max() * np.sqrt(draws.within + draws.between),
        terms=128 + len(tables).bit_length(),
    )


def _variance_of_components(anova: Formula, world: tuple[Case, int], M: int, K: int) -> Check:
    """Both variances from the moments of ONE batch: they are of order 1/M, which makes the
    estimates consistent.

    Var within = Var(s²)/M; between = S² − within/K, S² the sample variance of the means ȳ, has Var
    S² = (m₄ − σ⁴(M−3)/(M−1))/M and Cov(S², within) = Cov((ȳ − μ)², s²)/M.
    """
    draws, tables, weights = _tables(world, M, K)
    found = np.array([_components(anova, q) for q in tables])
    within, between = weights @ (found - [draws.within, draws.between]) ** 2
    mean = draws.q.mean(1)
    s2 = draws.q.var(axis=1, ddof=1)
    square = (mean - draws.p @ mean) ** 2
    var_s2 = draws.p @ (s2 - draws.within) ** 2
    var_S2 = draws.p @ square**2 - (draws.p @ square) ** 2 * (M - 3) / (M - 1)
    covariance = draws.p @ (square * (s2 - draws.within))
    return exact(
        f"{draws.name}: variances of the components, {M} batches of {K} probes",
        [within, between],
        [var_s2 / M, (var_S2 + var_s2 / K**2 - 2 * covariance / K) / M],
        magnitude=8 * np.abs(draws.q).max() ** 2 * (draws.within + draws.between),
        terms=256 + len(tables).bit_length(),
    )


def table_of_ratio(F: float, num_batches: int, num_probes: int) -> Array:
    """A table whose two mean squares have the ratio F: K̂* and 1/K̂* depend on nothing else."""
    M = num_batches
    K = num_probes
    batch = np.linspace(-1, 1, M)
    probe = np.linspace(-1, 1, K)
    batch *= math.sqrt(F * (M - 1) / (K * (batch @ batch)))
    probe *= math.sqrt((K - 1) / (probe @ probe))
    return batch[:, None] + probe


@claim(
    "T14.a",
    "1/K̂* is biased by 2(1 + Kρ)/(K(ν₂ − 2)), with ρ = 1/K* and ν₂ = M(K − 1). 1/K̂* − 2F/(ν₂K) "
    "is not biased.",
    formula=r"\mathbb{E}[1/\hat K^*]-\frac{1}{K^*}=\frac{2(1+K\rho)}{K(\nu_2-2)}",
    expected="CONDITIONAL",
    reason="F/(1 + Kρ) has Fisher's distribution for normal draws. Sign forms take finitely many "
    "values: all probes of every batch agree with positive probability, F is then infinite, and "
    "1/K̂* has no mean.",
    rests_on=["T14"],
    subject=theory.anova_inverse_bias,
    mutants=[
        wrong.inverse_bias_without_signal,
        wrong.inverse_bias_of_many_batches,
        wrong.inverse_bias_denied,
        wrong.inverse_bias_just_outside_rounding,
    ],
)
def inverse_critical_count_is_biased(bias: Formula, context: Context) -> Iterator[Check]:
    """The bias by symbols, by quadrature and, for sign probes, by enumeration."""
    rho, M, K = sympy.symbols("rho M K", positive=True)
    nu1 = M - 1
    nu2 = M * (K - 1)
    # E F = (E χ²_ν₁/ν₁)·ν₂·E[1/χ²_ν₂], and E[1/χ²_ν] = Γ(ν/2 − 1)/(2Γ(ν/2)) = 1/(ν − 2).
    inverse_chi2 = sympy.gammasimp(sympy.gamma(nu2 / 2 - 1) / (2 * sympy.gamma(nu2 / 2)))
    mean = ((1 + K * rho) * (nu1 / nu1) * nu2 * inverse_chi2 - 1) / K
    yield symbolic("normal draws: mean of (F − 1)/K", mean - rho, bias(rho, M, K))
    for (M, K), rho in product([(3, 3), (5, 2), (8, 4)], [0.0, 0.1, 4.0]):
        yield _bias_by_quadrature(bias, rho, M, K)
    world = (context.case("tiny_mlp"), 2)
    yield _probability_of_no_probe_noise(world).unless(NORMAL)
    yield _leading_bias(bias, world).unless(NORMAL)


NORMAL = "the draws of q are normal, as for blocks of many weakly coupled parameters"


def _bias_by_quadrature(bias: Formula, rho: float, M: int, K: int) -> Check:
    """E over Fisher's law by a rule that is exact for it, running the estimator on tables of every
    F.

    With F = (1 + Kρ)(ν₂/ν₁)·x/(1−x), x is Beta(ν₁/2, ν₂/2); (1−x)·(1/K̂*) is linear in x, so the
    Gauss-Jacobi rule for the weight x^{ν₁/2−1}(1−x)^{ν₂/2−2} has no error.
    """
    nu1 = M - 1
    nu2 = M * (K - 1)
    x, w = special.roots_sh_jacobi(4, nu1 / 2 + nu2 / 2 - 2, nu1 / 2)
    w = w / special.beta(nu1 / 2, nu2 / 2)
    F = (1 + K * rho) * nu2 / nu1 * x / (1 - x)
    found = [theory.anova(table_of_ratio(f, M, K)) for f in F]
    plain, corrected = (
        w @ ((1 - x) * [getattr(a, name) for a in found])
        for name in ("inverse_critical", "corrected_inverse")
    )
    size = w @ ((1 - x) * (F + 1)) / K
    return exact(
        f"normal draws, {M} × {K}, ρ = {rho:g}: bias of 1/K̂*, and none once corrected",
        [plain - rho, corrected - rho],
        [bias(rho, M, K), 0.0],
        magnitude=8 * size + rho,
        terms=256,
    )


def _probability_of_no_probe_noise(world: tuple[Case, int]) -> Check:
    draws, tables, weights = _tables(world, 3, 2)
    refused = sum(w for q, w in zip(tables, weights, strict=True) if np.ptp(q, axis=1).max() == 0)
    detail = (
        f"{draws.name}: with 3 batches of 2 sign probes all probes agree with probability "
        f"{refused:.3g}"
    )
    return holds("sign probes: 1/K̂* has a mean", refused == 0, detail)


def _leading_bias(bias: Formula, world: tuple[Case, int]) -> Check:
    """The limit of M·bias by the delta method, [ρ·Var(s²) + Var(s²)/K − Cov((ȳ − μ)², s²)]/σ_w⁴,
    for sign probes."""
    K = 2
    many = 10**12
    draws = _draws(*world, K)
    mean = draws.q.mean(1)
    s2 = draws.q.var(axis=1, ddof=1)
    var_s2 = draws.p @ (s2 - draws.within) ** 2
    covariance = draws.p @ ((mean - draws.p @ mean) ** 2 * (s2 - draws.within))
    rho = draws.between / draws.within
    leading = (rho * var_s2 + var_s2 / K - covariance) / draws.within**2
    normal = many * bias(rho, many, K)
    return exact(
        "sign probes: bias for many batches",
        leading,
        normal,
        magnitude=4 * normal,
        terms=2**14,  # 2/many is left out
        detail=f"{draws.name}: M·bias → {leading:.4g}, for normal draws {normal:.4g}",
    )


@claim(
    "T14.b",
    "K̂* itself has no finite mean, however many batches. It is ∞ wherever between ≤ 0. Even its "
    "finite part has a divergent mean, which grows like the logarithm of the largest value kept.",
    formula=r"\mathbb{E}[\hat K^*;\,\hat K^*<T]\ge K f_{\min}\ln(\delta T/K)\to\infty",
    reason="K̂* = K/(F − 1) for F > 1, and Fisher's density is positive at 1",
    rests_on=["T14"],
    subject=theory.anova,
    mutants=[
        wrong.critical_count_of_clipped_noise,
        wrong.critical_count_by_absolute_value,
        wrong.critical_count_zero_without_signal,
    ],
)
def estimated_critical_count_has_no_mean(anova: Formula, context: Context) -> Iterator[Check]:
    """A divergent integral, and the estimator on tables beside F = 1."""
    K, T, delta, x = sympy.symbols("K T delta x", positive=True)
    kept = sympy.integrate(K / x, (x, K / T, delta))
    yield symbolic("∫ K/(F − 1) over 1 + K/T < F < 1 + δ", kept, K * sympy.log(delta * T / K))
    yield holds(
        "which diverges with T", sympy.limit(kept, T, sympy.oo) == sympy.oo, "the limit is ∞"
    )
    for M, K in ((3, 3), (8, 4), (100, 10)):
        yield from _near_one(anova, M, K)


def _near_one(anova: Formula, M: int, K: int) -> Iterator[Check]:
    above = [2.0**-k for k in (0, 4, 8, 12)]
    found = [anova(table_of_ratio(1 + e, M, K)).critical_num_probes for e in above]
    # F is known to a few roundings, hence F − 1 = e to that over e.
    yield exact(
        f"{M} × {K}: K̂* = K/(F − 1) just above F = 1",
        np.divide(K, found),
        above,
        magnitude=[K * (1 + e) for e in above],
        terms=64,
    )
    below = [float(anova(table_of_ratio(F, M, K)).critical_num_probes) for F in (0.25, 0.5, 0.75)]
    name = f"{M} × {K}: K̂* is infinite below F = 1"
    yield holds(name, below == [math.inf] * 3, f"K̂* = {below}")
    nu = M - 1, M * (K - 1)
    shares = {1 / rho: float(stats.f.cdf(1 / (1 + K * rho), *nu)) for rho in (0.01, 0.1, 1.0)}
    least = min(float(stats.f.pdf(F, *nu)) for F in (1.0, 1.1))
    shown = ", ".join(f"{share:.3g} where K* = {critical:g}" for critical, share in shares.items())
    yield holds(
        f"{M} × {K}: Fisher's law puts mass below 1 and density on 1 ≤ F ≤ 1.1",
        min(shares.values()) > 0 and least > 0,
        f"P(K̂* = ∞) = {shown}; density at least {least:.3g}",
    )
