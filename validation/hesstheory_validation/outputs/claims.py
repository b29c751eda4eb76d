"""Claims G5 to G8: probes in the space of the outputs, dual Gram matrices, and probes on what the outputs leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor
from torch.nn import functional as F

from hesstheory import theory, zoo
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.estimators.enumerations import (
    all_signs,
    hadamard_columns,
    strength_four_signs,
    three_point_grid,
)
from hesstheory.estimators.from_outputs import ControlVariateTrace, LogitProbeTrace
from hesstheory.estimators.probes import Gaussian
from hesstheory.evidence.checks import Check, empirical, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory.outputs.loss_root import loss_root
from hesstheory.outputs.per_sample import rules_that_hold
from hesstheory.run.streams import stream
from hesstheory_validation.gauss_newton.claims import (
    EPS,
    cut,
    dense_ggn,
    passes,
    piecewise_linear,
    slope_squares,
    with_other_losses,
)
from hesstheory_validation.gauss_newton.wrong import output_jacobian
from hesstheory_validation.outputs import wrong
from hesstheory_validation.unbiasedness.claims import absolute_rows, block_traces, roundings


# --- the dual side: roots, Gram matrices, probes --------------------------------------------------------------------
@dataclass(frozen=True)
class Dual:
    """A root of G = BᵀB from the outputs: rows S_nᵀJ_n/√N of B, samples × columns × params.

    `squares` holds ‖S_n‖² Σ_d J_ndi²/N, samples × params: what the squares of an entry of B are made of.
    """

    rows: Tensor
    squares: Tensor
    batch_sizes: tuple[int, ...]

    def batch_grams(self, index: Tensor) -> list[Tensor]:
        """M_b = B_lB_lᵀ of the rows of every batch."""
        parts = (
            part[:, :, index].flatten(0, 1) for part in torch.split(self.rows, self.batch_sizes)
        )
        return [B @ B.mT for B in parts]

    def gram(self, index: Tensor) -> Tensor:
        """M_l = B_lB_lᵀ."""
        B = self.rows[:, :, index].flatten(0, 1)
        return B @ B.mT

    def sample_grams(self, index: Tensor) -> list[Tensor]:
        """M_n = S_nᵀJ_nl J_nlᵀS_n with the root of the sample's own loss."""
        B = self.rows[:, :, index]
        return list(len(B) * B @ B.mT)


@lru_cache(maxsize=64)
def _dual(case: Case) -> Dual:
    problem, rows, squares = case.problem, list[Tensor](), list[Tensor]()
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        outputs = problem.outputs(batch)
        S, J = weight**0.5 * loss_root(problem, outputs, batch), output_jacobian(problem, outputs)
        rows.append(S.mT @ J)
        squares.append(S.square().sum((1, 2))[:, None] * J.square().sum(1))
    columns = max(part.shape[1] for part in rows)  # a batch may have no use for one
    padded = [F.pad(part, (0, 0, 0, columns - part.shape[1])) for part in rows]
    return Dual(torch.cat(padded), torch.cat(squares), problem.batch_sizes)


@dataclass
class Dealt:
    """Deals the columns of a design, samples × columns of S × probes, in order and to each sample its own rows."""

    design: Tensor
    start: int = 0
    probe: int = 0

    def kurtosis(self, num_params: int) -> float:
        return float(self.design[0, 0].square().square().mean())

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Tensor:
        """The signs of the next probe of a batch; batches follow one another when all probes are dealt."""
        dealt = self.design[self.start : self.start + num_probes, :num_params, self.probe]
        self.probe = (self.probe + 1) % self.design.shape[2]
        self.start += num_probes if self.probe == 0 else 0
        return dealt.mT


@lru_cache(maxsize=64)
def _few(case: Case, sizes: tuple[int, ...]) -> Case:
    """The network on some samples of its first batches: the least sure, since M_n is 0 for a sure one."""
    chosen = []
    for (x, y), n in zip(case.problem.batches, sizes, strict=False):
        rows = case.problem.outputs((x, y)).softmax(1).amax(1).argsort()[:n]
        chosen.append((x[rows], y[rows]))
    return Case(
        case.network,
        f"{case.stage}, {'+'.join(map(str, sizes))} samples",
        case.problem.with_batches(chosen),
    )


