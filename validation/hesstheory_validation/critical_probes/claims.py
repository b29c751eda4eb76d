"""Claims T11 and T12: the count K* at which probe noise equals batch noise, and its map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import sympy
import torch

from hesstheory import theory, zoo
from hesstheory.claims.context import SMOKE_NETWORKS, Case, Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import per_sample_hessians
from hesstheory.estimators.enumerations import all_signs
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.evidence.checks import Check, empirical, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory_validation.critical_probes import wrong
from hesstheory_validation.critical_probes.cells import (
    BATCH_SIZES,
    PUBLISHED,
    cells,
    everywhere,
    plan,
    sample_hessians,
    spreads,
)
from hesstheory_validation.forms import sign_variances, traces
from hesstheory_validation.magnitudes import roundings
from hesstheory_validation.probe_tradeoff.samplings import (
    SAMPLINGS,
    WITHOUT,
    Moments,
    Sampling,
    batch_hessians,
    enumerated,
    larger_cases,
    magnitudes,
    moments,
    tiny_cases,
)
from hesstheory_validation.subjects import Formula


# --- T11 ------------------------------------------------------------------------------------------
@claim(
    "T11",
    "With K* = E_B[V_l(H_B)]/Var_B[tr H_B,ll] the total variance is floor·(1 + K*/K). At K = K* "
    "it is exactly twice the floor.",
    formula=r"\operatorname{Var}=\text{floor}\cdot\Bigl(1+\frac{K^*}{K}\Bigr),\quad"
    r"K^*=\frac{\mathbb{E}_B[V_l(H_B)]}{\operatorname{Var}_B[\operatorname{tr}H_{B,ll}]}",
    source="[LHT]; definition ours",
    reason="T10 with the floor taken out",
    rests_on=["T10"],
    subject=theory.critical_num_probes,
    mutants=[
        wrong.ratio_inverted,
        wrong.ratio_of_standard_deviations,
        wrong.share_of_total,
        wrong.critical_just_outside_rounding,
    ],
)
def critical_count_doubles_the_floor(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, one problem with a known K*, and enumerated mini-batches."""
    V, floor, K = sympy.symbols("V f K", positive=True)
    critical = formula(V, floor)
    total = theory.total_variance(V, floor, K)
    yield symbolic(
        "total = floor·(1 + K*/K)", total, theory.total_variance_curve(floor, critical, K)
    )
    yield symbolic("twice the floor at K*", total.subs(K, critical), 2 * floor)
    yield _four_probes(formula, context)
    for case in tiny_cases(context):
        for sampling in WITHOUT:
            yield _excess_over_floor(formula, case, sampling)


