"""Claim T6: probes supported on one layer, and when one full-vector probe is the better buy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import sympy
import torch
from torch import Tensor

from hesstheory import mutants, theory, zoo
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import Curvature, ggn, hessian
from hesstheory.estimators.enumerations import all_signs, hadamard_columns, strength_four_signs
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.evidence.checks import Check, empirical, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory.problem.risk import Problem
from hesstheory_validation.crossover import wrong
from hesstheory_validation.forms import full_forms, separated_forms
from hesstheory_validation.magnitudes import EPS, absolute_rows, roundings, variance_magnitude
from hesstheory_validation.subjects import EstimatorClass, Formula, Row

_KAPPA, _SKEW = sympy.symbols("kappa mu_3", positive=True)

_MOMENTS = {1: 0, 2: 1, 3: _SKEW, 4: _KAPPA}


@lru_cache
def _symbolic_variances() -> tuple[theory.Matrix, theory.Matrix, theory.Scalar, theory.Scalar]:
    """H_ll, H_lm and the variances of z_lᵀH_ll z_l and z_lᵀ(Hz)_l in symbols, for two blocks of
    two."""
    H = theory.symmetric_symbols(4)
    z = sympy.symbols("z:4")

    def variance(columns: int) -> theory.Scalar:
        form = sum(z[i] * H[i, j] * z[j] for i in range(2) for j in range(columns))
        return theory.expectation(form**2, z, _MOMENTS) - theory.expectation(form, z, _MOMENTS) ** 2

    return H[:2, :2], H[:2, 2:], variance(2), variance(4)


@lru_cache(maxsize=64)
def _magnitudes(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Sums of absolute values that the separated and the full form of every block are made of when
    probes are signs.

    Beside Σ|H_ij| that is what cancels inside H, see `slope_squares`: 2‖J_l z_l‖‖Jz‖ ≤ 2 √(P_l t_l)
    √(P t).
    """
    problem = case.problem
    squares = slope_squares(case.problem)
    t = np.array([float(squares[index].sum()) for index in problem.index.values()])
    sizes = np.array([len(index) for index in problem.index.values()])
    own = np.array([float(case.block(l, l).abs().sum()) for l in problem.index])
    outer = np.sqrt(problem.num_params * t.sum())
    return own + 2 * sizes * t, absolute_rows(case).numpy() + 2 * np.sqrt(sizes * t) * outer


def slope_squares(problem: Problem) -> Tensor:
    """The diagonal t of JᵀJ/N.

    A confident softmax has the loss Hessian diag(p) − ppᵀ ≈ 0, made of terms up to 1, so that the
    entry H_ij is rounded like a sum of terms up to 2 √(t_i t_j), however small it is.
    """
    return ggn(Problem(problem.model, _half_square, problem.batches)).to_dense().diagonal()


