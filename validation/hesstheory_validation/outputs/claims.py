"""Claims G5 to G7: probes in the space of the outputs, and dual Gram matrices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
import sympy
import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.estimators.enumerations import (
    all_signs,
    three_point_grid,
)
from hesstheory.estimators.from_outputs import LogitProbeTrace
from hesstheory.estimators.probes import Gaussian
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory.outputs.per_sample import rules_that_hold
from hesstheory_validation.forms import cut
from hesstheory_validation.gauss_newton.networks import dense_ggn, piecewise_linear
from hesstheory_validation.gauss_newton.passes import passes, with_other_losses
from hesstheory_validation.magnitudes import EPS, roundings, variance_magnitude
from hesstheory_validation.outputs import wrong
from hesstheory_validation.outputs.dual import (
    all_probes,
    classifiers,
    dual_of,
    few,
    form_sizes,
    signs_of_all_samples,
)
from hesstheory_validation.outputs.gains import gains, how_large
from hesstheory_validation.subjects import EstimatorClass, Formula


# --- G5 -------------------------------------------------------------------------------------------
@lru_cache
def _symbolic_logit_probes() -> tuple[
    list[theory.Matrix], theory.Scalar, theory.Scalar, theory.Scalar
]:
    """Gram matrices of two samples in symbols, mean and variance of ½ Σ_n ε_nᵀM_nε_n, and κ."""
    kappa, skew = sympy.symbols("kappa mu_3", positive=True)
    e = sympy.symbols("e:4")
    moments = {1: 0, 2: 1, 3: skew, 4: kappa}
    grams = [theory.symmetric_symbols(2, name) for name in ("a", "b")]
    form = (
        sum(
            e[2 * n + i] * M[i, j] * e[2 * n + j]
            for n, M in enumerate(grams)
            for i, j in np.ndindex(2, 2)
        )
        / 2
    )
    mean = theory.expectation(form, e, moments)
    return grams, mean, theory.expectation(form**2, e, moments) - sympy.expand(mean**2), kappa


@claim(
    "G5",
    "Logit probes u_n = S_n ε_n, independent signs for every sample and one backward pass, are "
    "unbiased for tr G_ll. Their variance is (1/N²) Σ_n 2(‖M_n‖² − ‖diag M_n‖²), whatever the "
    "sizes of the batches. It is 0 for two classes. With the orthogonal columns that an "
    "eigendecomposition gives, it is 0 in the last linear layer, too.",
    formula=r"\mathbb E\,\frac1N\sum_n\lVert J_{nl}^{\top}S_n\varepsilon_n\rVert^2"
    r"=\operatorname{tr}G_{ll},\quad"
    r"\operatorname{Var}=\frac1{N^2}\sum_n2\bigl(\lVert M_n\rVert^2"
    r"-\lVert\operatorname{diag}M_n\rVert^2\bigr)",
    reason="‖J_nlᵀS_nε_n‖² = ε_nᵀM_nε_n, and samples are independent; in the last layer M_n is a "
    "multiple of S_nᵀS_n",
    rests_on=["T2", "G4"],
    subject=LogitProbeTrace,
    mutants=[
        wrong.LogitProbesUnweighted,
        wrong.OneLogitProbeForAllSamples,
        wrong.OneSignPerSample,
        wrong.OtherNorms,
        wrong.LogitProbesJustOutsideRounding,
    ],
    seconds=4,
)
def logit_probes(estimator: EstimatorClass, context: Context) -> Iterator[Check]:
    """Mean and variance over all signs of all samples, and backward passes counted."""
    grams, mean, _, _ = _symbolic_logit_probes()
    yield symbolic(
        "two samples: the mean is tr(M_1 + M_2)/2", mean, (grams[0].trace() + grams[1].trace()) / 2
    )
    for case in classifiers(context, (2, 1)):
        q = all_probes(estimator, case, signs_of_all_samples(case), per_sample=True)
        yield from _moments(
            case, q, [dual_of(case).sample_grams(i) for i in case.problem.index.values()]
        )
        bound = {
            "magnitude": variance_magnitude(q, form_sizes(case))[-1],
            "terms": roundings(case, len(q)),
        }
        yield exact(f"{case}: no variance in the last layer", q.var(0)[-1], 0, **bound)
    case = with_other_losses(context.case("tiny_relu"))["cross-entropy"]
    made = estimator(num_probes=3, per_sample=True)
    count = passes(case.problem, lambda problem: made(problem, context.generator("passes")))
    name = (
        f"{case}: one backward pass for each of 3 probes and 2 batches, after the trial of "
        "the rules"
    )
    yield exact(name, count, passes(case.problem, rules_that_hold) + 6)


def _moments(
    case: Case, q: np.ndarray, grams: list[list[Tensor]], *, summed: bool = False
) -> Iterator[Check]:
    """Mean and variance over all signs of all samples together."""
    variance = theory.summed_logit_probe_variance if summed else theory.logit_probe_variance
    magnitude = form_sizes(case)
    terms = roundings(case, len(q))
    if summed:
        magnitude = magnitude * case.problem.num_samples  # ‖Σ_n v_n‖² ≤ N Σ_n ‖v_n‖²
    traces = [
        float(cut(dense_ggn(case), case.problem.index, l, l).trace()) for l in case.problem.index
    ]
    yield exact(
        f"{case}: mean over all signs of all samples",
        q.mean(0),
        traces,
        magnitude=magnitude,
        terms=terms,
    )
    yield exact(
        f"{case}: variance over all signs of all samples",
        q.var(0),
        [float(variance(M, 1.0)) for M in grams],
        magnitude=variance_magnitude(q, magnitude),
        terms=terms,
    )


@claim(
    "G5.a",
    "For ε of fourth moment κ the variance is (1/N²) Σ_n [2(‖M_n‖² − ‖diag M_n‖²) + (κ−1) ‖diag "
    "M_n‖²]. On ReLU networks, where both estimate tr H_ll, it lies below that of a full-vector "
    "probe (T2), on most layers by orders of magnitude.",
    formula=r"\operatorname{Var}=\frac1{N^2}\sum_n\Bigl[2\bigl(\lVert M_n\rVert^2"
    r"-\lVert\operatorname{diag}M_n"
    r"\rVert^2\bigr)+(\kappa-1)\lVert\operatorname{diag}M_n\rVert^2\Bigr]",
    reason="T2 for every sample, whose variances add up: N samples average out, cross blocks "
    "never enter",
    rests_on=["T2", "G1", "G5"],
    subject=theory.logit_probe_variance,
    mutants=[
        wrong.logit_variance_with_diagonal,
        wrong.logit_variance_of_one_sample,
        wrong.logit_variance_of_the_mean,
        wrong.logit_variance_of_shared_probes,
        wrong.logit_variance_just_outside_rounding,
    ],
    seconds=6,
)
def variance_of_logit_probes(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, all three-point vectors, and all signs of every sample by itself."""
    grams, _, variance, kappa = _symbolic_logit_probes()
    yield symbolic("two samples, any κ and third moment", variance, formula(grams, kappa))
    a = sympy.Symbol("a")
    yield symbolic("signs and two classes: no variance", formula([sympy.Matrix([[a]])], 1), 0)
    for kurtosis in (3.0,) if context.profile == "smoke" else (3.0, 9 / 5):
        yield _any_kurtosis(formula, few(context.case("tiny_relu"), (1, 1)), kurtosis)
    if context.profile == "smoke":
        return  # 33 samples one by one would cost as much as the rest of these claims
    rows = []
    for case in piecewise_linear(context):
        if case.problem.num_params <= 127:
            measured, magnitude = _sample_by_sample(case)
            predicted = [
                float(formula(dual_of(case).sample_grams(i), 1.0))
                for i in case.problem.index.values()
            ]
            name = f"{case}: all signs of every sample by itself"
            yield exact(name, measured, predicted, magnitude=magnitude, terms=roundings(case, 4))
            rows += gains(case, np.array(predicted), measured, "logit")
    yield how_large("variance of a full-vector probe over that of a logit probe", rows).showing(
        "gain", rows
    )


