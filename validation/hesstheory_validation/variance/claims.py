"""Claims T2 to T5: variance and covariance of the layer-wise estimates from one product."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import sympy
import torch

from hesstheory import theory
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.estimators.enumerations import strength_four_signs, three_point_grid
from hesstheory.estimators.probes import Gaussian, Rademacher
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.evidence.checks import Check
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory_validation.forms import full_forms
from hesstheory_validation.magnitudes import absolute_rows, roundings
from hesstheory_validation.subjects import Formula, Row
from hesstheory_validation.variance import wrong

_KAPPA, _SKEW = sympy.symbols("kappa mu_3", positive=True)

Symbols = tuple[sympy.Symbol, ...]

_MOMENTS = {1: 0, 2: 1, 3: _SKEW, 4: _KAPPA}


@lru_cache
def _symbolic_forms(
    sizes: tuple[int, ...],
) -> tuple[theory.Matrix, list[list[int]], list[theory.Scalar], Symbols]:
    """H, the rows of its blocks, the forms q_l and z, in symbols."""
    ends = np.cumsum(sizes)
    rows = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    H = theory.symmetric_symbols(int(ends[-1]))
    z = sympy.symbols(f"z:{ends[-1]}")
    forms = [sum(z[i] * H[i, j] * z[j] for i in block for j in range(ends[-1])) for block in rows]
    return H, rows, forms, z


def _cut(H: theory.Matrix, rows: list[int], columns: list[int]) -> theory.Matrix:
    return H.extract(rows, columns)


def _variance(form: theory.Scalar, z: Symbols) -> theory.Scalar:
    return _covariance(form, form, z)


@lru_cache
def _covariance(a: theory.Scalar, b: theory.Scalar, z: Symbols) -> theory.Scalar:
    mean_of_a, mean_of_b = (theory.expectation(form, z, _MOMENTS) for form in (a, b))
    return theory.expectation(a * b, z, _MOMENTS) - mean_of_a * mean_of_b


def predicted(formula: Formula, case: Case, kurtosis: float) -> np.ndarray:
    """The formula's variance of every block of a network."""
    return np.array(
        [
            float(formula(case.block(l, l), case.cross_blocks(l), kurtosis))
            for l in case.problem.index
        ]
    )


def all_forms(case: Case, context: Context) -> np.ndarray:
    """q_l of every column of a strength-four array, columns × blocks.

    Small networks, and all in the full profile, run the estimator; else the products come from the
    dense Hessian, whose agreement with the estimator T1 decides.
    """
    return _forms(case, estimated=case.problem.num_params <= 31 or context.is_thorough)


@lru_cache(maxsize=32)
def _forms(case: Case, *, estimated: bool) -> np.ndarray:
    Z = strength_four_signs(case.problem.num_params)
    if estimated:
        return LayerwiseTrace()(case.problem, probes=Z).samples.to_numpy()
    return full_forms(case.H, Z, case.problem.index)


def enumerated_variance(case: Case, context: Context) -> tuple[np.ndarray, np.ndarray, int]:
    """Exact Rademacher variance of q_l over a strength-four array, the magnitude of its roundings,
    the columns."""
    q = all_forms(case, context)
    absolute = absolute_rows(case).numpy()
    magnitude = 2 * absolute * np.abs(q).mean(0) + (q**2).mean(0)
    return q.var(axis=0), magnitude, len(q)