def _all_probes(estimator: Any, case: Case, design: Tensor, *, per_sample: bool) -> np.ndarray:
    """The estimates of every probe of a design, samples·columns × probes; probes × blocks."""
    count = design.shape[1]
    dealt = Dealt(design.reshape(case.problem.num_samples, -1, count))
    made = estimator(num_probes=count, per_sample=per_sample, probe=dealt)
    return made(case.problem, stream(0, "nothing is drawn")).samples.to_numpy()


def _all_signs(case: Case) -> Tensor:
    return all_signs(_dual(case).rows[:, :, 0].numel())


def _sizes(case: Case) -> np.ndarray:
    """What q_l is made of when the probes are signs, ‖J_nᵀS_nε_n‖² ≤ C ‖J_n‖²‖S_n‖², by block."""
    dual = _dual(case)
    columns = dual.rows.shape[1]
    return np.array(
        [columns * float(dual.squares[:, index].sum()) for index in case.problem.index.values()]
    )


def _of_variance(q: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """An error δ in every q moves mean (q − q̄)² by at most 4δ mean|q|; mean q² is its own rounding."""
    return 4 * magnitude * np.abs(q).mean(0) + (q**2).mean(0)


# Dense and convolutional layers, batch norm, and layer norm, which has no rule for the norms of single samples.
_CLASSIFIERS = ("tiny_mlp", "tiny_relu", "cnn", "attention")


def _classifiers(context: Context, sizes: tuple[int, ...]) -> list[Case]:
    """Networks of two or three classes on few samples, whose signs can all be enumerated together."""
    if context.profile == "smoke":
        return [_few(context.case("tiny_relu"), sizes)]
    classifiers = [name for name, network in zoo.SMALL.items() if network.loss is F.cross_entropy]
    return [
        _few(case, sizes)
        for case in context.cases(classifiers if context.is_thorough else _CLASSIFIERS)
    ]


# --- G5 -------------------------------------------------------------------------------------------------------------
@lru_cache
def _symbolic_logit_probes() -> tuple[list[Any], Any, Any, Any]:
    """Gram matrices of two samples in symbols, mean and variance of ½ Σ_n ε_nᵀM_nε_n, and κ."""
    kappa, skew = sympy.symbols("kappa mu_3", positive=True)
    e, moments = sympy.symbols("e:4"), {1: 0, 2: 1, 3: skew, 4: kappa}
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
    "Logit probes u_n = S_n ε_n, independent signs for every sample and one backward pass, are unbiased for tr G_ll "
    "with variance (1/N²) Σ_n 2(‖M_n‖² − ‖diag M_n‖²), whatever the sizes of the batches; none at all for two classes "
    "and, with the orthogonal columns that an eigendecomposition gives, in the last linear layer.",
    formula=r"\mathbb E\,\frac1N\sum_n\lVert J_{nl}^{\top}S_n\varepsilon_n\rVert^2=\operatorname{tr}G_{ll},\quad"
    r"\operatorname{Var}=\frac1{N^2}\sum_n2\bigl(\lVert M_n\rVert^2-\lVert\operatorname{diag}M_n\rVert^2\bigr)",
    reason="‖J_nlᵀS_nε_n‖² = ε_nᵀM_nε_n, and samples are independent; in the last layer M_n is a multiple of S_nᵀS_n",
    rests_on=["T2", "G4"],
    subject=LogitProbeTrace,
    mutants=[
        wrong.LogitProbesUnweighted,
        wrong.OneLogitProbeForAllSamples,
        wrong.OneSignPerSample,
        wrong.OtherNorms,
        wrong.LogitProbesJustOutsideRounding,
    ],
)
def logit_probes(estimator: Any, context: Context) -> Iterator[Check]:
    grams, mean, _, _ = _symbolic_logit_probes()
    yield symbolic(
        "two samples: the mean is tr(M_1 + M_2)/2", mean, (grams[0].trace() + grams[1].trace()) / 2
    )
    for case in _classifiers(context, (2, 1)):
        q = _all_probes(estimator, case, _all_signs(case), per_sample=True)
        yield from _moments(
            case, q, [_dual(case).sample_grams(i) for i in case.problem.index.values()]
        )
        bound = {"magnitude": _of_variance(q, _sizes(case))[-1], "terms": roundings(case, len(q))}
        yield exact(f"{case}: no variance in the last layer", q.var(0)[-1], 0, **bound)
    case = with_other_losses(context.case("tiny_relu"))["cross-entropy"]
    made = estimator(num_probes=3, per_sample=True)
    count = passes(case.problem, lambda problem: made(problem, context.generator("passes")))
    name = f"{case}: one backward pass for each of 3 probes and 2 batches, after the trial of the rules"
    yield exact(name, count, passes(case.problem, rules_that_hold) + 6)


