"""Claims T7 and T8: one tensor used several times, and what separate probes get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import sympy
import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import ggn
from hesstheory.curvature.uses import unrolled_hessian
from hesstheory.estimators.enumerations import hadamard_columns
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory_validation.magnitudes import EPS
from hesstheory_validation.subjects import Formula, MatrixOf
from hesstheory_validation.tied_weights import wrong
from hesstheory_validation.tied_weights.networks import (
    Tie,
    many_uses,
    network_ties,
    tied_pairs,
    weight_squared,
)

if TYPE_CHECKING:
    import pandas as pd


# --- T7 -------------------------------------------------------------------------------------------
def _symbolic_unrolled(U: theory.Matrix) -> np.ndarray:
    """A symmetric 6×6 sympy matrix as the unrolled Hessian of three instances of two entries."""
    return np.array(U.tolist(), dtype=object).reshape(3, 2, 3, 2)


@lru_cache
def _symbolic_bias() -> tuple[np.ndarray, theory.Scalar]:
    """U in symbols, and E Σ_r z_rᵀ(Uz)_r − tr Σ_rs U_rs for independent z_r."""
    flat = theory.symmetric_symbols(6)
    z = sympy.symbols("z:6")
    form = sum(z[i] * flat[i, j] * z[j] for i in range(6) for j in range(6))
    U = _symbolic_unrolled(flat)
    return U, theory.expectation(form, z, {1: 0, 2: 1}) - sum(
        U[r, i, s, i] for r, i, s in np.ndindex(3, 2, 3)
    )


@lru_cache(maxsize=32)
def _separate_traces(untied: Case) -> pd.Series[float]:
    """Mean of every tensor's estimate over all Hadamard columns: the expectation under independent
    probes."""
    return LayerwiseTrace()(
        untied.problem, probes=hadamard_columns(untied.problem.num_params)
    ).value


def _separate_trace(tie: Tie) -> float:
    blocks = {names[0]: block for block, names in tie.untied.problem.partition.blocks.items()}
    return float(sum(_separate_traces(tie.untied)[blocks[name]] for name in tie.instances))


@claim(
    "T7",
    "Let U be the unrolled Hessian of the instances r = 1..T of one tensor. Then H_w = Σ_rs "
    "U_rs. Estimating with independent probes per instance is off by −Σ_{r≠s} tr U_rs. The sign "
    "can be +, − or 0.",
    formula=r"\mathbb{E}\sum_r z_r^{\top}(Uz)_r-\operatorname{tr}H_w=-\sum_{r\neq "
    r"s}\operatorname{tr}U_{rs}",
    source="[LHT]",
    reason="independent probes see the blocks U_rr only; H_w is the sum of all blocks, by the "
    "chain rule",
    rests_on=["T1", "T7.a"],
    subject=theory.tied_bias,
    mutants=[
        wrong.tied_bias_reversed,
        wrong.tied_bias_pairs_once,
        wrong.tied_bias_of_neighbours,
        wrong.tied_bias_none,
        wrong.tied_bias_just_outside_rounding,
    ],
    seconds=4,
)
def bias_of_separate_probes(formula: Formula, context: Context) -> Iterator[Check]:
    """Symbols, known biases of each sign, and networks with ties."""
    U, bias = _symbolic_bias()
    yield symbolic("bias for T = 3, n = 2", bias, formula(U))
    for sign in (-1, 0, 1):
        for tie, pair in tied_pairs(context, sign):
            yield from _known_bias(formula, tie, pair.trace, pair.bias)
        tie = weight_squared(2 + 2 * sign)
        yield from _known_bias(formula, tie, 2 - 4 * sign, 4 * sign)
        bias = float(formula(tie.U))
        yield holds(
            f"{tie}: the sign of the bias is {'−0+'[sign + 1]}", np.sign(bias) == sign, f"{bias:g}"
        )
    for tie in network_ties(context):
        yield _measured_bias(formula, tie)


def _known_bias(formula: Formula, tie: Tie, trace: float, bias: float) -> Iterator[Check]:
    yield exact(
        f"{tie}: closed forms of trace and bias",
        [float(tie.H_w.trace()), float(formula(tie.U))],
        [trace, bias],
        magnitude=tie.form,
        terms=tie.terms(),
    )
    yield _measured_bias(formula, tie)


def _measured_bias(formula: Formula, tie: Tie) -> Check:
    separate = _separate_trace(tie)
    trace = float(tie.H_w.trace())
    row = {
        "example": tie.tied.network,
        "tensor": tie.tensor,
        "stage": tie.tied.stage,
        "instances": len(tie.U),
        "exact_trace": trace,
        "separate_trace": separate,
        "bias": separate - trace,
        "bound_low": None,
        "bound_high": None,
    }
    if _is_psd(tie.U):
        bounds = theory.tied_bias_bounds(tie.U)
        row |= {"bound_low": float(bounds.low), "bound_high": float(bounds.high)}
    return exact(
        f"{tie}: independent probes, all Hadamard columns",
        separate - trace,
        float(formula(tie.U)),
        magnitude=tie.form,
        terms=tie.terms(tie.untied.problem.num_params),
    ).showing("tied_bias", [row])


def _is_psd(U: Tensor) -> bool:
    """U ⪰ 0, but for rounding: an eigenvalue of a size-m matrix is off by up to about m·eps·‖U‖."""
    lam = torch.linalg.eigvalsh(U.reshape(U.shape[0] * U.shape[1], -1))
    return bool(lam[0] >= -len(lam) * EPS * lam.abs().max())


@claim(
    "T7.a",
    "The blocks U_rs between the uses of a tied tensor are those of the network with a tensor of "
    "its own for every use. They add up to H_w = Σ_rs U_rs.",
    formula=r"H_w=\sum_{r,s}U_{rs}",
    reason="chain rule at w_1 = … = w_T = w",
    subject=unrolled_hessian,
    mutants=[
        wrong.unrolled_last_batch,
        wrong.unrolled_unweighted,
        wrong.unrolled_without_cross_instances,
        wrong.unrolled_backwards,
        wrong.unrolled_just_outside_rounding,
    ],
    seconds=2,
)
def unrolled_blocks_add_up(unroll: MatrixOf, context: Context) -> Iterator[Check]:
    """The blocks of the untied network, and their sum."""
    pairs = [tie for sign in (-1, 1) for tie, _ in tied_pairs(context, sign)]
    for tie in [*pairs, *network_ties(context)]:
        U = unroll(tie.tied.problem, tie.tensor)
        scale = {"magnitude": tie.entry, "terms": tie.terms()}
        yield exact(f"{tie}: U_rs of the untied network", U, tie.cut(tie.untied.H), **scale)
        yield exact(
            f"{tie}: Σ_rs U_rs = H_w",
            U.sum((0, 2)),
            tie.H_w,
            **scale | {"magnitude": len(U) ** 2 * tie.entry},
        )


# --- T8 -------------------------------------------------------------------------------------------
@claim(
    "T8",
    "For U ⪰ 0 the bias of separate probes lies in [−(T−1) Σ_r tr U_rr, Σ_r tr U_rr]; both ends "
    "are attained.",
    formula=r"-(T-1)\sum_r\operatorname{tr}U_{rr}\le-\sum_{r\neq s}\operatorname{tr}U_{rs}"
    r"\le\sum_r\operatorname{tr}U_{rr}",
    reason="with U = BᵀB, high − bias = ‖Σ_r B_r‖² and bias − low = Σ_{r<s} ‖B_r − B_s‖²",
    rests_on=["T7"],
    subject=theory.tied_bias_bounds,
    mutants=[
        wrong.bounds_for_two_instances,
        wrong.bounds_exchanged,
        wrong.bounds_with_one_instance_more,
        wrong.bounds_just_outside_rounding,
    ],
)
def bias_lies_within_bounds(bounds: Formula, context: Context) -> Iterator[Check]:
    """Sums of squares, examples at both ends, and positive matrices between."""
    yield from _sums_of_squares(bounds)
    for end, (name, U) in _extreme(context).items():
        yield exact(
            f"{name}: the bias attains its {end} end",
            theory.tied_bias(U),
            getattr(bounds(U), end),
            magnitude=len(U) * float(U.abs().sum()),
            terms=U.numel()
            + 64,  # 64: the roundings of U itself, of five samples and two parameters
        )
    for name, U in _positive_examples(context).items():
        yield from _within(bounds, name, U)


def _sums_of_squares(bounds: Formula) -> Iterator[Check]:
    B = sympy.Matrix(2, 6, lambda i, j: sympy.Symbol(f"b_{i}_{j}", real=True))
    U = _symbolic_unrolled(B.T * B)
    parts = [B[:, 2 * r : 2 * r + 2] for r in range(3)]
    bias = theory.tied_bias(U)
    found = bounds(U)

    def square(A: theory.Matrix) -> theory.Scalar:
        return sum(a**2 for a in A)

    yield symbolic(
        "high − bias = ‖Σ_r B_r‖² for U = BᵀB",
        found.high - bias,
        square(parts[0] + parts[1] + parts[2]),
    )
    gaps = sum(square(parts[r] - parts[s]) for s in range(3) for r in range(s))
    yield symbolic("bias − low = Σ_{r<s} ‖B_r − B_s‖²", bias - found.low, gaps)


@lru_cache(maxsize=4)
def _extreme(context: Context) -> dict[str, tuple[str, Tensor]]:
    """Linear networks with three parallel uses whose bias is an end of the interval."""
    generator = context.generator("extreme")
    W, x = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 2), (5, 2))
    )
    same = torch.stack([x, x, x], 1)
    cancelling = torch.stack([x, -0.25 * x, -0.75 * x], 1)
    ties = {
        "low": many_uses("three equal inputs", W, 3, same, x, series=False),
        "high": many_uses("three inputs that add up to 0", W, 3, cancelling, x, series=False),
    }
    return {end: (str(tie), tie.U) for end, tie in ties.items()}


def _positive_examples(context: Context) -> dict[str, Tensor]:
    """Positive semi-definite U: linear networks, w·w·x near its target, Gauss-Newton matrices, ReLU
    input weights."""
    examples = {str(tie): tie.U for sign in (-1, 0, 1) for tie, _ in tied_pairs(context, sign)[:1]}
    examples |= {str(tie): tie.U for tie in map(weight_squared, (1.0, 1.5, 2.0, 3.0))}
    for tie in network_ties(context):
        if tie.tied.network == "relu_rnn" and tie.tensor.startswith("input"):
            examples[str(tie)] = tie.U
        examples[f"{tie}, Gauss-Newton"] = tie.cut(_gauss_newton(tie.untied))
    return examples


@lru_cache(maxsize=32)
def _gauss_newton(case: Case) -> Tensor:
    return ggn(case.problem).to_dense()


def _within(bounds: Formula, name: str, U: Tensor) -> Iterator[Check]:
    T = len(U)
    found = bounds(U)
    bias = theory.tied_bias(U)
    trace = torch.einsum("risi->rs", U)
    own = trace.diagonal()
    gaps = (own[:, None] + own[None, :] - 2 * trace).sum() / 2
    scale = {
        "magnitude": T * float(torch.einsum("risi->ris", U).abs().sum()),
        "terms": T * T + U.shape[1],
    }
    yield exact(
        f"{name}: distance to both ends",
        [found.high - bias, bias - found.low],
        [trace.sum(), gaps],
        **scale,
    )
    slack = scale["terms"] * scale["magnitude"] * EPS
    inside = bool(found.low - slack <= bias <= found.high + slack)
    yield holds(f"{name}: inside", inside, f"{found.low:.6g} ≤ {bias:.6g} ≤ {found.high:.6g}")


@claim(
    "T8.a",
    "The bounds need U ⪰ 0: neither U_rr ⪰ 0 for every instance nor H_w ⪰ 0 is enough, and an "
    "indefinite U is refused.",
    formula=r"U=\begin{pmatrix}1&2-y\\2-y&1\end{pmatrix}:\quad 2y-4\in[-2,2]\iff 1\le y\le 3\iff "
    r"U\succeq 0",
    reason="½(w·w·x − y)² at w = x = 1 leaves the interval at either end exactly where U loses "
    "its sign",
    rests_on=["T8"],
    subject=theory.tied_bias_bounds,
    mutants=[
        wrong.bounds_unasked,
        wrong.bounds_for_positive_diagonal,
        wrong.bounds_for_positive_blocks,
        wrong.bounds_for_positive_sum,
    ],
)
def bounds_need_a_positive_matrix(bounds: Formula, context: Context) -> Iterator[Check]:
    """One weight used twice, on both sides of both ends."""
    for y in (0.0, 0.5, 0.75, 1.0, 2.0, 3.0, 3.25, 3.5, 4.0):
        tie = weight_squared(y)
        bias = float(theory.tied_bias(tie.U))
        refusal = what_is_raised(partial(bounds, tie.U))
        yield exact(f"y = {y:g}: bias", bias, 2 * y - 4, magnitude=tie.form, terms=tie.terms())
        yield holds(
            f"y = {y:g}: bounds are given exactly where they hold",
            (refusal == "") is (-2 <= bias <= 2),
            f"bias {bias:g}, {f'refused: {refusal}' if refusal else 'given'}",
        )


def what_is_raised(act: Callable[[], object]) -> str:
    """What an action raises, or the empty string."""
    try:
        act()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def one_probe_for_all(num_params: int, num_instances: int) -> Tensor:
    """All Hadamard columns, copied to every instance."""
    return hadamard_columns(num_params).repeat(num_instances, 1)


@lru_cache
def _of_one_shared_probe() -> Check:
    flat = theory.symmetric_symbols(6)
    z = sympy.symbols("z:2")
    U = _symbolic_unrolled(flat)
    form = sum(z[i] * U[r, i, s, j] * z[j] for r, i, s, j in np.ndindex(3, 2, 3, 2))
    trace = sum(U[r, i, s, i] for r, i, s in np.ndindex(3, 2, 3))
    return symbolic(
        "E Σ_r zᵀ Σ_s U_rs z = tr H_w for T = 3, n = 2",
        theory.expectation(form, z, {1: 0, 2: 1}),
        trace,
    )


@claim(
    "T8.b",
    "Copying ONE probe to all instances of a tied tensor removes the bias.",
    formula=r"\mathbb{E}\sum_r z^{\top}\Bigl(\sum_s U_{rs}z\Bigr)=\operatorname{tr}H_w",
    reason="Σ_r zᵀ Σ_s U_rs z = zᵀH_w z for every z",
    rests_on=["T1", "T7.a"],
    subject=one_probe_for_all,
    mutants=[
        wrong.probe_per_instance,
        wrong.probe_of_alternating_sign,
        wrong.probe_of_unit_length,
        wrong.probe_without_last_instance,
        wrong.probe_copies_just_outside_rounding,
    ],
)
def one_shared_probe_has_no_bias(design: MatrixOf, context: Context) -> Iterator[Check]:
    """Symbols, and all Hadamard columns copied to every instance."""
    yield _of_one_shared_probe()
    pairs = [tie for sign in (-1, 0, 1) for tie, _ in tied_pairs(context, sign)]
    for tie in [*pairs, *network_ties(context)]:
        Z = design(tie.rows.shape[1], len(tie.rows))
        probes = Z.new_zeros(tie.untied.problem.num_params, Z.shape[1])
        probes[tie.rows.flatten()] = Z
        samples = LayerwiseTrace()(tie.untied.problem, probes=probes).samples.to_numpy()
        yield exact(  # the probe is zero elsewhere, hence so are the other blocks
            f"{tie}: mean over all Hadamard columns",
            samples.sum(1).mean(),
            float(tie.H_w.trace()),
            magnitude=tie.form,
            terms=tie.terms(Z.shape[1]),
        )