def _half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f‖², mean over samples: its Gauss-Newton matrix is JᵀJ/N."""
    return 0.5 * outputs.square().flatten(1).sum(1).mean()


@lru_cache(maxsize=2)
def _design(num_params: int) -> Tensor:
    return strength_four_signs(num_params)


# --- separated probes -----------------------------------------------------------------------------
@dataclass
class CountedProducts:
    """The Hessian of a problem, counting the columns that it is multiplied by."""

    count: int = 0

    def __call__(self, problem: Problem) -> Curvature:
        return _Counted(problem, hessian(problem).terms, self)


@dataclass(frozen=True)
class _Counted(Curvature):
    meter: CountedProducts = field(default_factory=CountedProducts)

    def quadratic_forms(self, Z: Tensor) -> Tensor:
        self.meter.count += Z.shape[1]
        return super().quadratic_forms(Z)

    def separated_forms(self, Z: Tensor) -> Tensor:
        self.meter.count += Z.shape[1] * len(self.problem.index)
        return super().separated_forms(Z)


@claim(
    "T6",
    "Probes supported on one layer have no cross term: Var q_l = 2(‖H_ll‖² − Σ H_ii²) for signs. "
    "They cost L products per sweep.",
    formula=r"z=E_lz:\quad\operatorname{Var}q_l=2\lVert H_{ll}\rVert^2+(\kappa-3)\sum_{i\in "
    r"l}H_{ii}^2",
    reason="q_l = z_lᵀH_ll z_l holds for every probe, so T2 applies to H_ll alone",
    rests_on=["T2"],
    subject=BlockSeparatedTrace,
    mutants=[
        mutants.SeparatedInNameOnly,
        mutants.LeaksIntoNeighbour,
        mutants.SweepsForProducts,
        mutants.SeparatedJustOutsideRounding,
    ],
    seconds=2,
)
def separated_probes_have_no_cross_term(
    estimator: EstimatorClass, context: Context
) -> Iterator[Check]:
    """Products, forms and variance of the estimator on every network."""
    H_ll, _, separated, _ = _symbolic_variances()
    yield symbolic(
        "Var z_lᵀH_ll z_l for any κ and third moment",
        separated,
        theory.probe_variance(H_ll, (), _KAPPA),
    )
    for case in context.cases():
        yield from _no_cross_term(estimator, case, context)


def _no_cross_term(estimator: EstimatorClass, case: Case, context: Context) -> Iterator[Check]:
    problem = case.problem
    (magnitude, _) = _magnitudes(case)
    is_small = problem.num_params <= 31
    Z = hadamard_columns(problem.num_params)
    Z = Z if is_small or context.is_thorough else Z[:, :4]
    meter = CountedProducts()
    estimate = estimator(matrix=meter)(problem, probes=Z)
    sweep = [Z.shape[1] * len(problem.index)] * 2
    yield exact(
        f"{case}: K·L products, made and reported", [meter.count, estimate.num_matvecs], sweep
    )
    yield exact(
        f"{case}: q_l = z_lᵀH_ll z_l for each of {Z.shape[1]} Hadamard columns",
        estimate.samples,
        separated_forms(case, Z),
        magnitude=magnitude,
        terms=roundings(case, 1),
    )
    if not is_small:
        return  # with q_l = z_lᵀH_ll z_l its moments are those of H_ll, whatever the network
    Z = _design(problem.num_params)
    q = estimator()(problem, probes=Z).samples.to_numpy()
    yield exact(
        f"{case}: variance over a strength-four array",
        q.var(0),
        [float(theory.probe_variance(case.block(l, l), (), 1.0)) for l in problem.index],
        magnitude=variance_magnitude(q, magnitude),
        terms=roundings(case, Z.shape[1]),
    )


# --- the crossover --------------------------------------------------------------------------------
@claim(
    "T6.a",
    "At equal products one full-vector probe is the better one for layer l if and only if "
    "Σ_{m≠l} ‖H_lm‖² < (L−1)·2(‖H_ll‖² − Σ H_ii²), for signs.",
    formula=r"\sum_{m\neq l}\lVert H_{lm}\rVert^2"
    r"<(L-1)\Bigl(2\lVert H_{ll}\rVert^2+(\kappa-3)\sum_{i\in l}H_{ii}^2\Bigr)",
    reason="a sweep of separated probes costs as much as L full-vector probes: L·Var separated "
    "against Var full",
    rests_on=["T2", "T6"],
    subject=theory.crossover_margin,
    mutants=[
        wrong.crossover_per_probe,
        wrong.crossover_one_layer_too_many,
        wrong.crossover_without_cross_blocks,
        wrong.crossover_with_doubled_cross_blocks,
        wrong.crossover_of_normals,
        wrong.crossover_just_outside_rounding,
    ],
    seconds=2,
)
def full_vector_against_separated(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, both sides of the boundary, and the better design of every block."""
    H_ll, H_lm, separated, full = _symbolic_variances()
    L = sympy.Symbol("L", integer=True, positive=True)
    # The full-vector probe is tried beside one other block; L enters through the price of a sweep
    # alone.
    yield symbolic(
        "margin = L·Var separated − Var full",
        L * separated - full,
        formula(H_ll, [H_lm], L, _KAPPA),
    )
    yield from _beside_the_boundary(formula, context)
    rows: list[Row] = []
    for case in context.cases():
        variances = _enumerated(case)
        yield from _margins(formula, case, variances)
        rows += _rows(case, variances)
    yield _where_it_wins(rows).showing("crossover", rows)


_DESIGNS = (BlockSeparatedTrace, LayerwiseTrace)


@dataclass(frozen=True)
class _Variances:
    """Enumerated variance × products of both designs, block by block, and what rounding may do to
    their difference."""

    separated: np.ndarray
    full: np.ndarray
    rounding: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        return self.separated - self.full