def _weighted_variance(
    estimator: EstimatorClass, case: Case, kurtosis: float, *, per_sample: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Variance over all three-point vectors of a fourth moment, and the magnitude of its
    roundings."""
    Z, weights = three_point_grid(dual_of(case).rows[:, :, 0].numel(), kurtosis)
    q = all_probes(estimator, case, Z, per_sample=per_sample)
    p = weights.numpy()
    magnitude = kurtosis * case.problem.num_samples * form_sizes(case)
    return p @ (q - p @ q) ** 2, 4 * magnitude * (p @ np.abs(q)) + p @ q**2


_of_logit_probes = lru_cache(maxsize=4)(
    partial(_weighted_variance, LogitProbeTrace, per_sample=True)
)


def _any_kurtosis(formula: Formula, case: Case, kurtosis: float) -> Check:
    measured, magnitude = _of_logit_probes(case, kurtosis)
    predicted = [
        float(formula(dual_of(case).sample_grams(i), kurtosis)) for i in case.problem.index.values()
    ]
    name = f"{case}: all three-point vectors of κ = {kurtosis:g}"
    return exact(name, measured, predicted, magnitude=magnitude, terms=roundings(case, 81))


@lru_cache(maxsize=32)
def _sample_by_sample(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Variance over all signs of one sample, 0 for the others, added up as for independent samples;
    its roundings."""
    dual = dual_of(case)
    N = case.problem.num_samples
    signs = all_signs(dual.rows.shape[1])
    design = torch.einsum("nm,ck->ncmk", torch.eye(N, dtype=signs.dtype), signs).reshape(
        N * len(signs), -1
    )
    q = all_probes(LogitProbeTrace, case, design, per_sample=True).reshape(N, signs.shape[1], -1)
    squares = [len(signs) * dual.squares[:, i].sum(1).numpy() for i in case.problem.index.values()]
    magnitude = [
        variance_magnitude(q[n], np.array([square[n] for square in squares])) for n in range(N)
    ]
    return q.var(1).sum(0), sum(magnitude)


# --- G6 -------------------------------------------------------------------------------------------
@lru_cache
def _symbolic_dual() -> tuple[theory.Matrix, theory.Matrix]:
    """B_l, B_m in symbols: two output directions, layers of two and of one parameter."""
    return tuple(
        sympy.Matrix(2, n, lambda i, j, name=name: sympy.Symbol(f"{name}_{i}_{j}", real=True))
        for name, n in (("b", 2), ("c", 1))
    )


def _pairs(case: Case) -> list[tuple[str, str]]:
    blocks = list(case.problem.index)
    return [(l, m) for n, l in enumerate(blocks) for m in blocks[: n + 1]]


@lru_cache(maxsize=64)
def _grams(case: Case) -> dict[str, Tensor]:
    return {l: dual_of(case).gram(index) for l, index in case.problem.index.items()}


@claim(
    "G6",
    "‖G_lm‖² = ⟨M_l, M_m⟩, with M_l the dual Gram (tangent kernel) matrix of layer l. It has a "
    "row for every column of every sample's root.",
    formula=r"\lVert G_{lm}\rVert^2=\langle M_l,M_m\rangle,\quad M_l=B_lB_l^{\top},\;"
    r"B_l=\bigl(S_n^{\top}J_{nl}/\sqrt N\bigr)_n",
    reason="‖B_lᵀB_m‖² = tr B_mᵀB_l B_lᵀB_m",
    subject=theory.ggn_squared_norm,
    mutants=[
        wrong.ggn_norm_of_both_blocks,
        wrong.ggn_norm_of_traces,
        wrong.ggn_norm_of_own_entries,
        wrong.ggn_norm_just_outside_rounding,
    ],
)
def block_norms_from_gram_matrices(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, and the norms of all blocks of every network."""
    B, C = _symbolic_dual()
    yield symbolic(
        "two output directions, layers of two parameters and of one",
        sum(x**2 for x in B.T * C),
        formula(B * B.T, C * C.T),
    )
    for case in context.cases():
        grams = _grams(case)
        sizes = {
            l: float(dual_of(case).squares[:, index].sum())
            for l, index in case.problem.index.items()
        }
        yield exact(
            f"{case}: norms of all blocks of the dense matrix",
            [
                float(theory.squared_norm(cut(dense_ggn(case), case.problem.index, l, m)))
                for l, m in _pairs(case)
            ],
            [float(formula(grams[l], grams[m])) for l, m in _pairs(case)],
            magnitude=[4 * sizes[l] * sizes[m] for l, m in _pairs(case)],
            terms=roundings(case, 1),
        )


@claim(
    "G6.a",
    "The squared coupling of G is the cosine between layer Gram matrices: it lies in [0, 1], "
    "both ends attained.",
    formula=r"C_{lm}^2=\frac{\lVert G_{lm}\rVert^2}{\lVert G_{ll}\rVert\,\lVert G_{mm}\rVert}"
    r"=\frac{\langle M_l,M_m\rangle}{\lVert M_l\rVert\,\lVert M_m\rVert}\in[0,1]",
    reason="G6, the Cauchy-Schwarz inequality, and ⟨M_l, M_m⟩ ≥ 0 for positive semi-definite "
    "matrices",
    rests_on=["G6"],
    subject=theory.ggn_coupling,
    mutants=[
        wrong.coupling_unsquared,
        wrong.coupling_centred,
        wrong.coupling_by_traces,
        wrong.coupling_just_outside_rounding,
    ],
)
def coupling_is_a_cosine(formula: Formula, context: Context) -> Iterator[Check]:
    """Both ends of the interval, and the couplings of every network."""
    apart = [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([1, 2, 0, 0], [0, 0, 3, 1])]
    ends = [float(formula(*apart)), float(formula(apart[0], 2 * apart[0]))]
    yield exact(
        "layers that see different samples, and proportional ones",
        ends,
        [0, 1],
        magnitude=1.0,
        terms=16,
    )
    for case in context.cases():
        grams = {l: M for l, M in _grams(case).items() if float(M.norm()) > 0}
        pairs = [(l, m) for l, m in _pairs(case) if l in grams and m in grams]
        norms = {
            (l, m): float(cut(dense_ggn(case), case.problem.index, l, m).norm()) for l, m in pairs
        }
        found = np.array([float(formula(grams[l], grams[m])) for l, m in pairs])
        sizes = {
            l: float(dual_of(case).squares[:, index].sum())
            for l, index in case.problem.index.items()
        }
        whole = [norms[l, l] * norms[m, m] for l, m in pairs]
        lost = {
            l: 4 * (sizes[l] / norms[l, l]) ** 2 for l in grams
        }  # relative roundings of ‖M_l‖², and of ‖G_ll‖²
        cross = [4 * sizes[l] * sizes[m] / w for (l, m), w in zip(pairs, whole, strict=True)]
        magnitude = np.array(cross) + [lost[l] + lost[m] for l, m in pairs]
        terms = roundings(case, 1)
        expected = [norms[pair] ** 2 / w for pair, w in zip(pairs, whole, strict=True)]
        yield exact(
            f"{case}: squared couplings of the dense matrix",
            found,
            expected,
            magnitude=magnitude,
            terms=terms,
        )
        slack = terms * EPS * magnitude
        inside = bool(((found >= -slack) & (found <= 1 + slack)).all())
        yield holds(f"{case}: all in [0, 1]", inside, f"{found.min():.3g} to {found.max():.6g}")


# --- G7 -------------------------------------------------------------------------------------------
@claim(
    "G7",
    "Logit probes added up over a batch, ‖Σ_n J_nlᵀu_n‖²/N from one ordinary backward pass, are "
    "unbiased for tr G_ll and never negative. On one batch normal probes have the variance "
    "2‖G_ll‖², that of probes separated by layer. They serve all layers at once and have no "
    "cross-layer term. Several batches have less variance, since parts of the Gram matrix across "
    "batches drop out.",
    formula=r"T_l=\tfrac1N\bigl\lVert\textstyle\sum_nJ_{nl}^{\top}u_n\bigr\rVert^2"
    r"=\varepsilon^{\top}M_l\,\varepsilon,"
    r"\quad\operatorname{Var}T_l=2\lVert M_l\rVert^2=2\lVert G_{ll}\rVert^2",
    reason="a quadratic form in M_l = B_lB_lᵀ, which has the trace and the norm of G_ll = B_lᵀB_l",
    rests_on=["T2", "T6", "G4", "G6"],
    subject=LogitProbeTrace,
    mutants=[
        wrong.LogitProbesUnweighted,
        wrong.OneLogitProbeForAllSamples,
        wrong.OtherNorms,
        wrong.DemeanedSamples,
        wrong.AccumulatedOverBatches,
        wrong.LogitProbesJustOutsideRounding,
    ],
    seconds=2,
)
def batch_summed_logit_probes(estimator: EstimatorClass, context: Context) -> Iterator[Check]:
    """Symbols, all signs of all samples, and normal probes by their moments."""
    yield from _summed_in_symbols()
    ragged = classifiers(context, (2, 1))
    whole = classifiers(context, (2,))
    for case in [*ragged, *whole]:
        dual = dual_of(case)
        q = all_probes(estimator, case, signs_of_all_samples(case), per_sample=False)
        yield holds(
            f"{case}: never negative", bool((q >= 0).all()), f"smallest of {q.size}: {q.min():.3g}"
        )
        yield from _moments(
            case, q, [dual.batch_grams(i) for i in case.problem.index.values()], summed=True
        )
    case = few(context.case("tiny_relu"), (2,))
    yield from _normal_probes(estimator, case)
    case = with_other_losses(context.case("tiny_relu"))["cross-entropy"]
    made = estimator(num_probes=3, per_sample=False)
    count = passes(case.problem, lambda problem: made(problem, context.generator("passes")))
    yield exact(f"{case}: one backward pass for each of 3 probes and 2 batches", count, 6)


@lru_cache
def _summed_in_symbols() -> list[Check]:
    B, _ = _symbolic_dual()
    M = theory.symmetric_symbols(3)
    kappa = sympy.Symbol("kappa", positive=True)
    e = sympy.symbols("e:3")
    moments = {1: 0, 2: 1, 3: 0, 4: kappa}
    form = sum(e[i] * M[i, j] * e[j] for i, j in np.ndindex(3, 3))
    variance = theory.expectation(form**2, e, moments) - sympy.expand(
        theory.expectation(form, e, moments) ** 2
    )
    normal = theory.summed_logit_probe_variance([B * B.T], 3)
    return [
        symbolic(
            "one batch: Var εᵀMε for any κ",
            variance,
            theory.summed_logit_probe_variance([M], kappa),
        ),
        symbolic(
            "one batch, normal probes: 2‖G_ll‖² for G_ll = BᵀB",
            normal,
            2 * sum(x**2 for x in B.T * B),
        ),
    ]


def _normal_probes(estimator: EstimatorClass, case: Case) -> Iterator[Check]:
    """All three-point vectors of κ = 3, whose moments are normal up to the fifth."""
    kurtosis = Gaussian().kurtosis(1)
    measured, magnitude = _weighted_variance(estimator, case, kurtosis, per_sample=False)
    blocks = [cut(dense_ggn(case), case.problem.index, l, l) for l in case.problem.index]
    separated = [float(theory.probe_variance(G_ll, (), kurtosis)) for G_ll in blocks]
    name = f"{case}: one batch, normal probes, the variance 2‖G_ll‖² of separated probes"
    yield exact(name, measured, separated, magnitude=magnitude, terms=roundings(case, 81))
