"""Claims G1 to G4: where the Gauss-Newton matrix has the diagonal of the Hessian, and its traces
without a probe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import sympy
import torch
from torch import Tensor, nn

from hesstheory import theory, zoo
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import ggn, hessian
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory.outputs.per_sample import rules_that_hold
from hesstheory.outputs.premise import NotPiecewiseLinear
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory.zoo.initial import blank
from hesstheory_validation.forms import cut
from hesstheory_validation.gauss_newton import wrong
from hesstheory_validation.gauss_newton.counterexamples import Counterexample, counterexamples
from hesstheory_validation.gauss_newton.networks import (
    dense_ggn,
    gauss_newton,
    piecewise_linear,
    slopes,
)
from hesstheory_validation.gauss_newton.passes import passes, with_other_losses
from hesstheory_validation.magnitudes import EPS, roundings
from hesstheory_validation.subjects import MatrixOf, TracesOf


# --- G1 and G2: one parameter, one layer ----------------------------------------------------------
@lru_cache
def _symbolic_residual() -> tuple[theory.Matrix, theory.Scalar, tuple[theory.Scalar, ...]]:
    """H − G in the steps w and v of two parameters, Σ_d ∂ℓ/∂f_d ∂²f_d/∂w∂v and ∂²f_d/∂w∂v, in
    symbols.

    Two outputs affine in w and in v, and any loss: to second order, which is all that H sees.
    """
    w, v = sympy.symbols("w v")
    b, c, e, slope = (sympy.symbols(f"{letter}:2") for letter in "bceg")
    f = [b[d] * w + c[d] * v + e[d] * w * v for d in range(2)]
    A = theory.symmetric_symbols(2, "a")
    J = sympy.Matrix([[b[d], c[d]] for d in range(2)])
    loss = (
        sum(slope[d] * f[d] for d in range(2))
        + sum(A[i, j] * f[i] * f[j] for i in range(2) for j in range(2)) / 2
    )
    terms = sympy.Poly(loss, w, v).as_dict()
    H = sympy.Matrix([[2 * terms[2, 0], terms[1, 1]], [terms[1, 1], 2 * terms[0, 2]]])
    return H - J.T * A * J, slope[0] * e[0] + slope[1] * e[1], e


@claim(
    "G1",
    "Where the outputs are piecewise linear in each single parameter, diag H = diag G almost "
    "everywhere. Such networks use ReLU, leaky ReLU, max and average pooling, residual sums, "
    "eval-mode batch norm and untied weights.",
    formula=r"H_{ii}-G_{ii}=\frac1N\sum_{n,d}\frac{\partial\ell_n}{\partial f_{nd}}"
    r"\frac{\partial^2f_{nd}}{\partial\theta_i^2}=0",
    reason="∂²f/∂θ_i² = 0 leaves of ∂²ℓ(f)/∂θ_i² the curvature of the loss alone",
    subject=gauss_newton,
    mutants=[
        wrong.empirical_fisher,
        wrong.ggn_of_independent_outputs,
        wrong.ggn_unweighted,
        wrong.ggn_of_last_batch,
        wrong.ggn_just_outside_rounding,
    ],
    seconds=5,
)
def diagonals_agree_where_outputs_are_piecewise_linear(
    matrix: MatrixOf, context: Context
) -> Iterator[Check]:
    """Symbols for any loss, and both diagonals of every network."""
    R, mixed, _ = _symbolic_residual()
    name = (
        "any loss, two outputs affine in w and in v: diag H = diag G, H_wv − G_wv = Σ_d "
        "∂ℓ/∂f_d ∂²f_d/∂w∂v"
    )
    yield symbolic(name, R.tolist(), [[0, mixed], [mixed, 0]])
    for case in piecewise_linear(context):
        yield exact(
            f"{case}: every diagonal entry of H and G",
            matrix(case.problem).diagonal(),
            case.H.diagonal(),
            magnitude=2 * slopes(case),
            terms=roundings(case, 1),
        )


@claim(
    "G1.a",
    "Hence the outputs of a piecewise linear network give tr H_ll for every block of every "
    "partition, exactly and without a probe.",
    formula=r"\operatorname{tr}H_{ll}=\operatorname{tr}G_{ll}",
    reason="G1, summed over the block",
    rests_on=["G1", "G4"],
    subject=exact_traces,
    mutants=[
        wrong.traces_at_labels,
        wrong.traces_unweighted,
        wrong.traces_shifted,
        wrong.traces_just_outside_rounding,
    ],
)
def exact_traces_of_every_partition(traces: TracesOf, context: Context) -> Iterator[Check]:
    """Traces by layer, tensor, module and network against the dense Hessian."""
    for case in piecewise_linear(context)[: 1 if context.profile == "smoke" else None]:
        for name, partition in _partitions(case.problem.model).items():
            problem = case.problem.with_partition(partition)
            yield exact(
                f"{case}: tr H_ll by {name}",
                traces(problem).value,
                [float(case.H.diagonal()[index].sum()) for index in problem.index.values()],
                magnitude=[
                    2 * float(slopes(case)[index].sum()) for index in problem.index.values()
                ],
                terms=roundings(case, 1),
            )


def _partitions(model: nn.Module) -> dict[str, Partition]:
    everything = Partition.by(model, lambda name: "all parameters")
    return {
        "layer": Partition.by_layer(model),
        "tensor": Partition.by_tensor(model),
        "top module": Partition.by_module(model),
        "network": everything,
    }


# Blocks of other networks in which the outputs are piecewise linear as a whole.
_LINEAR_IN = {
    "tiny_mlp": ("layer2",),
    "tanh_mlp": ("layer3",),
    "gelu_mlp": ("layer3",),
    "residual": ("block2.outer", "head"),
    "rnn": ("head",),
    "relu_rnn": ("input", "head"),
    "autoencoder": ("down",),
    "relu_autoencoder": ("up", "down"),
    "attention": ("contract", "head"),
    "plain_attention": ("value", "output", "expand", "contract", "head"),
}


@claim(
    "G2",
    "Where the outputs are piecewise linear in a whole layer, the block itself agrees: H_ll = "
    "G_ll. The last linear layer always is such a layer. Blocks off the diagonal keep a residual.",
    formula=r"H_{ll}=G_{ll},\qquad R_{lm}=\frac1N\sum_{n,d}\frac{\partial\ell_n}{\partial f_{nd}}"
    r"\frac{\partial^2f_{nd}}{\partial\theta_l\partial\theta_m}\neq0",
    reason="∂²f/∂θ_l∂θ_l = 0, but outputs are products of weights of different layers",
    subject=gauss_newton,
    mutants=[
        wrong.hessian_for_ggn,
        wrong.empirical_fisher,
        wrong.ggn_of_independent_outputs,
        wrong.ggn_just_outside_rounding,
    ],
    seconds=6,
)
def blocks_agree_where_outputs_are_linear_in_a_layer(
    matrix: MatrixOf, context: Context
) -> Iterator[Check]:
    """Symbols, two weights, and both blocks of every network."""
    R, _, mixed = _symbolic_residual()
    yield symbolic(
        "any loss, two outputs affine in w and v jointly: H = G",
        R.subs(dict.fromkeys(mixed, 0)),
        sympy.zeros(2),
    )
    yield from _product_of_two_weights(matrix)
    found = [case for case in context.cases() if case.network in _LINEAR_IN] + piecewise_linear(
        context
    )
    for case in found:
        G = matrix(case.problem)
        for l in _LINEAR_IN.get(case.network, tuple(case.problem.index)):
            root = slopes(case)[case.problem.index[l]].sqrt()
            yield exact(
                f"{case}: H_ll = G_ll, {l}",
                cut(G, case.problem.index, l, l),
                case.block(l, l),
                magnitude=2 * root[:, None] * root,
                terms=roundings(case, 1),
            )
        if case.network not in _LINEAR_IN:
            yield _residual_off_the_diagonal(case, G)


def _product_of_two_weights(matrix: MatrixOf) -> Iterator[Check]:
    """½(v·w·x − y)² at w = 2, v = 3, x = y = 1: R_wv = (vwx − y)x = 5."""
    model = nn.Sequential(*(blank(nn.Linear, 1, 1, bias=False) for _ in range(2))).double()
    nn.init.constant_(model[0].weight, 2.0)
    nn.init.constant_(model[1].weight, 3.0)
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = Problem(model, zoo.half_squared_error, [(one, one)])
    H = hessian(problem).to_dense()
    G = matrix(problem)
    scale = {"magnitude": 36.0, "terms": 16}
    yield exact("½(v·w·x − y)²: H = [[9, 11], [11, 4]]", H, [[9, 11], [11, 4]], **scale)
    yield exact("½(v·w·x − y)²: R = H − G = [[0, 5], [5, 0]]", H - G, [[0, 5], [5, 0]], **scale)


def _residual_off_the_diagonal(case: Case, G: Tensor) -> Check:
    """The pair of layers whose residual is largest."""
    blocks = list(case.problem.index)
    sizes = slopes(case).sqrt()
    pairs = {}
    for l, m in [(l, m) for n, l in enumerate(blocks) for m in blocks[:n]]:
        gap = float((case.block(l, m) - cut(G, case.problem.index, l, m)).norm())
        scale = 2 * float(sizes[case.problem.index[l]].norm() * sizes[case.problem.index[m]].norm())
        pairs[l, m] = gap, float(case.block(l, m).norm()), roundings(case, 1) * EPS * scale
    (l, m), (gap, whole, rounding) = max(pairs.items(), key=lambda item: item[1][0])
    detail = (
        f"‖R_lm‖ = {gap:.3g} beside ‖H_lm‖ = {whole:.3g} for {l} and {m}; rounding {rounding:.1g}"
    )
    return holds(f"{case}: a residual off the diagonal", gap > rounding, detail)


# --- G3: where the identity ends ------------------------------------------------------------------
@lru_cache
def _of_kinks() -> Check:
    x, w = sympy.symbols("x w", real=True)
    sample = sympy.Piecewise((x - w, x > w), (0, True))
    risk = sympy.integrate(x - w, (x, w, 1))
    almost_everywhere = sympy.piecewise_fold(sample.diff(w, 2))
    return symbolic(
        "E relu(x − w), x uniform on [0, 1]: curvature 0 almost everywhere, 1 in the expectation",
        [almost_everywhere, risk.diff(w, 2)],
        [0, 1],
    )


@claim(
    "G3",
    "G1 needs every output affine in each single weight. It breaks with a weight tied in series "
    "(recurrent matrix, tied autoencoder), below batch norm in train mode and layer norm, in "
    "attention's queries and keys and what feeds them, and below smooth activations. In the same "
    "networks other tensors stay exact: recurrent input weights, biases, the gains of a norm, "
    "values, outputs and the MLP of a transformer without norm, and the last layer. Caveat: the "
    "almost-everywhere Hessian of a ReLU network is not the curvature of its expected risk. The "
    "kinks add to that: E|relu(x − w)| has 0 almost everywhere against a true 1.",
    formula=r"\frac{\partial^2f}{\partial\theta_i^2}\neq0\;\Rightarrow\;\operatorname{tr}H_{ll}\neq"
    r"\operatorname{tr}G_{ll};\qquad\frac{d^2}{dw^2}\,\mathbb E\,|\mathrm{relu}(x-w)|=p(w)",
    reason="one counterexample each, found on the graph of the outputs and confirmed on the dense "
    "matrices.",
    rests_on=["G1", "G2"],
    subject=exact_traces,
    mutants=[
        wrong.traces_unasked,
        wrong.traces_asking_for_activations,
        wrong.traces_tolerating_a_thousandth,
        wrong.traces_always_refused,
        wrong.traces_blaming_the_first_module,
    ],
)
def where_the_identity_ends(traces: TracesOf, context: Context) -> Iterator[Check]:
    """Counterexamples that must be refused, and networks that must be accepted."""
    yield _of_kinks()
    for example in counterexamples(context):
        yield from _bends_only(example)
        refusal = _refusal(traces, example.case.problem)
        yield holds(
            f"{example.name}: refused, naming {example.module}",
            example.module in refusal,
            refusal or "accepted",
        )
    for case in piecewise_linear(context):
        refusal = _refusal(traces, case.problem)
        yield holds(f"{case}: accepted", not refusal, refusal or "accepted")


def _bends_only(example: Counterexample) -> Iterator[Check]:
    case = example.case
    spans = example.case.problem.offsets
    H = case.H.diagonal()
    G = dense_ggn(case).diagonal()
    magnitude = 2 * slopes(case)
    terms = roundings(case, 1)
    bent = {name: slice(*spans[name]) for name in example.bent}
    bends = all(
        bool(((H - G).abs() > terms * EPS * magnitude)[span].any()) for span in bent.values()
    )
    shown = ", ".join(
        f"{name} {float((H - G)[span].sum() / H[span].sum()):.2g}" for name, span in bent.items()
    )
    yield holds(
        f"{example.name}: H_ii ≠ G_ii in {', '.join(bent)}", bends, f"(tr H − tr G)/tr H: {shown}"
    )
    straight = [name for name in spans if name not in bent]
    rest = torch.cat([torch.arange(*spans[name]) for name in straight])
    name = f"{example.name}: H_ii = G_ii in {', '.join(straight)}"
    yield exact(name, G[rest], H[rest], magnitude=magnitude[rest], terms=terms)


def _refusal(traces: TracesOf, problem: Problem) -> str:
    try:
        traces(problem)
    except NotPiecewiseLinear as error:
        return str(error)
    return ""


# --- G4: traces from the outputs ------------------------------------------------------------------
@lru_cache
def _softmax_root() -> list[Check]:
    """S = diag(√p) − p√pᵀ for three classes, with √p the entries of a unit vector."""
    s = [*sympy.symbols("s:2", positive=True)]
    s.append(sympy.sqrt(1 - s[0] ** 2 - s[1] ** 2))
    p = [root**2 for root in s]
    S = sympy.Matrix(3, 3, lambda i, j: (s[i] if i == j else 0) - p[i] * s[j])
    H = sympy.Matrix(3, 3, lambda i, j: (p[i] if i == j else 0) - p[i] * p[j])
    return [
        symbolic(
            "cross-entropy: SSᵀ = diag(p) − ppᵀ for S = diag(√p) − p√pᵀ",
            (S * S.T).tolist(),
            H.tolist(),
        ),
        symbolic(
            "cross-entropy: (diag(p) − ppᵀ)1 = 0, so C − 1 columns do",
            list(H * sympy.ones(3, 1)),
            [0, 0, 0],
        ),
    ]


@claim(
    "G4",
    "tr G_ll = (1/N) Σ_n ‖S_nᵀJ_nl‖², with S_nS_nᵀ the loss Hessian in the outputs. The trace is "
    "exact and needs no probe, for any loss that is convex in the outputs. It costs one backward "
    "pass for every column of S, C − 1 for cross-entropy.",
    formula=r"\operatorname{tr}G_{ll}"
    r"=\frac1N\sum_n\lVert S_n^{\top}J_{nl}\rVert^2,\quad S_nS_n^{\top}"
    r"=\nabla_f^2\ell_n",
    reason="tr JᵀSSᵀJ = ‖SᵀJ‖²; layers give per-sample norms from one backward pass",
    subject=exact_traces,
    mutants=[
        wrong.traces_of_independent_outputs,
        wrong.traces_of_summed_gradients,
        wrong.traces_with_a_column_per_class,
        wrong.traces_unweighted,
        wrong.traces_just_outside_rounding,
    ],
    seconds=4,
)
def traces_from_the_outputs(traces: TracesOf, context: Context) -> Iterator[Check]:
    """The root of the softmax, backward passes counted, and traces of the dense matrix."""
    yield from _softmax_root()
    of_losses = with_other_losses(context.case("tiny_relu"))
    of_ggn = partial(traces, matrix=ggn)
    for loss, case in of_losses.items():
        columns = 2 if loss == "cross-entropy" else 3
        name = (
            f"{case}: one backward pass for each of {columns} columns and 2 batches, after "
            "the trial of the rules"
        )
        yield exact(
            name, passes(case.problem, of_ggn), passes(case.problem, rules_that_hold) + 2 * columns
        )
    for case in [*of_losses.values(), *context.cases()]:
        yield exact(
            f"{case}: tr G_ll of the dense matrix",
            of_ggn(case.problem).value,
            [
                float(cut(dense_ggn(case), case.problem.index, l, l).trace())
                for l in case.problem.index
            ],
            magnitude=[
                2 * float(slopes(case)[index].sum()) for index in case.problem.index.values()
            ],
            terms=roundings(case, 1),
        )
