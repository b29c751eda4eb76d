"""Claims T10, T13 and T15: what probes and mini-batches each add to the variance, and what to buy
with a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import sympy

from hesstheory import theory
from hesstheory.claims.context import SMOKE_NETWORKS, Case, Context
from hesstheory.claims.registry import claim
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory_validation.forms import traces
from hesstheory_validation.magnitudes import roundings
from hesstheory_validation.probe_tradeoff import wrong
from hesstheory_validation.probe_tradeoff.samplings import (
    SAMPLINGS,
    Array,
    Sampling,
    batch_hessians,
    enumerated,
    larger_cases,
    magnitudes,
    moments,
    tiny_cases,
)
from hesstheory_validation.subjects import Formula, Row

# --- T10 ------------------------------------------------------------------------------------------
PAIRS_OF_FOUR = Sampling(2, 4)


@claim(
    "T10",
    "K probes on one mini-batch B: Var = E_B[V_l(H_B)]/K + Var_B[tr H_B,ll].",
    formula=r"\operatorname{Var}=\tfrac1K\mathbb{E}_B[V_l(H_B)]"
    r"+\operatorname{Var}_B[\operatorname{tr}H_{B,ll}]",
    source="[LHT]",
    reason="law of total variance: given the batch the K estimates are independent with mean tr "
    "H_B,ll",
    rests_on=["T1", "T2"],
    subject=theory.total_variance,
    mutants=[
        wrong.floor_averaged_away,
        wrong.floor_forgotten,
        wrong.probe_noise_not_averaged,
        wrong.total_just_outside_rounding,
    ],
    seconds=6,
)
def probes_on_one_mini_batch(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, and all mini-batches and probes of small networks."""
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
def _law_of_total_variance() -> tuple[theory.Scalar, ...]:
    """V, floor and K in symbols, and the variance of the mean of two and of K probes on one batch.

    Three batches of any curvature, a block of one parameter beside another, probes of any κ and
    third moment.
    """
    kurtosis, skew, K = sympy.symbols("kappa mu_3 K", positive=True)
    H = [theory.symmetric_symbols(2, name) for name in "abc"]
    z = sympy.symbols("z:2")
    w = sympy.symbols("w:2")

    def mean(polynomial: theory.Scalar) -> theory.Scalar:
        return theory.expectation(polynomial, (*z, *w), {1: 0, 2: 1, 3: skew, 4: kurtosis})

    def q(A: theory.Matrix, v: Sequence[theory.Scalar]) -> theory.Scalar:
        return v[0] * (A[0, 0] * v[0] + A[0, 1] * v[1])

    def over_batches(values: list[theory.Scalar]) -> theory.Scalar:
        return sum(values) / len(values)

    V = over_batches([theory.probe_variance(A[:1, :1], [A[:1, 1:]], kurtosis) for A in H])
    t = [A[0, 0] for A in H]
    floor = over_batches([x**2 for x in t]) - over_batches(t) ** 2
    two = [(q(A, z) + q(A, w)) / 2 for A in H]
    of_two = over_batches([mean(x**2) for x in two]) - over_batches([mean(x) for x in two]) ** 2
    # Of the K² products of two estimates K are squares, the others products of independent ones
    # with the same mean.
    squares = [mean(q(A, z) ** 2) / K + (1 - 1 / K) * mean(q(A, z) * q(A, w)) for A in H]
    return V, floor, K, of_two, over_batches(squares) - over_batches(t) ** 2


def _total(formula: Formula, case: Case, sampling: Sampling, K: int) -> Check:
    of_samples = moments(case, sampling.n)
    measured = enumerated(case, sampling, K)
    V = of_samples.probe_variance(sampling)
    floor = of_samples.batch_variance(sampling)
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
    case: Case, sampling: Sampling, counts: Iterable[int], K: int, measured: Array, formula: Formula
) -> Iterator[Row]:
    of_samples = moments(case, sampling.n)
    V = of_samples.probe_variance(sampling)
    floor = of_samples.batch_variance(sampling)
    for l, block in enumerate(case.problem.index):
        for count in counts:
            yield {
                "network": str(case),
                "block": block,
                "batch_size": sampling.b,
                "num_probes": count,
                "predicted": formula(V[l], floor[l], count),
                "measured": measured[l] if count == K else None,
                "k_star": theory.critical_num_probes(V[l], floor[l]) if floor[l] > 0 else math.inf,
                "floor": floor[l],
            }


