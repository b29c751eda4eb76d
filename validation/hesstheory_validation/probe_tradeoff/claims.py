"""Claims T10, T13 and T15: what probes and mini-batches each add to the variance, and what to buy with a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, combinations_with_replacement, product
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.claims.context import SMOKE_NETWORKS, TRAINED_STEPS, Case, Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import hessian
from hesstheory.estimators.enumerations import strength_four_signs
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory.problem.risk import Problem
from hesstheory_validation.probe_tradeoff import wrong
from hesstheory_validation.unbiasedness.claims import roundings

Array = np.ndarray

# --- all mini-batches of a few samples ------------------------------------------------------------------------------
NUM_SAMPLES = 5  # few enough that every mini-batch is drawn


@dataclass(frozen=True)
class Sampling:
    """Mini-batches of b of the first n samples, with or without replacement."""

    b: int
    n: int = NUM_SAMPLES
    replacement: bool = False

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """Every mini-batch, up to the order of its samples."""
        draw = combinations_with_replacement if self.replacement else combinations
        return list(draw(range(self.n), self.b))

    @property
    def probabilities(self) -> Array:
        """The probability of every mini-batch: its number of orders over that of all."""
        orders = [
            math.factorial(self.b) / math.prod(map(math.factorial, Counter(B).values()))
            for B in self.batches
        ]
        return np.array(orders) / sum(orders)

    def __str__(self) -> str:
        return (
            f"{self.b} of {self.n} samples {'with' if self.replacement else 'without'} replacement"
        )


WITHOUT = (Sampling(2), Sampling(3))

SAMPLINGS = (*WITHOUT, Sampling(2, replacement=True))


def restricted(problem: Problem, rows: Iterable[int]) -> Problem:
    """The problem over one batch of the given samples."""
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    rows = list(rows)
    return problem.with_batches([(inputs[rows], targets[rows])])


@lru_cache(maxsize=128)
def batch_hessians(case: Case, sampling: Sampling) -> Tensor:
    """The Hessian of every mini-batch, each differentiated as one batch."""
    return torch.stack([hessian(restricted(case.problem, B)).to_dense() for B in sampling.batches])


def traces(H: Tensor, index: Mapping[str, Tensor]) -> Array:
    """tr H_ll of a stack of matrices, matrices × blocks."""
    diagonals = H.diagonal(dim1=-2, dim2=-1)
    return torch.stack([diagonals[:, rows].sum(1) for rows in index.values()], dim=1).numpy()


def probe_variances(H: Tensor, index: Mapping[str, Tensor]) -> Array:
    """V_l(H) of every block for one sign probe (claim T2)."""
    variances = []
    for rows in index.values():
        others = torch.ones(len(H), dtype=torch.bool)
        others[rows] = False
        strip, own = H[rows], H[rows][:, rows]
        # A well-learnt sample has hardly any curvature, and its Hessian comes out symmetric only up to rounding.
        own = (own + own.mT) / 2
        variances.append(float(theory.probe_variance(own, [strip[:, others]], 1.0)))
    return np.array(variances)


def magnitudes(case: Case) -> Array:
    """A_l ≥ |q_l| of every mini-batch and sign probe: the largest Σ_{i∈l} Σ_j |H_ij| of a sample."""
    absolute = case.per_sample.abs().sum(2)
    return torch.stack(
        [absolute[:, rows].sum(1).max() for rows in case.problem.index.values()]
    ).numpy()


# --- what the samples say: the right-hand sides ---------------------------------------------------------------------
@dataclass(frozen=True)
class Moments:
    """V_l(H̄), S_q = Σ_n V_l(H_n − H̄)/(n−1) and S_t² of every block of n per-sample Hessians.

    `scale` is Σ_n V_l(H_n)/(n−1), of which S_q is what is left.
    """

    V_of_mean: Array
    S_q: Array
    S_t2: Array
    scale: Array
    num_samples: int

    @classmethod
    def of(cls, hessians: Iterable[Tensor], index: Mapping[str, Tensor]) -> Moments:
        """From one pass over the Hessians: V is a quadratic form, so that Σ V(H_n − H̄) = Σ V(H_n) − n V(H̄)."""
        total, variances, diagonals = 0.0, [], []
        for H in hessians:
            total = total + H
            variances.append(probe_variances(H, index))
            diagonals.append(traces(H[None], index)[0])
        n, V = len(variances), probe_variances(total / len(variances), index)
        scale = np.sum(variances, axis=0) / (n - 1)
        return cls(
            V, np.maximum(scale - n * V / (n - 1), 0.0), np.var(diagonals, axis=0, ddof=1), scale, n
        )

    def batch_variance(self, sampling: Sampling) -> Array:
        """Var_B[tr H_B,ll]: the floor."""
        return np.array([theory.batch_trace_variance(s, *_arguments(sampling)) for s in self.S_t2])

    def probe_variance(self, sampling: Sampling) -> Array:
        """E_B[V_l(H_B)]."""
        pairs = zip(self.V_of_mean, self.S_q, strict=True)
        return np.array(
            [theory.mean_batch_probe_variance(V, S, *_arguments(sampling)) for V, S in pairs]
        )


def _arguments(sampling: Sampling) -> tuple[int, int, bool]:
    return sampling.b, sampling.n, sampling.replacement


@lru_cache(maxsize=128)
def moments(case: Case, num_samples: int = NUM_SAMPLES) -> Moments:
    """Moments of the first samples of a network."""
    return Moments.of(case.per_sample[:num_samples], case.problem.index)


# --- what the estimator does: the left-hand sides -------------------------------------------------------------------
@dataclass(frozen=True)
class Enumerated:
    """Variance of the estimate of every block over all mini-batches and probes, and the magnitude of its rounding."""

    variance: Array
    magnitude: Array
    terms: int


@lru_cache(maxsize=128)
def enumerated(case: Case, sampling: Sampling, num_probes: int, fresh: bool = False) -> Enumerated:
    """The estimate from K probes on one mini-batch, or on a fresh one for every probe, over everything that can happen.

    The K probes are the rows of one strength-four array of K·P signs: any four signs of one probe or of several are
    independent, which is all that a variance of quadratic forms can see.
    """
    forms = _all_forms(case, sampling, num_probes)  # batches × probes × columns × blocks
    p = sampling.probabilities
    if fresh:
        choices = list(product(range(len(p)), repeat=num_probes))
        estimates = (
            np.stack([sum(forms[B, k] for k, B in enumerate(choice)) for choice in choices])
            / num_probes
        )
        weights = np.array([math.prod(p[B] for B in choice) for choice in choices])
    else:
        estimates, weights = forms.mean(axis=1), p
    mean = np.tensordot(weights, estimates.mean(axis=1), 1)
    deviation = estimates - mean
    variance = np.tensordot(weights, (deviation**2).mean(axis=1), 1)
    # q is off by at most ε·A, hence its variance by at most 2·E|q − E q|·2ε·A; the sum adds ε·variance.
    spread = np.tensordot(weights, np.abs(deviation).mean(axis=1), 1)
    terms = roundings(case, estimates.shape[0] * estimates.shape[1]) + num_probes + sampling.b
    return Enumerated(variance, 4 * magnitudes(case) * spread + variance, terms)


def _all_forms(case: Case, sampling: Sampling, num_probes: int) -> Array:
    """q_l of every mini-batch, probe and column of the array: by the estimator where that is quick, else by H_B, the
    Hessian of the batch, with which T1 finds the estimator to agree."""
    P = case.problem.num_params
    columns = strength_four_signs(num_probes * P).reshape(num_probes, P, -1)
    Z = columns.permute(1, 0, 2).reshape(P, -1)
    if P <= 16 and num_probes == 1 and not sampling.replacement:
        forms = [
            LayerwiseTrace()(restricted(case.problem, B), probes=Z).samples.to_numpy()
            for B in sampling.batches
        ]
    else:
        forms = [_forms(H, Z, case) for H in batch_hessians(case, sampling)]
    return np.stack(forms).reshape(len(forms), num_probes, columns.shape[2], -1)


def _forms(H: Tensor, Z: Tensor, case: Case) -> Array:
    forms = Z * (H @ Z)
    return torch.stack([forms[rows].sum(0) for rows in case.problem.index.values()], dim=1).numpy()


def tiny_cases(context: Context) -> list[Case]:
    """The networks whose mini-batches and probes are all enumerated."""
    return context.cases(SMOKE_NETWORKS)


def larger_cases(context: Context) -> list[Case]:
    """Networks of about a hundred parameters, for single probes on pairs of four samples."""
    if context.profile == "smoke":
        return []
    names = (
        ("tanh_mlp", "cnn", "residual", "attention")
        if context.is_thorough
        else ("tanh_mlp", "residual")
    )
    return [context.case(name, TRAINED_STEPS) for name in names]


# --- T10 ------------------------------------------------------------------------------------------------------------
PAIRS_OF_FOUR = Sampling(2, 4)


@claim(
    "T10",
    "K probes on one mini-batch B: Var = E_B[V_l(H_B)]/K + Var_B[tr H_B,ll].",
    formula=r"\operatorname{Var}=\tfrac1K\mathbb{E}_B[V_l(H_B)]+\operatorname{Var}_B[\operatorname{tr}H_{B,ll}]",
    source="[LHT]",
    reason="law of total variance: given the batch the K estimates are independent with mean tr H_B,ll",
    rests_on=["T1", "T2"],
    subject=theory.total_variance,
    mutants=[
        wrong.floor_averaged_away,
        wrong.floor_forgotten,
        wrong.probe_noise_not_averaged,
        wrong.total_just_outside_rounding,
    ],
)
def probes_on_one_mini_batch(formula: Any, context: Context) -> Iterator[Check]:
    V, floor, K, two, any_number = _law_of_total_variance()
    yield symbolic("two probes on one of three batches", two, formula(V, floor, sympy.Integer(2)))
    yield symbolic("any K", any_number, formula(V, floor, K))
    for case in tiny_cases(context):
        for sampling in SAMPLINGS:
            for K in (1, 2) if context.profile == "smoke" or sampling.replacement else (1, 2, 4, 8):
                yield _total(formula, case, sampling, K)
    for case in larger_cases(context):
        yield _total(formula, case, PAIRS_OF_FOUR, 1)


@lru_cache
def _law_of_total_variance() -> tuple[Any, Any, Any, Any, Any]:
    """V, floor and K in symbols, and the variance of the mean of two and of K probes on one batch.

    Three batches of any curvature, a block of one parameter beside another, probes of any κ and third moment.
    """
    kurtosis, skew, K = sympy.symbols("kappa mu_3 K", positive=True)
    H = [theory.symmetric_symbols(2, name) for name in "abc"]
    z, w = sympy.symbols("z:2"), sympy.symbols("w:2")

    def mean(polynomial: Any) -> Any:
        return theory.expectation(polynomial, (*z, *w), {1: 0, 2: 1, 3: skew, 4: kurtosis})

    def q(A: Any, v: Any) -> Any:
        return v[0] * (A[0, 0] * v[0] + A[0, 1] * v[1])

    def over_batches(values: list[Any]) -> Any:
        return sum(values) / len(values)

    V = over_batches([theory.probe_variance(A[:1, :1], [A[:1, 1:]], kurtosis) for A in H])
    t = [A[0, 0] for A in H]
    floor = over_batches([x**2 for x in t]) - over_batches(t) ** 2
    two = [(q(A, z) + q(A, w)) / 2 for A in H]
    of_two = over_batches([mean(x**2) for x in two]) - over_batches([mean(x) for x in two]) ** 2
    # Of the K² products of two estimates K are squares, the others products of independent ones with the same mean.
    squares = [mean(q(A, z) ** 2) / K + (1 - 1 / K) * mean(q(A, z) * q(A, w)) for A in H]
    return V, floor, K, of_two, over_batches(squares) - over_batches(t) ** 2


def _total(formula: Any, case: Case, sampling: Sampling, K: int) -> Check:
    of_samples, measured = moments(case, sampling.n), enumerated(case, sampling, K)
    V, floor = of_samples.probe_variance(sampling), of_samples.batch_variance(sampling)
    predicted = np.array([formula(*pair, K) for pair in zip(V, floor, strict=True)])
    check = exact(
        f"{case}: {K} probes on {sampling}, all batches and probes",
        measured.variance,
        predicted,
        magnitude=measured.magnitude,
        terms=measured.terms,
    )
    if sampling.replacement:
        return check
    curve = [2**k for k in range(12)] if K == 1 else [K]
    return check.showing(
        "total_variance", list(_curve(case, sampling, curve, K, measured.variance, formula))
    )


def _curve(
    case: Case, sampling: Sampling, counts: Iterable[int], K: int, measured: Array, formula: Any
) -> Iterator[dict[str, Any]]:
    of_samples = moments(case, sampling.n)
    V, floor = of_samples.probe_variance(sampling), of_samples.batch_variance(sampling)
    for l, block in enumerate(case.problem.index):
        for count in counts:
            yield {
                "network": str(case), "block": block, "batch_size": sampling.b, "num_probes": count,
                "predicted": formula(V[l], floor[l], count), "measured": measured[l] if count == K else None,
                "k_star": theory.critical_num_probes(V[l], floor[l]) if floor[l] > 0 else math.inf, "floor": floor[l],
            }  # fmt: skip


@claim(
    "T10.a",
    "The floor is Var_B[tr H_B,ll] = (S_t²/b)(1 − b/n) for batches without replacement and (S_t²/b)(1 − 1/n) with, "
    "S_t² the variance of the per-sample traces with denominator n − 1.",
    formula=r"\operatorname{Var}_B[\operatorname{tr}H_{B,ll}]=\frac{S_t^2}{b}\Bigl(1-\frac bn\Bigr)",
    source="[LHT]",
    reason="sampling from a finite population (Cochran 1977, theorem 2.2); H_B is the mean of per-sample Hessians "
    "in eval mode",
    subject=theory.batch_trace_variance,
    mutants=[
        wrong.no_finite_population_correction,
        wrong.replacement_swapped,
        wrong.denominator_n,
        wrong.batch_variance_just_outside_rounding,
    ],
)
def batches_are_a_finite_population(formula: Any, context: Context) -> Iterator[Check]:
    t, n = sympy.symbols("t:4", real=True), 4
    S_t2 = sum((x - sum(t) / n) ** 2 for x in t) / sympy.Integer(n - 1)
    for sampling in [
        *(Sampling(b, n) for b in range(1, n + 1)),
        *(Sampling(b, n, True) for b in range(1, 4)),
    ]:
        means = [sum(t[i] for i in B) / sympy.Integer(sampling.b) for B in sampling.batches]
        p = [sympy.nsimplify(x, rational=True) for x in sampling.probabilities]
        variance = sum(w * m**2 for w, m in zip(p, means, strict=True)) - (sum(t) / n) ** 2
        predicted = formula(S_t2, sympy.Integer(sampling.b), sympy.Integer(n), sampling.replacement)
        yield symbolic(f"traces of {sampling}", variance, predicted)
    for case in [*tiny_cases(context), *larger_cases(context)]:
        for sampling in SAMPLINGS:
            yield _floor(formula, case, sampling)


def _floor(formula: Any, case: Case, sampling: Sampling) -> Check:
    """Against the traces of all mini-batches, each differentiated as a batch."""
    t, p = traces(batch_hessians(case, sampling), case.problem.index), sampling.probabilities
    deviation = t - p @ t
    variance = p @ deviation**2
    return exact(
        f"{case}: {sampling}, all batches",
        variance,
        [formula(s, *_arguments(sampling)) for s in moments(case, sampling.n).S_t2],
        magnitude=4 * magnitudes(case) * (p @ np.abs(deviation)) + variance,
        terms=roundings(case, len(p)) + sampling.b,
    )


# --- T13 ------------------------------------------------------------------------------------------------------------
OVERHEADS = (
    0.5,
    4.0,
    32.0,
)  # c0/c1: a batch costs its gradient graph at least, and its loading at most

MOST_PROBES = 4096


@claim(
    "T13",
    "With a cost c0 per mini-batch and c1 per probe, the count of probes that gives the least variance at a fixed "
    "budget is √(c0/c1 · K*).",
    formula=r"K_{\mathrm{opt}}=\sqrt{\tfrac{c_0}{c_1}K^*}",
    reason="floor·(1 + K*/K)(c0 + c1 K)/C exceeds its least value by floor·c1 (K − K_opt)²/(C K)",
    rests_on=["T11"],
    subject=theory.cost_optimal_num_probes,
    mutants=[
        wrong.root_forgotten,
        wrong.costs_swapped,
        wrong.critical_count_whatever_the_cost,
        wrong.optimum_just_outside_rounding,
    ],
)
def best_count_at_a_fixed_budget(formula: Any, context: Context) -> Iterator[Check]:
    floor, critical, c0, c1, C, K = sympy.symbols("f K_* c_0 c_1 C K", positive=True)
    best = formula(c0, c1, critical)

    def variance(count: Any) -> Any:
        return theory.budget_variance(floor, critical, count, c0, c1, C)

    yield symbolic("the slope vanishes there", sympy.diff(variance(K), K).subs(K, best), 0)
    excess = floor * c1 * (K - best) ** 2 / (C * K)
    yield symbolic(
        "and nowhere is less: the excess is a square", variance(K) - variance(best), excess
    )
    for case in context.cases(None if context.is_thorough else SMOKE_NETWORKS):
        yield from _budgets(formula, case)
    yield from (_two_batches(case) for case in tiny_cases(context))


def _budgets(formula: Any, case: Case) -> Iterator[Check]:
    """Whole counts on batches of 8 of all 33 samples: none beats both neighbours of the optimum."""
    sampling = Sampling(8, case.problem.num_samples)
    of_samples = moments(case, sampling.n)
    V, floor = of_samples.probe_variance(sampling), of_samples.batch_variance(sampling)
    counts = np.arange(1, MOST_PROBES + 1)
    for ratio in OVERHEADS:
        wrong, rows = [], []
        for l, block in enumerate(case.problem.index):
            if floor[l] == 0:  # a dead layer: all samples have the trace 0
                continue
            critical = theory.critical_num_probes(V[l], floor[l])
            best = formula(ratio, 1.0, critical)
            variances = (V[l] / counts + floor[l]) * (ratio + counts) / 1000
            found = int(counts[variances.argmin()])
            # The two neighbours of the optimum may tie up to rounding; within the enumerated counts.
            allowed = {min(max(1, round_(best)), MOST_PROBES) for round_ in (math.floor, math.ceil)}
            if found not in allowed:
                wrong.append(f"{block}: {found} is best, {best:.4g} predicted")
            rows += [
                {"network": str(case), "block": block, "num_probes": k, "k_opt": best, "overhead_ratio": ratio,
                 "variance": theory.budget_variance(floor[l], critical, k, ratio, 1.0, 1000.0)}
                for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
            ]  # fmt: skip
        check = holds(
            f"{case}: c0/c1 = {ratio:g}, all counts to {MOST_PROBES}",
            not wrong,
            "; ".join(wrong)
            or f"optimum {min(r['k_opt'] for r in rows):.3g} to {max(r['k_opt'] for r in rows):.3g}",
        )
        yield check.showing("budget", rows) if _is_shown(case) else check


def _is_shown(case: Case) -> bool:
    """Two networks fill the figure: a smooth and a piecewise linear one, trained where the profile trains."""
    return case.network in SMOKE_NETWORKS


def _two_batches(case: Case) -> Check:
    """The budget C = 2(c0 + c1 K) buys two batches of K = 2 probes: all pairs of batches, all signs."""
    sampling, K, c0, c1 = PAIRS_OF_FOUR, 2, 4.0, 1.0
    of_samples, one = moments(case, sampling.n), enumerated(case, sampling, K)
    V, floor = of_samples.probe_variance(sampling), of_samples.batch_variance(sampling)
    predicted = [
        theory.budget_variance(f, theory.critical_num_probes(v, f), K, c0, c1, 2 * (c0 + c1 * K))
        for v, f in zip(V, floor, strict=True)
    ]
    # Two independent batches: the sum of their estimates has twice the variance of one, their mean half of it.
    return exact(
        f"{case}: two batches of two probes cost C = 2(c0 + 2 c1)",
        one.variance / 2,
        predicted,
        magnitude=one.magnitude,
        terms=one.terms,
    )


# --- T15 ------------------------------------------------------------------------------------------------------------
@claim(
    "T15",
    "A fresh, independent mini-batch for every probe has no floor and no K*: Var = (E_B[V_l(H_B)] + Var_B)/K.",
    formula=r"\operatorname{Var}=\frac1K\bigl(\mathbb{E}_B[V_l(H_B)]+\operatorname{Var}_B[\operatorname{tr}H_{B,ll}]\bigr)",
    reason="the K estimates are independent and alike, so K times the variance is the same for all K",
    rests_on=["T10"],
    subject=theory.fresh_batch_variance,
    mutants=[
        wrong.batch_kept_for_all_probes,
        wrong.batch_noise_forgotten,
        wrong.fresh_just_outside_rounding,
    ],
)
def fresh_batches_have_no_floor(formula: Any, context: Context) -> Iterator[Check]:
    V, floor, K = sympy.symbols("V f K", positive=True)
    of_one = theory.total_variance(V, floor, sympy.Integer(1))
    yield symbolic("K independent estimates of one probe each", of_one / K, formula(V, floor, K))
    yield symbolic(
        "no floor: the limit of many probes", sympy.limit(formula(V, floor, K), K, sympy.oo), 0
    )
    for case in tiny_cases(context):
        for K in (1, 2) if context.profile == "smoke" else (1, 2, 3):
            yield _fresh(formula, case, PAIRS_OF_FOUR, K)


def _fresh(formula: Any, case: Case, sampling: Sampling, K: int) -> Check:
    of_samples, measured = moments(case, sampling.n), enumerated(case, sampling, K, fresh=True)
    V, floor = of_samples.probe_variance(sampling), of_samples.batch_variance(sampling)
    return exact(
        f"{case}: {K} probes, each on its own {sampling}, all batches and probes",
        measured.variance,
        [formula(*pair, K) for pair in zip(V, floor, strict=True)],
        magnitude=measured.magnitude,
        terms=measured.terms,
    )