def _moments(
    case: Case, q: np.ndarray, grams: list[list[Tensor]], *, summed: bool = False
) -> Iterator[Check]:
    """Mean and variance over all signs of all samples together."""
    variance = theory.summed_logit_probe_variance if summed else theory.logit_probe_variance
    magnitude, terms = _sizes(case), roundings(case, len(q))
    if summed:
        magnitude = magnitude * case.problem.num_samples  # ‖Σ_n v_n‖² ≤ N Σ_n ‖v_n‖²
    traces = [float(cut(dense_ggn(case), case, l, l).trace()) for l in case.problem.index]
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
        magnitude=_of_variance(q, magnitude),
        terms=terms,
    )


@claim(
    "G5.a",
    "For ε of fourth moment κ the variance is (1/N²) Σ_n [2(‖M_n‖² − ‖diag M_n‖²) + (κ−1) ‖diag M_n‖²]. On ReLU "
    "networks, where both estimate tr H_ll, it lies below that of a full-vector probe (T2), on most layers by orders "
    "of magnitude.",
    formula=r"\operatorname{Var}=\frac1{N^2}\sum_n\Bigl[2\bigl(\lVert M_n\rVert^2-\lVert\operatorname{diag}M_n"
    r"\rVert^2\bigr)+(\kappa-1)\lVert\operatorname{diag}M_n\rVert^2\Bigr]",
    reason="T2 for every sample, whose variances add up: N samples average out, cross blocks never enter",
    rests_on=["T2", "G1", "G5"],
    subject=theory.logit_probe_variance,
    mutants=[
        wrong.logit_variance_with_diagonal,
        wrong.logit_variance_of_one_sample,
        wrong.logit_variance_of_the_mean,
        wrong.logit_variance_of_shared_probes,
        wrong.logit_variance_just_outside_rounding,
    ],
)
def variance_of_logit_probes(formula: Any, context: Context) -> Iterator[Check]:
    grams, _, variance, kappa = _symbolic_logit_probes()
    yield symbolic("two samples, any κ and third moment", variance, formula(grams, kappa))
    a = sympy.Symbol("a")
    yield symbolic("signs and two classes: no variance", formula([sympy.Matrix([[a]])], 1), 0)
    for kurtosis in (3.0,) if context.profile == "smoke" else (3.0, 9 / 5):
        yield _any_kurtosis(formula, _few(context.case("tiny_relu"), (1, 1)), kurtosis)
    if context.profile == "smoke":
        return  # 33 samples one by one would cost as much as the rest of these claims
    rows = []
    for case in piecewise_linear(context):
        if case.problem.num_params <= 127:
            measured, magnitude = _sample_by_sample(case)
            predicted = [
                float(formula(_dual(case).sample_grams(i), 1.0))
                for i in case.problem.index.values()
            ]
            name = f"{case}: all signs of every sample by itself"
            yield exact(name, measured, predicted, magnitude=magnitude, terms=roundings(case, 4))
            rows += _gains(case, np.array(predicted), measured, "logit")
    yield _how_large("variance of a full-vector probe over that of a logit probe", rows).showing(
        "gain", rows
    )


