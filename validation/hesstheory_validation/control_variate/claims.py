"""Claim G8: exact traces of G, and probes on what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import sympy
import torch
from torch import Tensor

from hesstheory import theory, zoo
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.estimators.enumerations import (
    hadamard_columns,
    strength_four_signs,
)
from hesstheory.estimators.from_outputs import ControlVariateTrace
from hesstheory.evidence.checks import Check
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory_validation.control_variate import wrong
from hesstheory_validation.forms import block_traces, cut
from hesstheory_validation.gauss_newton.networks import dense_ggn, slope_squares
from hesstheory_validation.magnitudes import absolute_rows, roundings, variance_magnitude
from hesstheory_validation.outputs.gains import gains, how_large
from hesstheory_validation.subjects import EstimatorClass, Row


@claim(
    "G8",
    "tr G_ll exactly, and parameter probes on R = H − G alone, are unbiased for tr H_ll of any "
    "network. The variance is T2 with R for H, and a probe still costs one product. The gain is "
    "large on most trained networks and small on untrained ones. On single layers it may be a "
    "loss.",
    formula=r"\hat t_l=\operatorname{tr}G_{ll}+z_l^{\top}(Rz)_l,\quad\operatorname{Var}"
    r"=2\lVert R_{ll}\rVert^2"
    r"+(\kappa-3)\sum_{i\in l}R_{ii}^2+\sum_{m\neq l}\lVert R_{lm}\rVert^2",
    reason="T1 and T2 for R, of which G is no part. R vanishes with the slopes of the loss in the "
    "outputs. Little is gained where training leaves them large (a bottleneck autoencoder) or "
    "∂²f is large (layer norm, attention).",
    rests_on=["T1", "T2", "G4"],
    subject=ControlVariateTrace,
    mutants=[
        wrong.ControlOnTheHessian,
        wrong.NoControl,
        wrong.ResidualForgotten,
        wrong.ControlBySeparatedProbes,
        wrong.ControlJustOutsideRounding,
    ],
    seconds=4,
)
def probes_on_the_residual(estimator: EstimatorClass, context: Context) -> Iterator[Check]:
    """Mean, samples and variance of the estimator on every network, and how much it gains."""
    yield from _control_in_symbols()
    rows: list[Row] = []
    for case in context.cases():
        yield from _mean_and_samples(estimator, case)
        measured, check = _residual_variance(estimator, case)
        yield check
        if not zoo.network(case.network).piecewise_linear:
            rows += gains(case, _residual_prediction(case), measured, "residual")
    yield how_large("variance of probes on H over that of probes on R", rows).showing("gain", rows)


@lru_cache
def _control_in_symbols() -> list[Check]:
    R = theory.symmetric_symbols(3, "r")
    z = sympy.symbols("z:3")
    g = sympy.Symbol("g")
    kappa, skew = sympy.symbols("kappa mu_3", positive=True)
    moments = {1: 0, 2: 1, 3: skew, 4: kappa}
    sample = g + sum(z[i] * R[i, j] * z[j] for i, j in np.ndindex(2, 3))
    mean = theory.expectation(sample, z, moments)
    variance = theory.expectation(sample**2, z, moments) - sympy.expand(mean**2)
    return [
        symbolic("E = tr G_ll + tr R_ll", mean, g + R[0, 0] + R[1, 1]),
        symbolic(
            "Var is T2 with R for H", variance, theory.probe_variance(R[:2, :2], [R[:2, 2:]], kappa)
        ),
    ]


@lru_cache(maxsize=64)
def _R(case: Case) -> Tensor:
    """H − G from the two dense matrices, a second route to the products with R."""
    R = case.H - dense_ggn(case)
    return (R + R.mT) / 2  # where all of R is rounding it is not symmetric


@lru_cache(maxsize=64)
def _of_forms(case: Case) -> np.ndarray:
    """What a sample is made of when the probes are signs: rows of H, and what cancels inside, as in
    T6."""
    t = slope_squares(case)
    index = case.problem.index.values()
    outer = float((case.problem.num_params * t.sum()).sqrt())
    inner = np.array([float((len(i) * t[i].sum()).sqrt()) for i in index])
    return absolute_rows(case).numpy() + 4 * inner * outer


def _residual_forms(case: Case, Z: Tensor) -> np.ndarray:
    """tr G_ll + z_lᵀ(Rz)_l from the dense matrices, probes × blocks."""
    products = Z * (_R(case) @ Z)
    G = dense_ggn(case).diagonal()
    return torch.stack(
        [products[i].sum(0) + G[i].sum() for i in case.problem.index.values()], dim=1
    ).numpy()


def _mean_and_samples(estimator: EstimatorClass, case: Case) -> Iterator[Check]:
    Z = hadamard_columns(case.problem.num_params)
    estimate = estimator()(case.problem, probes=Z)
    scale = {"magnitude": _of_forms(case), "terms": roundings(case, Z.shape[1])}
    name = f"{case}: tr G_ll + z_lᵀ(Rz)_l for every Hadamard column"
    yield exact(name, estimate.samples, _residual_forms(case, Z), **scale)
    yield exact(f"{case}: one product a probe", estimate.num_matvecs, Z.shape[1])
    name = f"{case}: mean over all {Z.shape[1]} Hadamard columns is tr H_ll"
    yield exact(name, estimate.value, block_traces(case), **scale)


def _residual_prediction(case: Case) -> np.ndarray:
    R = _R(case)
    blocks = case.problem.index
    others = {l: [cut(R, case.problem.index, l, m) for m in blocks if m != l] for l in blocks}
    return np.array(
        [
            float(theory.probe_variance(cut(R, case.problem.index, l, l), others[l], 1.0))
            for l in blocks
        ]
    )


def _residual_variance(estimator: EstimatorClass, case: Case) -> tuple[np.ndarray, Check]:
    """Over a strength-four array: by the estimator on small networks, else by the forms that its
    samples are."""
    Z = _design(case.problem.num_params)
    is_small = case.problem.num_params <= 31
    q = (
        estimator()(case.problem, probes=Z).samples.to_numpy()
        if is_small
        else _residual_forms(case, Z)
    )
    measured = q.var(0)
    name = f"{case}: T2 with R for H, all signs of a strength-four array"
    magnitude = variance_magnitude(q, _of_forms(case))
    terms = roundings(case, len(q))
    return measured, exact(
        name, measured, _residual_prediction(case), magnitude=magnitude, terms=terms
    )


@lru_cache(maxsize=2)
def _design(num_params: int) -> Tensor:
    return strength_four_signs(num_params)