@claim(
    "T2",
    "Var q_l = 2‖H_ll‖² + (κ−3) Σ_{i∈l} H_ii² + Σ_{m≠l} ‖H_lm‖². Cross-layer blocks enter with "
    "coefficient 1, whatever κ.",
    formula=r"\operatorname{Var}q_l=2\lVert H_{ll}\rVert^2+(\kappa-3)\sum_{i\in l}H_{ii}^2"
    r"+\sum_{m\neq l}\lVert H_{lm}\rVert^2",
    source="[LHT] states a closed form; formula ours",
    reason="fourth moments of independent entries",
    rests_on=["T1"],
    subject=theory.probe_variance,
    mutants=[
        wrong.dropped_cross_blocks,
        wrong.doubled_cross_blocks,
        wrong.kurtosis_ignored,
        wrong.kurtosis_on_cross_blocks,
        wrong.excess_kurtosis,
        wrong.variance_just_outside_rounding,
    ],
    seconds=3,
)
def variance_of_one_product(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, strength-four arrays of signs, and all three-point vectors."""
    # A squared form pairs two entries of H, hence at most four indices, two of them in l: |l| = 2
    # with two blocks of two beside it shows every pattern, and the third moment, were it to matter,
    # would show as a symbol.
    H, rows, forms, z = _symbolic_forms((2, 2, 1))
    cross = [_cut(H, rows[0], rows[1]), _cut(H, rows[0], rows[2])]
    yield symbolic(
        "Var q_l for any κ and third moment",
        _variance(forms[0], z),
        formula(_cut(H, rows[0], rows[0]), cross, _KAPPA),
    )
    for case in context.cases():
        measured, magnitude, count = enumerated_variance(case, context)
        yield exact(
            f"{case}: signs, all columns of a strength-four array",
            measured,
            predicted(formula, case, Rademacher().kurtosis(case.problem.num_params)),
            magnitude=magnitude,
            terms=roundings(case, count),
        ).showing("variance", _rows(case, "Rademacher", predicted(formula, case, 1.0), measured))
    small = context.case("tiny_mlp", 0)
    for kurtosis in (Gaussian().kurtosis(1), 9 / 5, 4.0):
        yield _three_point(small, kurtosis, formula)


def _three_point(case: Case, kurtosis: float, formula: Formula) -> Check:
    """Variance of the form of the first ten parameters' Hessian under all three-point vectors of
    that κ."""
    Z, weights = three_point_grid(9, kurtosis)
    H = case.H[:9, :9]
    own = torch.arange(4)
    q = (Z[own] * (H @ Z)[own]).sum(0)
    mean = (weights * q).sum()
    measured = (weights * (q - mean) ** 2).sum()
    predicted = formula(H[:4, :4], [H[:4, 4:]], kurtosis)
    magnitude = (weights * (q.abs() + mean.abs()) ** 2).sum() + H[own].abs().sum() ** 2 * kurtosis
    return exact(
        f"{case}, 9 parameters: all three-point vectors of κ = {kurtosis:g}",
        measured,
        predicted,
        magnitude=magnitude,
        terms=128,
    )


def _rows(case: Case, probe: str, predicted: np.ndarray, measured: np.ndarray) -> list[Row]:
    return [
        {
            "network": case.network,
            "stage": case.stage,
            "block": block,
            "probe": probe,
            "predicted": p,
            "measured": m,
        }
        for block, p, m in zip(case.problem.index, predicted, measured, strict=True)
    ]


@claim(
    "T3",
    "Cov(q_l, q_m) = ‖H_lm‖² ≥ 0 for l ≠ m; summing T2 and T3 over all layers gives the "
    "classical Var zᵀHz.",
    formula=r"\operatorname{Cov}(q_l,q_m)=\lVert H_{lm}\rVert^2",
    reason="z_i² z_j² is the only product of the two forms that survives",
    rests_on=["T2"],
    subject=theory.probe_covariance,
    mutants=[
        wrong.covariance_doubled,
        wrong.covariance_of_signs_zero,
        wrong.covariance_just_outside_rounding,
    ],
)
def covariance_between_layers(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, the sum rule, and strength-four arrays of signs."""
    H, rows, forms, z = _symbolic_forms((2, 2, 1))
    covariance = _covariance(forms[0], forms[1], z)
    yield symbolic(
        "Cov(q_l, q_m) for any κ and third moment", covariance, formula(_cut(H, rows[0], rows[1]))
    )
    within = [
        theory.probe_variance(_cut(H, r, r), [_cut(H, r, s) for s in rows if s is not r], _KAPPA)
        for r in rows
    ]
    across = [formula(_cut(H, r, s)) for r in rows for s in rows if s is not r]
    yield symbolic(
        "Σ T2 + Σ T3 = Var zᵀHz", sum(within) + sum(across), theory.probe_variance(H, (), _KAPPA)
    )
    for case in context.cases():
        q = all_forms(case, context)
        blocks = list(case.problem.index)
        found = np.cov(q.T, ddof=0)
        pairs = [(a, b) for a in range(len(blocks)) for b in range(a)]
        absolute = absolute_rows(case).tolist()
        yield exact(
            f"{case}: all columns of a strength-four array",
            [found[a, b] for a, b in pairs],
            [float(formula(case.block(blocks[a], blocks[b]))) for a, b in pairs],
            magnitude=[2 * absolute[a] * absolute[b] for a, b in pairs],
            terms=roundings(case, len(q)),
        )


@claim(
    "T4",
    "Rademacher never has the larger variance: the gap to Gaussian is 2 Σ_{i∈l} H_ii².",
    formula=r"\operatorname{Var}_{\mathcal N}q_l-\operatorname{Var}_{\pm1}q_l=2\sum_{i\in "
    r"l}H_{ii}^2\ge 0",
    reason="T2 at κ = 3 and κ = 1; no variable of unit variance has κ < 1",
    rests_on=["T2"],
    subject=theory.rademacher_advantage,
    mutants=[
        wrong.advantage_halved,
        wrong.advantage_of_the_trace,
        wrong.advantage_of_the_whole_block,
    ],
)
def signs_beat_normals(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, and the formula for normal probes less the enumerated signs."""
    H, rows, forms, z = _symbolic_forms((2, 2))
    variance = _variance(forms[0], z)
    gap = variance.subs(_KAPPA, 3) - variance.subs(_KAPPA, 1)
    yield symbolic("gap", gap, formula(_cut(H, rows[0], rows[0])))
    for case in context.cases():
        measured, magnitude, count = enumerated_variance(case, context)
        normal = predicted(theory.probe_variance, case, 3.0)
        yield exact(
            f"{case}: normal by formula minus signs by enumeration",
            normal - measured,
            [float(formula(case.block(l, l))) for l in case.problem.index],
            magnitude=magnitude + normal,
            terms=roundings(case, count),
        )


@claim(
    "T5",
    "For z uniform on the sphere of radius √P: Var q_l = P/(P+2)·(2‖H_ll‖² + Σ_{m≠l}‖H_lm‖²) − "
    "2/(P+2)·(tr H_ll)².",
    formula=r"\operatorname{Var}q_l=\frac{P}{P+2}\Bigl(2\lVert H_{ll}\rVert^2"
    r"+\sum_{m\neq l}\lVert H_{lm}\rVert^2\Bigr)"
    r"-\frac{2}{P+2}(\operatorname{tr}H_{ll})^2",
    reason="a normal vector is √(χ²/P) times an independent point of the sphere",
    rests_on=["T2"],
    subject=theory.sphere_variance,
    mutants=[
        wrong.sphere_as_normal,
        wrong.sphere_without_trace_term,
        wrong.sphere_of_the_block_only,
    ],
)
def variance_on_the_sphere(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, and normal moments by enumeration."""
    H, rows, forms, z = _symbolic_forms((2, 2))
    P = 4
    # Moments of the sphere of radius √P: E z_i⁴ = 3P/(P+2), E z_i²z_j² = P/(P+2), odd powers
    # vanish. That is P/(P+2) times the normal fourth moments, and the normal second moments.
    fourth = sympy.Rational(P, P + 2) * theory.expectation(
        forms[0] ** 2, z, {1: 0, 2: 1, 3: 0, 4: 3}
    )
    variance = fourth - theory.expectation(forms[0], z, {1: 0, 2: 1}) ** 2
    cross = [_cut(H, rows[0], rows[1])]
    yield symbolic("Var q_l", variance, formula(_cut(H, rows[0], rows[0]), cross, P))
    Z, weights = three_point_grid(9, 3.0)
    for network in ("tiny_mlp", "tiny_relu"):
        case = context.case(network)
        M = case.H[:9, :9]
        q = (Z[:4] * (M @ Z)[:4]).sum(0)
        measured = 9 / 11 * (weights * q**2).sum() - (weights * q).sum() ** 2
        yield exact(
            f"{case}, 9 parameters: normal moments by enumeration, divided by E|z|⁴ = P(P+2)",
            measured,
            formula(M[:4, :4], [M[:4, 4:]], 9),
            magnitude=(weights * q**2).sum() + 3 * M[:4].abs().sum() ** 2,
            terms=128,
        )