def _weighted_variance(
    estimator: Any, case: Case, kurtosis: float, *, per_sample: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Variance over all three-point vectors of a fourth moment, and the magnitude of its roundings."""
    Z, weights = three_point_grid(_dual(case).rows[:, :, 0].numel(), kurtosis)
    q, p = _all_probes(estimator, case, Z, per_sample=per_sample), weights.numpy()
    magnitude = kurtosis * case.problem.num_samples * _sizes(case)
    return p @ (q - p @ q) ** 2, 4 * magnitude * (p @ np.abs(q)) + p @ q**2


_of_logit_probes = lru_cache(maxsize=4)(
    partial(_weighted_variance, LogitProbeTrace, per_sample=True)
)


def _any_kurtosis(formula: Any, case: Case, kurtosis: float) -> Check:
    measured, magnitude = _of_logit_probes(case, kurtosis)
    predicted = [
        float(formula(_dual(case).sample_grams(i), kurtosis)) for i in case.problem.index.values()
    ]
    name = f"{case}: all three-point vectors of κ = {kurtosis:g}"
    return exact(name, measured, predicted, magnitude=magnitude, terms=roundings(case, 81))


@lru_cache(maxsize=32)
def _sample_by_sample(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Variance over all signs of one sample, 0 for the others, added up as for independent samples; its roundings."""
    dual, N = _dual(case), case.problem.num_samples
    signs = all_signs(dual.rows.shape[1])
    design = torch.einsum("nm,ck->ncmk", torch.eye(N, dtype=signs.dtype), signs).reshape(
        N * len(signs), -1
    )
    q = _all_probes(LogitProbeTrace, case, design, per_sample=True).reshape(N, signs.shape[1], -1)
    squares = [len(signs) * dual.squares[:, i].sum(1).numpy() for i in case.problem.index.values()]
    magnitude = [_of_variance(q[n], np.array([square[n] for square in squares])) for n in range(N)]
    return q.var(1).sum(0), sum(magnitude)


def _gains(
    case: Case, predicted: np.ndarray, measured: np.ndarray, probe: str
) -> list[dict[str, Any]]:
    """Variance T2 of one full-vector probe on H over that of another estimator, by block; ∞ where the latter has none.

    T2 decides that its formula is what enumeration gives.
    """
    blocks = case.problem.index
    whole = np.array(
        [float(theory.probe_variance(case.block(l, l), case.cross_blocks(l), 1.0)) for l in blocks]
    )
    ratios = [
        np.divide(whole, variance, out=np.full(len(whole), np.inf), where=variance > 1e-15 * whole)
        for variance in (predicted, measured)
    ]
    return [
        {
            "network": case.network,
            "stage": case.stage,
            "block": l,
            "probe": probe,
            "predicted": p,
            "measured": m,
        }
        for l, p, m in zip(case.problem.index, *ratios, strict=True)
    ]


def _how_large(name: str, rows: list[dict[str, Any]]) -> Check:
    parts = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        gains = np.array([row["measured"] for row in rows if row["stage"] == stage])
        low, middle, high = np.quantile(gains, [0, 0.5, 1], method="nearest")
        parts.append(
            f"{stage}: {low:.2g} to {high:.2g}, median {middle:.2g}, over {len(gains)} layers"
        )
    return empirical(name, "; ".join(parts))


# --- G6 -------------------------------------------------------------------------------------------------------------
@lru_cache
def _symbolic_dual() -> tuple[Any, Any]:
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
    return {l: _dual(case).gram(index) for l, index in case.problem.index.items()}


@claim(
    "G6",
    "‖G_lm‖² = ⟨M_l, M_m⟩ with M_l the dual Gram (tangent kernel) matrix of layer l, a row for every column of every "
    "sample's root.",
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
def block_norms_from_gram_matrices(formula: Any, context: Context) -> Iterator[Check]:
    B, C = _symbolic_dual()
    yield symbolic(
        "two output directions, layers of two parameters and of one",
        sum(x**2 for x in B.T * C),
        formula(B * B.T, C * C.T),
    )
    for case in context.cases():
        grams = _grams(case)
        sizes = {
            l: float(_dual(case).squares[:, index].sum()) for l, index in case.problem.index.items()
        }
        yield exact(
            f"{case}: norms of all blocks of the dense matrix",
            [float(theory.squared_norm(cut(dense_ggn(case), case, l, m))) for l, m in _pairs(case)],
            [float(formula(grams[l], grams[m])) for l, m in _pairs(case)],
            magnitude=[4 * sizes[l] * sizes[m] for l, m in _pairs(case)],
            terms=roundings(case, 1),
        )


@claim(
    "G6.a",
    "The squared coupling of G is the cosine between layer Gram matrices: it lies in [0, 1], both ends attained.",
    formula=r"C_{lm}^2=\frac{\lVert G_{lm}\rVert^2}{\lVert G_{ll}\rVert\,\lVert G_{mm}\rVert}"
    r"=\frac{\langle M_l,M_m\rangle}{\lVert M_l\rVert\,\lVert M_m\rVert}\in[0,1]",
    reason="G6, the Cauchy-Schwarz inequality, and ⟨M_l, M_m⟩ ≥ 0 for positive semi-definite matrices",
    rests_on=["G6"],
    subject=theory.ggn_coupling,
    mutants=[
        wrong.coupling_unsquared,
        wrong.coupling_centred,
        wrong.coupling_by_traces,
        wrong.coupling_just_outside_rounding,
    ],
)
def coupling_is_a_cosine(formula: Any, context: Context) -> Iterator[Check]:
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
        norms = {(l, m): float(cut(dense_ggn(case), case, l, m).norm()) for l, m in pairs}
        found = np.array([float(formula(grams[l], grams[m])) for l, m in pairs])
        sizes = {
            l: float(_dual(case).squares[:, index].sum()) for l, index in case.problem.index.items()
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


# --- G7 -------------------------------------------------------------------------------------------------------------
@claim(
    "G7",
    "Logit probes added up over a batch, ‖Σ_n J_nlᵀu_n‖²/N from one ordinary backward pass, are unbiased for tr G_ll "
    "and never negative. Their variance on one batch is 2‖G_ll‖² for normal probes, that of probes separated by layer, "
    "for all layers at once and without a cross-layer term; several batches have less, since parts of the Gram "
    "matrix across batches drop out.",
    formula=r"T_l=\tfrac1N\bigl\lVert\textstyle\sum_nJ_{nl}^{\top}u_n\bigr\rVert^2=\varepsilon^{\top}M_l\,\varepsilon,"
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
)
def batch_summed_logit_probes(estimator: Any, context: Context) -> Iterator[Check]:
    yield from _summed_in_symbols()
    ragged, whole = _classifiers(context, (2, 1)), _classifiers(context, (2,))
    for case in [*ragged, *whole]:
        dual = _dual(case)
        q = _all_probes(estimator, case, _all_signs(case), per_sample=False)
        yield holds(
            f"{case}: never negative", bool((q >= 0).all()), f"smallest of {q.size}: {q.min():.3g}"
        )
        yield from _moments(
            case, q, [dual.batch_grams(i) for i in case.problem.index.values()], summed=True
        )
    case = _few(context.case("tiny_relu"), (2,))
    yield from _normal_probes(estimator, case)
    case = with_other_losses(context.case("tiny_relu"))["cross-entropy"]
    made = estimator(num_probes=3, per_sample=False)
    count = passes(case.problem, lambda problem: made(problem, context.generator("passes")))
    yield exact(f"{case}: one backward pass for each of 3 probes and 2 batches", count, 6)


@lru_cache
def _summed_in_symbols() -> list[Check]:
    B, _ = _symbolic_dual()
    M, kappa = theory.symmetric_symbols(3), sympy.Symbol("kappa", positive=True)
    e, moments = sympy.symbols("e:3"), {1: 0, 2: 1, 3: 0, 4: kappa}
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


def _normal_probes(estimator: Any, case: Case) -> Iterator[Check]:
    """All three-point vectors of κ = 3, whose moments are normal up to the fifth."""
    kurtosis = Gaussian().kurtosis(1)
    measured, magnitude = _weighted_variance(estimator, case, kurtosis, per_sample=False)
    blocks = [cut(dense_ggn(case), case, l, l) for l in case.problem.index]
    separated = [float(theory.probe_variance(G_ll, (), kurtosis)) for G_ll in blocks]
    name = f"{case}: one batch, normal probes, the variance 2‖G_ll‖² of separated probes"
    yield exact(name, measured, separated, magnitude=magnitude, terms=roundings(case, 81))


# --- G8 -------------------------------------------------------------------------------------------------------------
@claim(
    "G8",
    "tr G_ll exactly and parameter probes on R = H − G alone are unbiased for tr H_ll of any network, with the "
    "variance T2 with R for H, for one product a probe as before. The gain is large on most trained networks and "
    "small on untrained ones; on single layers it may be a loss.",
    formula=r"\hat t_l=\operatorname{tr}G_{ll}+z_l^{\top}(Rz)_l,\quad\operatorname{Var}=2\lVert R_{ll}\rVert^2"
    r"+(\kappa-3)\sum_{i\in l}R_{ii}^2+\sum_{m\neq l}\lVert R_{lm}\rVert^2",
    reason="T1 and T2 for R, of which G is no part; R vanishes with the slopes of the loss in the outputs, so that "
    "little is gained where training leaves them large (a bottleneck autoencoder) or ∂²f is (layer norm, attention)",
    rests_on=["T1", "T2", "G4"],
    subject=ControlVariateTrace,
    mutants=[
        wrong.ControlOnTheHessian,
        wrong.NoControl,
        wrong.ResidualForgotten,
        wrong.ControlBySeparatedProbes,
        wrong.ControlJustOutsideRounding,
    ],
)
def probes_on_the_residual(estimator: Any, context: Context) -> Iterator[Check]:
    yield from _control_in_symbols()
    rows: list[dict[str, Any]] = []
    for case in context.cases():
        yield from _mean_and_samples(estimator, case)
        measured, check = _residual_variance(estimator, case)
        yield check
        if not zoo.network(case.network).piecewise_linear:
            rows += _gains(case, _residual_prediction(case), measured, "residual")
    yield _how_large("variance of probes on H over that of probes on R", rows).showing("gain", rows)


@lru_cache
def _control_in_symbols() -> list[Check]:
    R, z, g = theory.symmetric_symbols(3, "r"), sympy.symbols("z:3"), sympy.Symbol("g")
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
    """What a sample is made of when the probes are signs: rows of H, and what cancels inside, as in T6."""
    t, index = slope_squares(case), case.problem.index.values()
    outer = float((case.problem.num_params * t.sum()).sqrt())
    inner = np.array([float((len(i) * t[i].sum()).sqrt()) for i in index])
    return absolute_rows(case).numpy() + 4 * inner * outer


def _residual_forms(case: Case, Z: Tensor) -> np.ndarray:
    """tr G_ll + z_lᵀ(Rz)_l from the dense matrices, probes × blocks."""
    products, G = Z * (_R(case) @ Z), dense_ggn(case).diagonal()
    return torch.stack(
        [products[i].sum(0) + G[i].sum() for i in case.problem.index.values()], dim=1
    ).numpy()


def _mean_and_samples(estimator: Any, case: Case) -> Iterator[Check]:
    Z = hadamard_columns(case.problem.num_params)
    estimate = estimator()(case.problem, probes=Z)
    scale = {"magnitude": _of_forms(case), "terms": roundings(case, Z.shape[1])}
    name = f"{case}: tr G_ll + z_lᵀ(Rz)_l for every Hadamard column"
    yield exact(name, estimate.samples, _residual_forms(case, Z), **scale)
    yield exact(f"{case}: one product a probe", estimate.num_matvecs, Z.shape[1])
    name = f"{case}: mean over all {Z.shape[1]} Hadamard columns is tr H_ll"
    yield exact(name, estimate.value, block_traces(case), **scale)


def _residual_prediction(case: Case) -> np.ndarray:
    R, blocks = _R(case), case.problem.index
    others = {l: [cut(R, case, l, m) for m in blocks if m != l] for l in blocks}
    return np.array(
        [float(theory.probe_variance(cut(R, case, l, l), others[l], 1.0)) for l in blocks]
    )


def _residual_variance(estimator: Any, case: Case) -> tuple[np.ndarray, Check]:
    """Over a strength-four array: by the estimator on small networks, else by the forms that its samples are."""
    Z = _design(case.problem.num_params)
    is_small = case.problem.num_params <= 31
    q = (
        estimator()(case.problem, probes=Z).samples.to_numpy()
        if is_small
        else _residual_forms(case, Z)
    )
    measured = q.var(0)
    name = f"{case}: T2 with R for H, all signs of a strength-four array"
    magnitude, terms = _of_variance(q, _of_forms(case)), roundings(case, len(q))
    return measured, exact(
        name, measured, _residual_prediction(case), magnitude=magnitude, terms=terms
    )


@lru_cache(maxsize=2)
def _design(num_params: int) -> Tensor:
    return strength_four_signs(num_params)