def _four_probes(formula: Formula, context: Context) -> Check:
    """Two samples of trace ±1 with one off-diagonal entry 1: V = 4 on either, floor 1 for b = 1,
    hence K* = 4."""
    H = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[-1.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    problem = zoo.prescribed(H, [2], context.generator("four probes"))
    signs = (
        all_signs(8).reshape(4, 2, -1).permute(1, 0, 2).reshape(2, -1)
    )  # four probes of two signs each
    estimates = [
        LayerwiseTrace()(sample, probes=signs).samples["block0"].to_numpy().reshape(4, -1).mean(0)
        for sample in problem.samples()
    ]
    predicted = theory.total_variance_curve(1.0, formula(4.0, 1.0), 4)
    detail = "a world with K* = 4: twice the floor of 1"
    return exact(
        "four probes on one of two samples, all signs",
        np.var(estimates),
        predicted,
        terms=64,
        detail=detail,
    )


def _excess_over_floor(formula: Formula, case: Case, sampling: Sampling) -> Check:
    """K* as what one enumerated probe adds to the enumerated floor, in floors."""
    of_samples = moments(case)
    one = enumerated(case, sampling, 1)
    floor = traces(batch_hessians(case, sampling), case.problem.index).var(axis=0)
    predicted = [
        formula(*pair)
        for pair in zip(
            of_samples.probe_variance(sampling), of_samples.batch_variance(sampling), strict=True
        )
    ]
    return exact(
        f"{case}: one probe on {sampling}, all batches and signs",
        one.variance / floor - 1,
        predicted,
        # The floor is off by at most 4·ε·A·(its root), which the quotient passes on.
        magnitude=one.magnitude / floor
        + one.variance / floor * (1 + 4 * magnitudes(case) / np.sqrt(floor)),
        terms=one.terms,
        detail=f"K* from {min(predicted):.3g} to {max(predicted):.3g}",
    )


@claim(
    "T11.a",
    "The numerator of K* is the mean over mini-batches, E_B[V_l(H_B)] = V_l(H̄) + S_q f/b. The "
    "full-batch Hessian in its place makes K* too small.",
    formula=r"\mathbb{E}_B[V_l(H_B)]=V_l(\bar H)+\frac{f}{b}S_q,\quad"
    r"S_q=\frac{1}{n-1}\sum_n V_l(H_n-\bar H)\ge 0",
    reason="V is a non-negative quadratic form in the matrix, and the mean of a quadratic form "
    "adds the spread",
    rests_on=["T2"],
    subject=theory.mean_batch_probe_variance,
    mutants=[
        wrong.full_batch_plugged_in,
        wrong.spread_of_hessians_not_corrected,
        wrong.spread_of_hessians_not_averaged,
        wrong.mean_probe_variance_just_outside_rounding,
    ],
)
def full_batch_understates_probe_noise(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, and V of every mini-batch of every network."""
    for sampling, measured, V_of_mean, S_q in _spread_of_hessians():
        b, n = map(sympy.Integer, (sampling.b, sampling.n))
        yield symbolic(
            f"E_B V for {sampling}", measured, formula(V_of_mean, S_q, b, n, sampling.replacement)
        )
    for case in [*tiny_cases(context), *larger_cases(context)]:
        for sampling in SAMPLINGS:
            yield _mean_probe_variance(formula, case, sampling)
        yield _understatement(formula, case)


@lru_cache
def _spread_of_hessians() -> list[tuple[Sampling, theory.Scalar, theory.Scalar, theory.Scalar]]:
    """E_B V, V of the mean and S_q for samplings of three samples of any curvature, a block of one
    parameter beside another, any κ."""
    H = [theory.symmetric_symbols(2, name) for name in "abc"]
    n = sympy.Integer(3)
    kurtosis = sympy.symbols("kappa", positive=True)

    def V(A: theory.Matrix) -> theory.Scalar:
        # Written out: the function asks for κ ≥ 1, and here any κ > 0 will do.
        return (kurtosis - 1) * A[0, 0] ** 2 + A[0, 1] ** 2

    found = []
    mean = sum(H[1:], H[0]) / n
    S_q = sum(V(A - mean) for A in H) / (n - 1)
    for sampling in (Sampling(1, 3), Sampling(2, 3), Sampling(2, 3, True), Sampling(3, 3)):
        p = [sympy.nsimplify(x, rational=True) for x in sampling.probabilities]
        batches = [
            sum((H[i] for i in B[1:]), H[B[0]]) / sympy.Integer(sampling.b)
            for B in sampling.batches
        ]
        found.append(
            (sampling, sum(w * V(A) for w, A in zip(p, batches, strict=True)), V(mean), S_q)
        )
    return found


def _mean_probe_variance(formula: Formula, case: Case, sampling: Sampling) -> Check:
    """Against V of all mini-batches, each differentiated as a batch."""
    of_samples = moments(case)
    index = case.problem.index
    V = sign_variances(batch_hessians(case, sampling), index).numpy()
    return exact(
        f"{case}: E_B V over {sampling}, all batches",
        sampling.probabilities @ V,
        [
            formula(*pair, *sampling.arguments)
            for pair in zip(of_samples.V_of_mean, of_samples.S_q, strict=True)
        ],
        magnitude=4 * magnitudes(case) * np.sqrt(of_samples.scale)
        + of_samples.scale
        + of_samples.V_of_mean,
        terms=roundings(case, len(V)) + sampling.b,
    )


def _understatement(formula: Formula, case: Case) -> Check:
    """How much too small K* comes out with the full-batch Hessian, for batches of 1 and 8 of 33."""
    n = case.problem.num_samples
    of_samples = moments(case, n)
    factors = {}
    for b in (1, 8):
        pairs = zip(of_samples.V_of_mean, of_samples.S_q, strict=True)
        factors[b] = [
            formula(V, S, b, n) / V if V > 0 else math.inf for V, S in pairs if V > 0 or S > 0
        ]
    shown = ", ".join(f"{min(f):.3g} to {max(f):.3g} times at b = {b}" for b, f in factors.items())
    name = f"{case}: the full batch understates every block"
    return holds(name, all(min(f) > 1 for f in factors.values()), f"too small {shown}")


@claim(
    "T11.b",
    "K* grows with the batch size: K* = (b·V_l(H̄)/f + S_q)/S_t².",
    formula=r"K^*(b)=\frac{b\,V_l(\bar H)/f+S_q}{S_t^2}",
    reason="batch noise falls like f/b, probe noise only down to that of the full batch",
    rests_on=["T10.a", "T11", "T11.a"],
    subject=theory.critical_num_probes_of_batch,
    mutants=[
        wrong.full_batch_numerator,
        wrong.batch_size_ignored,
        wrong.infinite_population,
        wrong.critical_of_batch_just_outside_rounding,
    ],
)
def critical_count_grows_with_the_batch(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, and K* of every size of mini-batches by enumeration."""
    V, S_q, S_t2, b, n = sympy.symbols("V S_q S_t2 b n", positive=True)
    for replacement in (False, True):
        f = theory.finite_population_factor(b, n, replacement)
        ratio = theory.critical_num_probes(
            theory.mean_batch_probe_variance(V, S_q, b, n, replacement),
            theory.batch_trace_variance(S_t2, b, n, replacement),
        )
        name = "with" if replacement else "without"
        critical = formula(V, S_q, S_t2, b, n, replacement)
        yield symbolic(
            f"{name} replacement: the ratio of T11 with T10.a and T11.a", ratio, critical
        )
        slope = V / S_t2 / (f if replacement else f**2)
        yield symbolic(
            f"{name} replacement: the slope in b is positive", sympy.diff(critical, b), slope
        )
    for case in tiny_cases(context):
        yield from _growth(formula, case)


def _growth(formula: Formula, case: Case) -> Iterator[Check]:
    """K* from V and traces of all mini-batches of every size below the whole, each differentiated
    as a batch."""
    of_samples = moments(case)
    index = case.problem.index
    measured = []
    for sampling in (Sampling(b) for b in range(1, of_samples.num_samples)):
        H = batch_hessians(case, sampling)
        V = sign_variances(H, index).numpy().mean(axis=0)
        floor = traces(H, index).var(axis=0)
        measured.append(V / floor)
        each = zip(of_samples.V_of_mean, of_samples.S_q, of_samples.S_t2, strict=True)
        yield exact(
            f"{case}: {sampling}, all batches",
            V / floor,
            [formula(*values, sampling.b, sampling.n) for values in each],
            magnitude=(4 * magnitudes(case) * np.sqrt(of_samples.scale) + of_samples.scale) / floor
            + V / floor * (1 + 4 * magnitudes(case) / np.sqrt(floor)),
            terms=roundings(case, len(H)) + sampling.b,
        )
    growth = np.array(measured)[-1] / np.array(measured)[0]
    yield holds(
        f"{case}: K* grows with every sample more",
        bool(np.all(np.diff(measured, axis=0) > 0)),
        f"from b = 1 to b = {of_samples.num_samples - 1} by a factor of {growth.min():.3g} to "
        f"{growth.max():.3g}",
    )


# --- T12 ---------------------------------------------------------------------------------------
CONTROL = 7.5  # K* of the constructed world, in the middle of the published range


@claim(
    "T12",
    "5 to 10 probes per mini-batch are the right count for on-line monitoring.",
    formula=r"5\le K^*\le 10",
    source="[LHT]",
    expected="REFUTED",
    reason="refuted as universal: K* depends on the layer, the stage of training and the batch "
    "size "
    "(T11.b), over orders of magnitude.",
    rests_on=["T11.b"],
    subject=theory.critical_num_probes_of_batch,
    mutants=[
        wrong.clipped_to_published_range,
        wrong.full_batch_numerator,
        wrong.spread_of_traces_not_squared,
        wrong.critical_of_batch_just_outside_rounding,
    ],
    seconds=8,
)
def five_to_ten_probes_are_right(formula: Formula, context: Context) -> Iterator[Check]:
    """A problem in which the statement holds, and a map of networks in which it does not."""
    yield _control(formula, context)
    if context.profile != "smoke":
        yield from (_routes_agree(context.case(name)) for name in SMOKE_NETWORKS)
    found = [
        cell
        for network, step, num_samples in plan(context)
        for cell in cells(formula, context.case(network, step), step, num_samples)
    ]
    keys = ("network", "block", "step", "batch_size", "k_star")
    rows = [{key: getattr(cell, key) for key in keys} for cell in found]
    yield everywhere(
        "K* lies in 5 to 10 for every layer, step and batch size",
        found,
        lambda cell: cell.is_published,
    ).showing("critical_probes", rows)
    yield everywhere(
        "10 probes bring the variance within twice the floor",
        found,
        lambda cell: cell.k_star <= PUBLISHED[1],
    )
    # (1 + K*)/(1 + K*/5) ≥ 2 from K* = 5/3 on.
    yield everywhere(
        "5 probes at least halve the variance of one", found, lambda cell: cell.k_star >= 5 / 3
    )
    yield empirical("what K* depends on", spreads(found))


def _control(formula: Formula, context: Context) -> Check:
    """A world in which the statement is right: curvature that cancels over the samples, H̄ = 0, has
    one K* for all b.

    Traces ±1 and off-diagonal entries ±a, all four pairs: S_q/S_t² = 4a².
    """
    a = math.sqrt(CONTROL) / 2
    H = [[[t, t * s * a], [t * s * a, 0.0]] for t in (1.0, -1.0) for s in (1.0, -1.0)]
    problem = zoo.prescribed(
        torch.tensor(H, dtype=torch.float64), [2], context.generator("control")
    )
    of_samples = Moments.of([per_sample_hessians(problem)], problem.index)
    V = of_samples.V_of_mean[0]
    S_q = of_samples.S_q[0]
    S_t2 = of_samples.S_t2[0]
    found = [formula(V, S_q, S_t2, b, 4, True) for b in BATCH_SIZES]
    # b multiplies V(H̄), which is 0 up to the square of a rounding.
    return exact(
        f"control: a world of K* = {CONTROL:g} for every batch size",
        found,
        [CONTROL] * len(found),
        terms=64,
    )


def _routes_agree(case: Case) -> Check:
    return exact(
        f"{case}: nested reverse mode against double backward, single samples",
        torch.cat(list(sample_hessians(case.problem))),
        case.per_sample,
        magnitude=case.per_sample.abs().amax((1, 2), keepdim=True),
        terms=roundings(case, 1),
    )
