"""Claims T19 and T20: a probe for every sample, and probes that are orthogonal or cross layers by
Hadamard signs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import sympy
import torch
from torch import Tensor

from hesstheory import theory, zoo
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.estimators.enumerations import all_signs, hadamard_columns, strength_four_signs
from hesstheory.estimators.probes import Rademacher
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.evidence.checks import Check, Verdict, empirical, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory.problem.risk import Problem
from hesstheory_validation.forms import full_forms, rows_by_block, sign_variances
from hesstheory_validation.magnitudes import EPS, absolute_rows, roundings
from hesstheory_validation.probe_designs import wrong
from hesstheory_validation.subjects import Formula, MatrixOf


# --- a probe for every sample ---------------------------------------------------------------------
def _samples_of(problem: Problem) -> list[Problem]:
    """One problem for every sample."""
    single = [
        (inputs[i : i + 1], targets[i : i + 1])
        for inputs, targets in problem.batches
        for i in range(len(inputs))
    ]
    return [problem.with_batches([batch]) for batch in single]


def _prescribed(context: Context, hessians: list[list[list[float]]], name: str) -> Problem:
    """Two blocks of one parameter each, samples with these Hessians."""
    return zoo.prescribed(
        torch.tensor(hessians, dtype=torch.float64), [1, 1], context.generator(name)
    )


def _per_sample_means(problem: Problem, signs: Tensor) -> np.ndarray:
    """The estimates of every way to give each sample a column of its own, ways × blocks."""
    q = [
        LayerwiseTrace()(sample, probes=signs).samples.to_numpy() for sample in _samples_of(problem)
    ]
    ways = product(range(signs.shape[1]), repeat=len(q))
    return np.array(
        [np.mean([q_n[k] for q_n, k in zip(q, way, strict=True)], axis=0) for way in ways]
    )


def sample_variances(case: Case, M: Tensor) -> Tensor:
    """V_l of each of a stack of symmetric matrices for signs, matrices × blocks (T2)."""
    return sign_variances(M, case.problem.index, rows_by_block)


# One probe for both samples sees the mean of both matrices, which is diagonal: no variance at all.
CANCELLING = [[[0.0, 1.0], [1.0, 0.0]], [[0.0, -1.0], [-1.0, 0.0]]]

CANCELLING_PSD = [[[1.0, 1.0], [1.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]]

CONDITION = "S_q < N·V(H̄)"


@claim(
    "T19",
    "A fresh probe per sample has less variance than one per batch.",
    formula=r"\frac1{N^2}\sum_nV_l(H_n)\quad\text{against}\quad V_l(\bar H)",
    expected=Verdict.CONDITIONAL,
    reason="a mean of independent forms has variance (1/N²) Σ V(H_n). One probe lets curvature of "
    "opposite signs cancel before it is squared: for H₂ = −H₁ it has no variance at all.",
    rests_on=["T2"],
    subject=theory.per_sample_probe_variance,
    mutants=[
        wrong.per_sample_sum,
        wrong.per_sample_pairs_left_out,
        wrong.per_sample_of_the_first,
        wrong.per_sample_just_outside_rounding,
    ],
)
def a_probe_per_sample_has_less_variance(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, two pairs of samples for and against, and all triples of sign vectors."""
    V, variance = _symbolic_per_sample()
    yield symbolic("variance of two samples, any κ", variance, formula(V))
    for name, hessians in {"H₂ = −H₁": CANCELLING, "two PSD samples": CANCELLING_PSD}.items():
        problem = _prescribed(context, hessians, name)
        shared = LayerwiseTrace()(problem, probes=all_signs(2)).samples.to_numpy().var(0)
        fresh = _per_sample_means(problem, all_signs(2)).var(0)
        V = torch.tensor([[H[0][1] ** 2, H[0][1] ** 2] for H in hessians], dtype=torch.float64)
        yield exact(
            f"{name}: all pairs of sign vectors",
            fresh,
            [formula(V[:, l]) for l in (0, 1)],
            terms=64,
        )
        yield holds(
            f"{name}: less variance", bool((fresh < shared).all()), _against(fresh, shared)
        ).unless(CONDITION)
    mixed = _mixed_samples(context)
    measured = _per_sample_means(mixed.problem, all_signs(4)).var(0)
    V = sample_variances(mixed, mixed.per_sample)
    yield exact(
        "three samples of four parameters: all triples of sign vectors",
        measured,
        [float(formula(V[:, l])) for l in range(V.shape[1])],
        magnitude=4 * absolute_rows(mixed).numpy() ** 2,
        terms=4 * roundings(mixed, 16**3),
    )


