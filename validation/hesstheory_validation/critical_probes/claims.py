"""Claims T11, T12 and T14: the count K* at which probe noise equals batch noise, its map, and its estimate on line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import sympy
import torch
from scipy import special, stats
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from hesstheory import theory, zoo
from hesstheory.claims.context import SMOKE_NETWORKS, Case, Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import per_sample_hessians
from hesstheory.estimators.enumerations import all_signs
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.evidence.checks import Check, empirical, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory.problem.risk import Problem
from hesstheory_validation.critical_probes import wrong
from hesstheory_validation.probe_tradeoff.claims import (
    SAMPLINGS,
    WITHOUT,
    Array,
    Moments,
    Sampling,
    batch_hessians,
    enumerated,
    larger_cases,
    magnitudes,
    moments,
    probe_variances,
    tiny_cases,
    traces,
)
from hesstheory_validation.unbiasedness.claims import roundings


# --- T11 ------------------------------------------------------------------------------------------------------------
@claim(
    "T11",
    "With K* = E_B[V_l(H_B)]/Var_B[tr H_B,ll] the total variance is floor·(1 + K*/K): exactly twice the floor at "
    "K = K*.",
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
def critical_count_doubles_the_floor(formula: Any, context: Context) -> Iterator[Check]:
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


def _four_probes(formula: Any, context: Context) -> Check:
    """Two samples of trace ±1 with one off-diagonal entry 1: V = 4 on either, floor 1 for b = 1, hence K* = 4."""
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


def _excess_over_floor(formula: Any, case: Case, sampling: Sampling) -> Check:
    """K* as what one enumerated probe adds to the enumerated floor, in floors."""
    of_samples, one = moments(case), enumerated(case, sampling, 1)
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
    "The numerator of K* is the mean over mini-batches: E_B[V_l(H_B)] = V_l(H̄) + S_q f/b. The full-batch Hessian in "
    "its place makes K* too small.",
    formula=r"\mathbb{E}_B[V_l(H_B)]=V_l(\bar H)+\frac{f}{b}S_q,\quad"
    r"S_q=\frac{1}{n-1}\sum_n V_l(H_n-\bar H)\ge 0",
    reason="V is a non-negative quadratic form in the matrix, and the mean of a quadratic form adds the spread",
    rests_on=["T2"],
    subject=theory.mean_batch_probe_variance,
    mutants=[
        wrong.full_batch_plugged_in,
        wrong.spread_of_hessians_not_corrected,
        wrong.spread_of_hessians_not_averaged,
        wrong.mean_probe_variance_just_outside_rounding,
    ],
)
def full_batch_understates_probe_noise(formula: Any, context: Context) -> Iterator[Check]:
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
def _spread_of_hessians() -> list[tuple[Sampling, Any, Any, Any]]:
    """E_B V, V of the mean and S_q for samplings of three samples of any curvature, a block of one parameter beside
    another, any κ."""
    H, n = [theory.symmetric_symbols(2, name) for name in "abc"], sympy.Integer(3)
    kurtosis = sympy.symbols("kappa", positive=True)

    def V(A: Any) -> Any:
        # Written out: the function asks for κ ≥ 1, and here any κ > 0 will do.
        return (kurtosis - 1) * A[0, 0] ** 2 + A[0, 1] ** 2

    found, mean = [], sum(H[1:], H[0]) / n
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


def _mean_probe_variance(formula: Any, case: Case, sampling: Sampling) -> Check:
    """Against V of all mini-batches, each differentiated as a batch."""
    of_samples, index = moments(case), case.problem.index
    V = np.array([probe_variances(H, index) for H in batch_hessians(case, sampling)])
    arguments = (sampling.b, sampling.n, sampling.replacement)
    return exact(
        f"{case}: E_B V over {sampling}, all batches",
        sampling.probabilities @ V,
        [
            formula(*pair, *arguments)
            for pair in zip(of_samples.V_of_mean, of_samples.S_q, strict=True)
        ],
        magnitude=4 * magnitudes(case) * np.sqrt(of_samples.scale)
        + of_samples.scale
        + of_samples.V_of_mean,
        terms=roundings(case, len(V)) + sampling.b,
    )


def _understatement(formula: Any, case: Case) -> Check:
    """How much too small K* comes out with the full-batch Hessian, for batches of 1 and 8 of 33."""
    n = case.problem.num_samples
    of_samples, factors = moments(case, n), {}
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
def critical_count_grows_with_the_batch(formula: Any, context: Context) -> Iterator[Check]:
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


def _growth(formula: Any, case: Case) -> Iterator[Check]:
    """K* from V and traces of all mini-batches of every size below the whole, each differentiated as a batch."""
    of_samples, index = moments(case), case.problem.index
    measured = []
    for sampling in (Sampling(b) for b in range(1, of_samples.num_samples)):
        H = batch_hessians(case, sampling)
        V, floor = (
            np.mean([probe_variances(A, index) for A in H], axis=0),
            traces(H, index).var(axis=0),
        )
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
        f"from b = 1 to b = {of_samples.num_samples - 1} by a factor of {growth.min():.3g} to {growth.max():.3g}",
    )


# --- T12 ------------------------------------------------------------------------------------------------------------
PUBLISHED = (5, 10)

BATCH_SIZES = (1, 4, 16, 64, 256)

CONTROL = 7.5


@dataclass(frozen=True)
class Cell:
    """One cell of the map: K* of a block at a step of training and a batch size."""

    network: str
    num_params: int
    block: str
    step: int
    batch_size: int
    k_star: float

    @property
    def is_published(self) -> bool:
        return PUBLISHED[0] <= self.k_star <= PUBLISHED[1]

    def __str__(self) -> str:
        where = f"{self.network} ({self.num_params} parameters), {self.block}, step {self.step}"
        return f"{where}, batch size {self.batch_size}: K* = {self.k_star:.3g}"


def sample_hessians(problem: Problem) -> Iterator[Tensor]:
    """Hessians of the single samples by nested reverse mode, mapped over samples: a second route, and a quick one."""
    names, shapes = list(problem.params), [p.shape for p in problem.params.values()]
    theta = torch.cat([p.detach().reshape(-1) for p in problem.params.values()])
    buffers = dict(problem.model.named_buffers())

    def loss(theta: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        parts = torch.split(theta, [shape.numel() for shape in shapes])
        values = {
            name: part.reshape(shape)
            for name, part, shape in zip(names, parts, shapes, strict=True)
        }
        outputs = functional_call(problem.model, {**values, **buffers}, (inputs[None],))
        return problem.loss_fn(outputs, targets[None])

    at_once = max(1, 2**20 // problem.num_params**2)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        of_samples = vmap(jacrev(grad(loss), chunk_size=512), (None, 0, 0))
        for inputs, targets in problem.batches:
            for x, y in zip(
                torch.split(inputs, at_once), torch.split(targets, at_once), strict=True
            ):
                yield from of_samples(theta, x, y)


@lru_cache(maxsize=128)
def _moments_of(case: Case, num_samples: int) -> Moments:
    if num_samples == case.problem.num_samples:
        return moments(case, num_samples)
    problem = case.problem.with_batches(zoo.batches(case.network, num_samples, [num_samples]))
    return Moments.of(sample_hessians(problem), problem.index)


def cells(formula: Any, case: Case, step: int, num_samples: int) -> Iterator[Cell]:
    """The map of one network at one step. Mini-batches are drawn with replacement, as in its training: any size will
    do, and without replacement K* would only be larger."""
    of_samples = _moments_of(case, num_samples)
    each = zip(
        case.problem.index, of_samples.V_of_mean, of_samples.S_q, of_samples.S_t2, strict=True
    )
    for block, V, S_q, S_t2 in each:
        if S_t2 == 0:  # a dead layer: all samples have the trace 0
            continue
        for b in BATCH_SIZES:
            k_star = float(formula(V, S_q, S_t2, b, num_samples, True))
            yield Cell(case.network, case.problem.num_params, block, step, b, k_star)


def _plan(context: Context) -> list[tuple[str, int, int]]:
    """Networks, steps and numbers of samples."""
    if context.profile == "smoke":
        return [(name, 0, 33) for name in SMOKE_NETWORKS]
    small = (*SMOKE_NETWORKS, "tanh_mlp", "cnn", "residual", "attention")
    plan = [(name, step, 128) for name in small for step in (0, 10, 100, 300)]
    if context.is_thorough:
        plan = [(name, step, 256) for name in zoo.SMALL for step in (0, 10, 100, 300, 1000)]
        plan += [
            (name, step, 24) for name in ("digits_mlp", "digits_cnn") for step in (0, 100, 1000)
        ]
    return plan


@claim(
    "T12",
    "5 to 10 probes per mini-batch are the right count for on-line monitoring.",
    formula=r"5\le K^*\le 10",
    source="[LHT]",
    expected="REFUTED",
    reason="refuted as universal: K* depends on the layer, the stage of training and the batch size (T11.b) over "
    "orders of magnitude",
    rests_on=["T11.b"],
    subject=theory.critical_num_probes_of_batch,
    mutants=[
        wrong.clipped_to_published_range,
        wrong.full_batch_numerator,
        wrong.spread_of_traces_not_squared,
        wrong.critical_of_batch_just_outside_rounding,
    ],
)
def five_to_ten_probes_are_right(formula: Any, context: Context) -> Iterator[Check]:
    yield _control(formula, context)
    if context.profile != "smoke":
        yield from (_routes_agree(context.case(name)) for name in SMOKE_NETWORKS)
    found = [
        cell
        for network, step, num_samples in _plan(context)
        for cell in cells(formula, context.case(network, step), step, num_samples)
    ]
    keys = ("network", "block", "step", "batch_size", "k_star")
    rows = [{key: getattr(cell, key) for key in keys} for cell in found]
    yield _everywhere(
        "K* lies in 5 to 10 for every layer, step and batch size",
        found,
        lambda cell: cell.is_published,
    ).showing("critical_probes", rows)
    yield _everywhere(
        "10 probes bring the variance within twice the floor",
        found,
        lambda cell: cell.k_star <= PUBLISHED[1],
    )
    # (1 + K*)/(1 + K*/5) ≥ 2 from K* = 5/3 on.
    yield _everywhere(
        "5 probes at least halve the variance of one", found, lambda cell: cell.k_star >= 5 / 3
    )
    yield empirical("what K* depends on", _spreads(found))


def _control(formula: Any, context: Context) -> Check:
    """A world in which the statement is right: curvature that cancels over the samples, H̄ = 0, has one K* for all b.

    Traces ±1 and off-diagonal entries ±a, all four pairs: S_q/S_t² = 4a².
    """
    a = math.sqrt(CONTROL) / 2
    H = [[[t, t * s * a], [t * s * a, 0.0]] for t in (1.0, -1.0) for s in (1.0, -1.0)]
    problem = zoo.prescribed(
        torch.tensor(H, dtype=torch.float64), [2], context.generator("control")
    )
    of_samples = Moments.of(per_sample_hessians(problem), problem.index)
    V, S_q, S_t2 = of_samples.V_of_mean[0], of_samples.S_q[0], of_samples.S_t2[0]
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
        torch.stack(list(sample_hessians(case.problem))),
        case.per_sample,
        magnitude=case.per_sample.abs().amax((1, 2), keepdim=True),
        terms=roundings(case, 1),
    )


def _everywhere(name: str, found: Sequence[Cell], is_right: Any) -> Check:
    wrong = [cell for cell in found if not is_right(cell)]
    if not wrong:
        return holds(name, True, f"in all {len(found)} cells")
    smallest = min(wrong, key=lambda cell: (cell.num_params, cell.step, cell.batch_size))
    low, high = (limit(found, key=lambda cell: cell.k_star) for limit in (min, max))
    span = f"from {low} to {high}"
    if low.k_star > 0:
        span += f", {math.log10(high.k_star / low.k_star):.1f} orders of magnitude"
    return holds(
        name, False, f"wrong in {len(wrong)} of {len(found)} cells, first {smallest}; {span}"
    )


def _spreads(found: Sequence[Cell]) -> str:
    """Largest and median ratio of K* between cells that differ in one respect only."""
    out = []
    for respect in ("block", "step", "batch_size"):
        others = [name for name in ("network", "block", "step", "batch_size") if name != respect]
        groups: dict[tuple[Any, ...], list[float]] = {}
        for cell in found:
            groups.setdefault(tuple(getattr(cell, name) for name in others), []).append(cell.k_star)
        ratios = [
            max(group) / min(group)
            for group in groups.values()
            if len(group) > 1 and min(group) > 0
        ]
        if ratios:
            out.append(
                f"{respect.replace('_', ' ')}: {np.median(ratios):.3g}-fold, at most {max(ratios):.3g}-fold"
            )
    return f"K* of {len(found)} cells, median and largest range over one respect: " + "; ".join(out)


# --- T14 ------------------------------------------------------------------------------------------------------------
DESIGNS = ((3, 2), (2, 3))  # batches × probes


@dataclass(frozen=True)
class Draws:
    """All that K probes on one mini-batch can show, with its probability: q of shape outcomes × K."""

    name: str
    q: Array
    p: Array
    within: float
    between: float


def _draws(case: Case, num_params: int, num_probes: int) -> Draws:
    """The first parameters of a network, all but the last of them a layer; pairs of three samples."""
    sampling, rows = Sampling(2, 3), {"block": torch.arange(num_params - 1)}
    H = case.per_sample[:3, :num_params, :num_params]
    Z = all_signs(num_params)[:, : 2 ** (num_params - 1)]  # z and −z give the same form
    of_samples = Moments.of(H, rows)
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
    within, between = (
        float(of_samples.probe_variance(sampling)[0]),
        float(of_samples.batch_variance(sampling)[0]),
    )
    return Draws(f"{case}, {num_params} parameters", np.concatenate(outcomes), p, within, between)


def _repeats(choice: Sequence[int]) -> int:
    return math.prod(math.factorial(choice.count(value)) for value in set(choice))


@lru_cache(maxsize=64)
def _tables(
    draws_of: tuple[Case, int], num_batches: int, num_probes: int
) -> tuple[Draws, list[Array], Array]:
    """Every table batches × probes up to the order of its independent batches, with its probability."""
    draws = _draws(*draws_of, num_probes)
    choices = list(combinations_with_replacement(range(len(draws.p)), num_batches))
    weights = [
        math.prod(draws.p[list(c)]) * math.factorial(num_batches) / _repeats(c) for c in choices
    ]
    return draws, [draws.q[list(choice)] for choice in choices], np.array(weights)


def _components(anova: Any, q: Array) -> tuple[float, float]:
    """Within and between. The estimator refuses tables without probe noise: 0 and the variance of the batch means."""
    if np.ptp(q, axis=1).max() == 0:
        return 0.0, float(q[:, 0].var(ddof=1))
    found = anova(q)
    return float(found.within), float(found.between)


@claim(
    "T14",
    "One-way analysis of variance of q[batch, probe] estimates both parts of K* without bias, E within = E_B[V_l(H_B)] "
    "and E between = Var_B[tr H_B,ll], for any distribution; both errors vanish like 1/√M, hence K̂* → K*.",
    formula=r"\mathbb{E}\,\hat\sigma_w^2=\mathbb{E}_B[V_l(H_B)],\quad"
    r"\mathbb{E}\,\hat\sigma_b^2=\operatorname{Var}_B[\operatorname{tr}H_{B,ll}]",
    reason="given the batches the probes are independent; the mean squares have the means σ_w² and σ_w² + Kσ_b²",
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
def critical_count_from_variance_components(anova: Any, context: Context) -> Iterator[Check]:
    worlds = [
        (case, P) for case in tiny_cases(context) for P in ((2, 3) if context.is_thorough else (2,))
    ]
    for world, (M, K) in product(worlds, DESIGNS):
        yield _unbiased(anova, world, M, K)
    for world in worlds[:1] if context.profile == "smoke" else worlds:
        yield from (_variance_of_components(anova, world, M, 2) for M in (3, 4))


def _unbiased(anova: Any, world: tuple[Case, int], M: int, K: int) -> Check:
    draws, tables, weights = _tables(world, M, K)
    found = np.array([_components(anova, q) for q in tables])
    return exact(
        f"{draws.name}: {M} batches of {K} probes, all of them",
        weights @ found,
        [draws.within, draws.between],
        magnitude=4 * np.abs(draws.q).max() * np.sqrt(draws.within + draws.between),
        terms=128 + len(tables).bit_length(),
    )


def _variance_of_components(anova: Any, world: tuple[Case, int], M: int, K: int) -> Check:
    """Both variances from the moments of ONE batch: they are of order 1/M, which makes the estimates consistent.

    Var within = Var(s²)/M; between = S² − within/K, S² the sample variance of the means ȳ, has Var S² =
    (m₄ − σ⁴(M−3)/(M−1))/M and Cov(S², within) = Cov((ȳ − μ)², s²)/M.
    """
    draws, tables, weights = _tables(world, M, K)
    found = np.array([_components(anova, q) for q in tables])
    within, between = weights @ (found - [draws.within, draws.between]) ** 2
    mean, s2 = draws.q.mean(1), draws.q.var(axis=1, ddof=1)
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
    M, K = num_batches, num_probes
    batch, probe = np.linspace(-1, 1, M), np.linspace(-1, 1, K)
    batch *= math.sqrt(F * (M - 1) / (K * (batch @ batch)))
    probe *= math.sqrt((K - 1) / (probe @ probe))
    return batch[:, None] + probe


@claim(
    "T14.a",
    "1/K̂* is biased by 2(1 + Kρ)/(K(ν₂ − 2)), ρ = 1/K*, ν₂ = M(K − 1), and 1/K̂* − 2F/(ν₂K) is not.",
    formula=r"\mathbb{E}[1/\hat K^*]-\frac{1}{K^*}=\frac{2(1+K\rho)}{K(\nu_2-2)}",
    expected="CONDITIONAL",
    reason="F/(1 + Kρ) has Fisher's distribution for normal draws; sign forms take finitely many values, so that all "
    "probes of every batch agree with positive probability, F is infinite and 1/K̂* has no mean at all",
    rests_on=["T14"],
    subject=theory.anova_inverse_bias,
    mutants=[
        wrong.inverse_bias_without_signal,
        wrong.inverse_bias_of_many_batches,
        wrong.inverse_bias_denied,
        wrong.inverse_bias_just_outside_rounding,
    ],
)
def inverse_critical_count_is_biased(bias: Any, context: Context) -> Iterator[Check]:
    rho, M, K = sympy.symbols("rho M K", positive=True)
    nu1, nu2 = M - 1, M * (K - 1)
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


def _bias_by_quadrature(bias: Any, rho: float, M: int, K: int) -> Check:
    """E over Fisher's law by a rule that is exact for it, running the estimator on tables of every F.

    With F = (1 + Kρ)(ν₂/ν₁)·x/(1−x), x is Beta(ν₁/2, ν₂/2); (1−x)·(1/K̂*) is linear in x, so the Gauss-Jacobi rule for
    the weight x^{ν₁/2−1}(1−x)^{ν₂/2−2} has no error.
    """
    nu1, nu2 = M - 1, M * (K - 1)
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
    detail = f"{draws.name}: with 3 batches of 2 sign probes all probes agree with probability {refused:.3g}"
    return holds("sign probes: 1/K̂* has a mean", refused == 0, detail)


def _leading_bias(bias: Any, world: tuple[Case, int]) -> Check:
    """The limit of M·bias by the delta method, [ρ·Var(s²) + Var(s²)/K − Cov((ȳ − μ)², s²)]/σ_w⁴, for sign probes."""
    K, many = 2, 10**12
    draws = _draws(*world, K)
    mean, s2 = draws.q.mean(1), draws.q.var(axis=1, ddof=1)
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
    "K̂* itself has no finite mean, however many batches: it is ∞ wherever between ≤ 0, and even the part that is "
    "finite has a divergent mean, which grows like the logarithm of the largest value kept.",
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
def estimated_critical_count_has_no_mean(anova: Any, context: Context) -> Iterator[Check]:
    K, T, delta, x = sympy.symbols("K T delta x", positive=True)
    kept = sympy.integrate(K / x, (x, K / T, delta))
    yield symbolic("∫ K/(F − 1) over 1 + K/T < F < 1 + δ", kept, K * sympy.log(delta * T / K))
    yield holds(
        "which diverges with T", sympy.limit(kept, T, sympy.oo) == sympy.oo, "the limit is ∞"
    )
    for M, K in ((3, 3), (8, 4), (100, 10)):
        yield from _near_one(anova, M, K)


def _near_one(anova: Any, M: int, K: int) -> Iterator[Check]:
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
    yield holds(f"{M} × {K}: K̂* is infinite below F = 1", below == [math.inf] * 3, f"K̂* = {below}")
    nu = M - 1, M * (K - 1)
    shares = {1 / rho: float(stats.f.cdf(1 / (1 + K * rho), *nu)) for rho in (0.01, 0.1, 1.0)}
    least = min(float(stats.f.pdf(F, *nu)) for F in (1.0, 1.1))
    shown = ", ".join(f"{share:.3g} where K* = {critical:g}" for critical, share in shares.items())
    yield holds(
        f"{M} × {K}: Fisher's law puts mass below 1 and density on 1 ≤ F ≤ 1.1",
        min(shares.values()) > 0 and least > 0,
        f"P(K̂* = ∞) = {shown}; density at least {least:.3g}",
    )