@lru_cache(maxsize=64)
def _enumerated(case: Case) -> _Variances:
    """Both designs over one strength-four array.

    Small networks run the estimators; else the forms come from the dense Hessian, whose agreement
    with the estimators, probe by probe, T1 and T6 decide.
    """
    problem = case.problem
    L = len(case.problem.index)
    Z = _design(problem.num_params)
    if problem.num_params <= 31:
        separated, full = (design()(problem, probes=Z).samples.to_numpy() for design in _DESIGNS)
    else:
        separated = separated_forms(case, Z)
        full = full_forms(case.H, Z, problem.index)
    own, rows = _magnitudes(case)
    magnitude = L * variance_magnitude(separated, own) + variance_magnitude(full, rows)
    rounding = magnitude * roundings(case, Z.shape[1]) * EPS
    return _Variances(L * separated.var(0), full.var(0), rounding)


def _margins(formula: Formula, case: Case, measured: _Variances) -> Iterator[Check]:
    L = len(case.problem.index)
    blocks = case.problem.index
    predicted = np.array(
        [float(formula(case.block(l, l), case.cross_blocks(l), L, 1.0)) for l in blocks]
    )
    yield exact(
        f"{case}: margin of every block",
        predicted,
        measured.margin,
        magnitude=measured.rounding / EPS,
    )
    clear = np.abs(measured.margin) > measured.rounding
    right = clear & ((predicted > 0) == (measured.margin > 0))
    yield holds(
        f"{case}: the better design of every block",
        int(right.sum()) == int(clear.sum()),
        f"{int(right.sum())} of {int(clear.sum())} right, {int((~clear).sum())} equal to rounding",
    )


def _beside_the_boundary(formula: Formula, context: Context) -> Iterator[Check]:
    """Three blocks of two whose cross blocks are one part in 10⁹ below and above the crossover of
    the first."""
    generator = context.generator("boundary")
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A = A + A.mT
    Z = all_signs(6)
    own = theory.probe_variance(A[:2, :2], (), 1.0)
    for side, wins in ((-1, True), (1, False)):
        scale = (2 * own * (1 + side * 2**-30) / theory.squared_norm(A[:2, 2:])).sqrt()
        H = A.clone()
        H[:2, 2:] = scale * A[:2, 2:]
        H[2:, :2] = scale * A[2:, :2]
        problem = zoo.prescribed(H[None], (2, 2, 2), generator)
        separated, full = (
            design()(problem, probes=Z).samples["block0"].var(ddof=0) for design in _DESIGNS
        )
        arguments = (H[:2, :2], [H[:2, 2:4], H[:2, 4:]], 3, 1.0)
        predicted = bool(formula(*arguments) > 0)
        yield holds(
            f"cross blocks one part in 10⁹ {'above' if side > 0 else 'below'} the boundary",
            [predicted, bool(3 * separated > full), theory.full_vector_wins(*arguments)]
            == [wins] * 3,
            f"3 × {separated:.17g} separated against {full:.17g} full; predicted {predicted}",
        )


def _rows(case: Case, measured: _Variances) -> list[Row]:
    wins = [
        theory.full_vector_wins(
            case.block(l, l), case.cross_blocks(l), len(case.problem.index), 1.0
        )
        for l in case.problem.index
    ]
    columns = zip(case.problem.index, measured.separated, measured.full, wins, strict=True)
    return [
        {
            "network": case.network,
            "stage": case.stage,
            "block": l,
            "separated_variance": s,
            "full_variance": f,
            "ratio": f / s if s > 0 else np.inf,
            "full_vector_wins": w,
        }
        for l, s, f, w in columns
    ]


def _where_it_wins(rows: list[Row]) -> Check:
    """How often the full-vector probe is the better one, by stage, with the range of variance
    ratios."""
    parts = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        ratios = np.array([row["ratio"] for row in rows if row["stage"] == stage])
        won = sum(row["full_vector_wins"] for row in rows if row["stage"] == stage)
        low, middle, high = np.quantile(ratios, [0, 0.5, 1], method="nearest")
        parts.append(
            f"{stage}: better on {won} of {len(ratios)} layers, variance ratio full/separated "
            f"{low:.2g} to {high:.2g}, "
            f"median {middle:.2g}"
        )
    return empirical("where one full-vector probe is better at equal products", "; ".join(parts))