def _against(fresh: np.ndarray, shared: np.ndarray) -> str:
    pairs = zip(np.ravel(fresh), np.ravel(shared), strict=True)
    return "; ".join(f"{a:.4g} per sample against {b:.4g} per batch" for a, b in pairs)


@lru_cache
def _symbolic_per_sample() -> tuple[np.ndarray, theory.Scalar]:
    """V of two samples, and Var of their mean with a probe z and w each, two parameters in l and
    one beside it."""
    z = sympy.symbols("z:3")
    w = sympy.symbols("w:3")
    H = [theory.symmetric_symbols(3, name) for name in "gh"]
    moments = {1: 0, 2: 1, 3: 0}
    kappa = sympy.Symbol("kappa", positive=True)
    forms = [
        sum(v[i] * A[i, j] * v[j] for i in range(2) for j in range(3))
        for A, v in zip(H, (z, w), strict=True)
    ]
    mean = (forms[0] + forms[1]) / 2
    first = theory.expectation(mean, [*z, *w], moments | {4: kappa})
    second = theory.expectation(mean**2, [*z, *w], moments | {4: kappa})
    V = [theory.probe_variance(A[:2, :2], [A[:2, 2:]], kappa) for A in H]
    return np.array(V, dtype=object), second - first**2


def _mixed_samples(context: Context) -> Case:
    """Three samples with Hessians of whole numbers."""
    generator = context.generator("mixed")
    A = torch.randint(-3, 4, (3, 4, 4), generator=generator).double()
    return Case("prescribed", "three samples", zoo.prescribed(A + A.mT, [2, 2], generator))


@claim(
    "T19.a",
    "A probe per sample is better exactly where S_q < N·V(H̄), S_q = Σ_n V(H_n − H̄)/(N − 1): at "
    "best N times better.",
    formula=r"\frac1{N^2}\sum_nV(H_n)=\frac1N\Bigl(V(\bar H)+\tfrac{N-1}{N}S_q\Bigr)",
    reason="V is a quadratic form in H, so that Σ V(H_n) = N·V(H̄) + Σ V(H_n − H̄)",
    rests_on=["T2"],
    subject=theory.per_sample_probes_win,
    mutants=[
        wrong.per_sample_always_wins,
        wrong.per_sample_wins_below_one_mean,
        wrong.per_sample_wins_below_one_sample_less,
    ],
    seconds=12,
)
def the_condition_for_a_probe_per_sample(wins: Formula, context: Context) -> Iterator[Check]:
    """Symbols, both sides of the boundary, and every block of every network."""
    V, S, N = sympy.symbols("V S_q N", positive=True)
    fresh = (V + S * (N - 1) / N) / N
    yield symbolic(
        "V(H̄) − fresh = (N − 1)(N·V(H̄) − S_q)/N²", V - fresh, (N - 1) * (N * V - S) / N**2
    )
    for scale, side in ((1 - 2**-30, "below"), (1 + 2**-30, "above")):
        found = wins(1.0, 5.0 * scale, 5)
        fresh_at = (1.0 + 5.0 * scale * 4 / 5) / 5
        yield holds(
            f"one part in 10⁹ {side} the boundary",
            found == (fresh_at < 1.0),
            f"{fresh_at:.12g} against 1",
        )
    gains: list[float] = []
    for case in context.cases():
        N_samples = case.problem.num_samples
        M = (case.per_sample + case.per_sample.mT) / 2
        mean = sample_variances(case, M.mean(0)[None])[0]
        each = sample_variances(case, M)
        around = sample_variances(case, M - M.mean(0))
        fresh = each.sum(0) / N_samples**2
        spread = around.sum(0) / (N_samples - 1)
        yield exact(
            f"{case}: (1/N²) Σ V(H_n) = (V(H̄) + S_q (N−1)/N)/N",
            fresh,
            (mean + spread * (N_samples - 1) / N_samples) / N_samples,
            magnitude=fresh + mean,
            terms=8 * roundings(case, N_samples),
        )
        yield _wins(f"{case}: the better design of every block", wins, case, fresh, mean, spread)
        gains += (mean / fresh)[fresh > 0].tolist()
    better = sum(gain > 1 for gain in gains)
    yield empirical(
        "how much a probe per sample gains on these networks",
        f"better on {better} of {len(gains)} layers, variance per batch/per sample "
        f"{min(gains):.2g} to "
        f"{max(gains):.2g}, median {np.median(gains):.2g}",
    )