@claim(
    "T10.a",
    "The floor is Var_B[tr H_B,ll] = (S_t²/b)(1 − b/n) for batches without replacement, and "
    "(S_t²/b)(1 − 1/n) with replacement. S_t² is the variance of the per-sample traces with "
    "denominator n − 1.",
    formula=r"\operatorname{Var}_B[\operatorname{tr}H_{B,ll}]=\frac{S_t^2}{b}\Bigl(1-\frac "
    r"bn\Bigr)",
    source="[LHT]",
    reason="sampling from a finite population (Cochran 1977, theorem 2.2). H_B is the mean of "
    "per-sample Hessians in eval mode.",
    subject=theory.batch_trace_variance,
    mutants=[
        wrong.no_finite_population_correction,
        wrong.replacement_swapped,
        wrong.denominator_n,
        wrong.batch_variance_just_outside_rounding,
    ],
)
def batches_are_a_finite_population(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, and traces of all mini-batches."""
    t = sympy.symbols("t:4", real=True)
    n = 4
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


def _floor(formula: Formula, case: Case, sampling: Sampling) -> Check:
    """Against the traces of all mini-batches, each differentiated as a batch."""
    t = traces(batch_hessians(case, sampling), case.problem.index)
    p = sampling.probabilities
    deviation = t - p @ t
    variance = p @ deviation**2
    return exact(
        f"{case}: {sampling}, all batches",
        variance,
        [formula(s, *sampling.arguments) for s in moments(case, sampling.n).S_t2],
        magnitude=4 * magnitudes(case) * (p @ np.abs(deviation)) + variance,
        terms=roundings(case, len(p)) + sampling.b,
    )


# --- T13 ------------------------------------------------------------------------------------------
OVERHEADS = (
    0.5,
    4.0,
    32.0,
)  # c0/c1: a batch costs its gradient graph at least, and its loading at most

MOST_PROBES = 4096


@claim(
    "T13",
    "With a cost c0 per mini-batch and c1 per probe, √(c0/c1 · K*) probes give the least "
    "variance at a fixed budget.",
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
def best_count_at_a_fixed_budget(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, whole counts of probes, and pairs of mini-batches."""
    floor, critical, c0, c1, C, K = sympy.symbols("f K_* c_0 c_1 C K", positive=True)
    best = formula(c0, c1, critical)

    def variance(count: theory.Scalar) -> theory.Scalar:
        return theory.budget_variance(floor, critical, count, c0, c1, C)

    yield symbolic("the slope vanishes there", sympy.diff(variance(K), K).subs(K, best), 0)
    excess = floor * c1 * (K - best) ** 2 / (C * K)
    yield symbolic(
        "and nowhere is less: the excess is a square", variance(K) - variance(best), excess
    )
    for case in context.cases(None if context.is_thorough else SMOKE_NETWORKS):
        yield from _budgets(formula, case)
    yield from (_two_batches(case) for case in tiny_cases(context))


def _budgets(formula: Formula, case: Case) -> Iterator[Check]:
    """Whole counts on batches of 8 of all 33 samples: none beats both neighbours of the optimum."""
    sampling = Sampling(8, case.problem.num_samples)
    of_samples = moments(case, sampling.n)
    V = of_samples.probe_variance(sampling)
    floor = of_samples.batch_variance(sampling)
    counts = np.arange(1, MOST_PROBES + 1)
    for ratio in OVERHEADS:
        wrong = []
        rows = []
        for l, block in enumerate(case.problem.index):
            if floor[l] == 0:  # a dead layer: all samples have the trace 0
                continue
            critical = theory.critical_num_probes(V[l], floor[l])
            best = formula(ratio, 1.0, critical)
            variances = (V[l] / counts + floor[l]) * (ratio + counts) / 1000
            found = int(counts[variances.argmin()])
            # The two neighbours of the optimum may tie up to rounding; within the enumerated
            # counts.
            allowed = {min(max(1, round_(best)), MOST_PROBES) for round_ in (math.floor, math.ceil)}
            if found not in allowed:
                wrong.append(f"{block}: {found} is best, {best:.4g} predicted")
            rows += [
                {
                    "network": str(case),
                    "block": block,
                    "num_probes": k,
                    "k_opt": best,
                    "overhead_ratio": ratio,
                    "variance": theory.budget_variance(floor[l], critical, k, ratio, 1.0, 1000.0),
                }
                for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
            ]
        check = holds(
            f"{case}: c0/c1 = {ratio:g}, all counts to {MOST_PROBES}",
            not wrong,
            "; ".join(wrong)
            or f"optimum {min(r['k_opt'] for r in rows):.3g} to "
            f"{max(r['k_opt'] for r in rows):.3g}",
        )
        yield check.showing("budget", rows) if _is_shown(case) else check


def _is_shown(case: Case) -> bool:
    """Two networks fill the figure: a smooth and a piecewise linear one, trained where the profile
    trains."""
    return case.network in SMOKE_NETWORKS


def _two_batches(case: Case) -> Check:
    """The budget C = 2(c0 + c1 K) buys two batches of K = 2 probes: all pairs of batches, all
    signs."""
    sampling = PAIRS_OF_FOUR
    K = 2
    c0 = 4.0
    c1 = 1.0
    of_samples = moments(case, sampling.n)
    one = enumerated(case, sampling, K)
    V = of_samples.probe_variance(sampling)
    floor = of_samples.batch_variance(sampling)
    predicted = [
        theory.budget_variance(f, theory.critical_num_probes(v, f), K, c0, c1, 2 * (c0 + c1 * K))
        for v, f in zip(V, floor, strict=True)
    ]
    # Two independent batches: the sum of their estimates has twice the variance of one, their mean
    # half of it.
    return exact(
        f"{case}: two batches of two probes cost C = 2(c0 + 2 c1)",
        one.variance / 2,
        predicted,
        magnitude=one.magnitude,
        terms=one.terms,
    )


# --- T15 ------------------------------------------------------------------------------------------
@claim(
    "T15",
    "A fresh, independent mini-batch for every probe has no floor and no K*: Var = "
    "(E_B[V_l(H_B)] + Var_B)/K.",
    formula=r"\operatorname{Var}=\frac1K\bigl(\mathbb{E}_B[V_l(H_B)]"
    r"+\operatorname{Var}_B[\operatorname{tr}H_{B,ll}]\bigr)",
    reason="the K estimates are independent and alike, so K times the variance is the same for "
    "all K",
    rests_on=["T10"],
    subject=theory.fresh_batch_variance,
    mutants=[
        wrong.batch_kept_for_all_probes,
        wrong.batch_noise_forgotten,
        wrong.fresh_just_outside_rounding,
    ],
)
def fresh_batches_have_no_floor(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, and a mini-batch for every probe by enumeration."""
    V, floor, K = sympy.symbols("V f K", positive=True)
    of_one = theory.total_variance(V, floor, sympy.Integer(1))
    yield symbolic("K independent estimates of one probe each", of_one / K, formula(V, floor, K))
    yield symbolic(
        "no floor: the limit of many probes", sympy.limit(formula(V, floor, K), K, sympy.oo), 0
    )
    for case in tiny_cases(context):
        for K in (1, 2) if context.profile == "smoke" else (1, 2, 3):
            yield _fresh(formula, case, PAIRS_OF_FOUR, K)


def _fresh(formula: Formula, case: Case, sampling: Sampling, K: int) -> Check:
    of_samples = moments(case, sampling.n)
    measured = enumerated(case, sampling, K, fresh=True)
    V = of_samples.probe_variance(sampling)
    floor = of_samples.batch_variance(sampling)
    return exact(
        f"{case}: {K} probes, each on its own {sampling}, all batches and probes",
        measured.variance,
        [formula(*pair, K) for pair in zip(V, floor, strict=True)],
        magnitude=measured.magnitude,
        terms=measured.terms,
    )