def _wins(
    name: str, wins: Formula, case: Case, fresh: Tensor, mean: Tensor, spread: Tensor
) -> Check:
    """The criterion against the two variances, apart from blocks that are equal to rounding."""
    N = case.problem.num_samples
    slack = 8 * roundings(case, 1) * EPS
    clear = [l for l in range(len(mean)) if abs(mean[l] - fresh[l]) > slack * (mean[l] + fresh[l])]
    right = [wins(float(mean[l]), float(spread[l]), N) is bool(fresh[l] < mean[l]) for l in clear]
    return holds(
        name,
        all(right),
        f"{sum(right)} of {len(clear)} right, {len(mean) - len(clear)} equal to rounding",
    )


# --- orthogonal probes ----------------------------------------------------------------------------
@claim(
    "T20",
    "K orthogonal probes gain nothing over independent ones for K ≪ P: their variance is V/K·(P "
    "− K)/(P − 1).",
    formula=r"\operatorname{Var}\bar q_l=\frac{V}{K}\cdot\frac{P-K}{P-1}",
    reason="all P orthogonal probes together give P·tr H_ll exactly, so two of them have "
    "covariance −V/(P − 1)",
    rests_on=["T1", "T2"],
    subject=theory.orthogonal_probe_variance,
    mutants=[
        wrong.orthogonal_as_independent,
        wrong.orthogonal_with_replacement,
        wrong.orthogonal_off_by_one_probe,
        wrong.orthogonal_just_outside_rounding,
    ],
)
def orthogonal_probes_gain_nothing(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, all subsets of eight columns, and all pairs of columns."""
    V, K, P, C = sympy.symbols("V K P C", positive=True)
    C = sympy.solve(P * V + P * (P - 1) * C, C)[0]  # the variance of the sum of all P probes is 0
    yield symbolic(
        "exchangeable probes whose sum over all P is constant",
        (V + (K - 1) * C) / K,
        formula(V, K, P),
    )
    gain = V / K / formula(V, K, P) - 1
    yield symbolic("gain over independent probes = (K − 1)/(P − K)", gain, (K - 1) / (P - K))
    yield from _all_subsets(formula, context)
    for case in context.cases():
        if (
            case.problem.num_params <= 31 or context.is_thorough
        ):  # 128 columns under 4^7 signs take seconds each
            yield _pairs_of_columns(formula, case)
    yield from _fixed_columns()


def _all_subsets(formula: Formula, context: Context) -> Iterator[Check]:
    """Every K columns of the Hadamard matrix of order eight under every sign vector, on a drawn H
    of whole numbers."""
    A = torch.randint(-3, 4, (8, 8), generator=context.generator("subsets")).double()
    case = Case(
        "prescribed", "P = 8", zoo.prescribed((A + A.mT)[None], [3, 5], context.generator("theta"))
    )
    columns = hadamard_columns(8)
    signs = all_signs(8)
    probes = (signs[:, :, None] * columns[:, None, :]).reshape(8, -1)
    q = (
        LayerwiseTrace()(case.problem, probes=probes)
        .samples.to_numpy()
        .reshape(signs.shape[1], 8, -1)
    )
    V = sample_variances(case, case.H[None])[0]
    for K in (1, 2, 3, 7, 8):
        means = np.stack([q[:, list(chosen)].mean(1) for chosen in combinations(range(8), K)])
        yield exact(
            f"P = 8, all sets of K = {K} columns × all signs",
            means.reshape(-1, 2).var(0),
            [float(formula(float(v), K, 8)) for v in V],
            magnitude=4 * absolute_rows(case).numpy() ** 2,
            terms=roundings(case, q.size),
        )


def _pairs_of_columns(formula: Formula, case: Case) -> Check:
    """Variance of the mean of two columns of a Hadamard matrix, all pairs, under a strength-four
    array of signs.

    The order is the next power of two, so that is what P stands for: rows beyond the parameters
    meet no curvature.
    """
    P = case.problem.num_params
    columns = hadamard_columns(P)
    signs = strength_four_signs(P)
    order = columns.shape[1]
    picked = [
        (0, k) for k in range(1, order)
    ]  # all pairs of columns differ by a column, which signs absorb
    first = _forms(case, signs)
    variance = np.mean(
        [((first + _forms(case, signs * columns[:, [k]])) / 2).var(0) for _, k in picked], axis=0
    )
    V = sample_variances(case, case.H[None])[0]
    return exact(
        f"{case}: all pairs of {order} Hadamard columns under signs of strength four",
        variance,
        [float(formula(float(v), 2, order)) for v in V],
        magnitude=4 * absolute_rows(case).numpy() * np.abs(first).mean(0) + (first**2).mean(0),
        terms=2 * roundings(case, signs.shape[1] * order),
    )


def _forms(case: Case, Z: Tensor) -> np.ndarray:
    """q_l of every column from the dense Hessian, columns × blocks."""
    return full_forms(case.H, Z, case.problem.index)


def _fixed_columns() -> Iterator[Check]:
    """Columns that are not drawn can be worse than independent probes: 0 and 1 of H₄ agree in the
    product of rows 0 and 2, the only one that this H has."""
    H = torch.zeros(4, 4, dtype=torch.float64)
    H[0, 2] = H[2, 0] = 1.0
    signs = all_signs(4)
    columns = hadamard_columns(4)[:, :2]
    q = torch.stack([((signs * h[:, None]) * (H @ (signs * h[:, None]))).sum(0) for h in columns.T])
    alone = float(q[0].var(unbiased=False))
    both = float(q.mean(0).var(unbiased=False))
    yield exact(
        "columns 0 and 1 of H₄ as they stand, H_02 = 1: one probe has 4, two still have",
        both,
        4.0,
        terms=16,
    )
    yield holds(
        "columns as they stand can be worse than independent ones",
        both > alone / 2,
        f"{both:g} > {alone / 2:g}",
    )


def signs_of_layers(num_layers: int) -> Tensor:
    """All Hadamard sign patterns of the layers, layers × patterns."""
    return hadamard_columns(num_layers)


@claim(
    "T20.a",
    "One draw of signs under all Hadamard patterns across layers equals probes of one layer "
    "each, number for number.",
    formula=r"\frac1{L'}\sum_kh_{lk}z_l^{\top}\sum_mH_{lm}h_{mk}z_m=z_l^{\top}H_{ll}z_l",
    reason="Σ_k h_lk h_mk = L′ δ_lm removes the cross blocks; L′ ≥ L products, no fewer than "
    "separated probes take",
    rests_on=["T6"],
    subject=signs_of_layers,
    mutants=[
        wrong.signs_of_layers_repeated,
        wrong.signs_of_layers_too_few,
        wrong.signs_of_layers_alike,
    ],
)
def hadamard_across_layers_equals_separated(
    patterns: MatrixOf, context: Context
) -> Iterator[Check]:
    """Both designs from the same draw, number for number."""
    for case in context.cases():
        problem = case.problem
        z = Rademacher().sample(problem.num_params, 1, context.generator(str(case)))
        separated = BlockSeparatedTrace()(problem, probes=z)
        signs = patterns(len(problem.index))
        Z = z.repeat(1, signs.shape[1])
        for row, index in zip(signs, problem.index.values(), strict=True):
            Z[index] *= row
        crossed = LayerwiseTrace()(problem, probes=Z)
        yield exact(
            f"{case}: one draw of signs",
            crossed.value,
            separated.value,
            magnitude=absolute_rows(case).numpy(),
            terms=2 * roundings(case, signs.shape[1]),
        )
        cost = (crossed.num_matvecs, separated.num_matvecs)
        yield holds(
            f"{case}: no fewer products", cost[0] >= cost[1], f"{cost[0]} against {cost[1]}"
        )
