"""Claims G1 to G4: where the Gauss-Newton matrix has the diagonal of the Hessian, and its traces without a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import theory, zoo
from hesstheory.claims.context import TRAINED_STEPS, Case, Context
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
from hesstheory.run.streams import stream
from hesstheory.zoo.initial import blank
from hesstheory_validation.gauss_newton import wrong
from hesstheory_validation.tied_weights.wrong import plain_risk
from hesstheory_validation.unbiasedness.claims import roundings

EPS = float(np.finfo(np.float64).eps)

_leaky = partial(nn.LeakyReLU, 0.1)


# --- networks -------------------------------------------------------------------------------------------------------
def _residual() -> nn.Module:
    return nn.Sequential(
        blank(nn.Linear, 6, 4), zoo.ResidualBlock(4, nn.ReLU), blank(nn.Linear, 4, 3)
    )


def _pooled() -> nn.Module:
    return nn.Sequential(
        blank(nn.Conv2d, 1, 3, 3), _leaky(), nn.AvgPool2d(2), blank(nn.Conv2d, 3, 4, 2), nn.Hardtanh(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), blank(nn.Linear, 4, 3),
    )  # fmt: skip


_NETWORKS = {
    "relu_residual": (_residual, partial(zoo.digits, 6, 3)),
    "pooled_cnn": (_pooled, partial(zoo.digit_images, 3)),
}


@lru_cache(maxsize=16)
def _own_case(network: str, steps: int, seed: int) -> Case:
    """A network that the zoo has not, after some steps of gradient descent on its 33 samples."""
    build, data = _NETWORKS[network]
    model, (inputs, targets) = build().double(), data(num_samples=33)
    zoo.initialise(model, inputs, stream(seed, "network", network))
    problem = Problem(
        model, F.cross_entropy, [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])]
    )
    for _ in range(steps):
        risk = plain_risk(problem, model)
        for p, slope in zip(
            model.parameters(), torch.autograd.grad(risk, list(model.parameters())), strict=True
        ):
            p.data.sub_(0.2 * slope)
    return Case(network, f"trained {steps} steps" if steps else "untrained", problem)


def piecewise_linear(context: Context) -> list[Case]:
    """MLP, convolutions with eval-mode batch norm and with pooling, residual sums; large ones in the full profile."""
    if context.profile == "smoke":
        return [context.case("tiny_relu"), _own_case("relu_residual", 0, context.seed)]
    cases = context.cases([name for name, network in zoo.SMALL.items() if network.piecewise_linear])
    cases += [
        _own_case(name, steps, context.seed) for name in _NETWORKS for steps in (0, TRAINED_STEPS)
    ]
    return cases + (context.cases(["digits_relu_mlp", "digits_cnn"]) if context.is_thorough else [])


@lru_cache(maxsize=64)
def slope_squares(case: Case) -> Tensor:
    """The diagonal t of JᵀJ/N. However small G_ij is where the softmax is sure, it is rounded like 2 √(t_i t_j)."""
    problem, t = case.problem, torch.zeros(case.problem.num_params, dtype=torch.float64)
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        t += weight * wrong.output_jacobian(problem, problem.outputs(batch)).square().sum(1).mean(0)
    return t


def slopes(case: Case) -> Tensor:
    """The largest t of each tensor: slopes are sums that may cancel, rounded like the others of their tensor."""
    t = slope_squares(case)
    return torch.cat([t[a:b].max().expand(b - a) for a, b in case.problem.offsets.values()])


@lru_cache(maxsize=64)
def gauss_newton(problem: Problem) -> Tensor:
    """The dense Gauss-Newton matrix."""
    return ggn(problem).to_dense()


def dense_ggn(case: Case) -> Tensor:
    """G of a network."""
    return gauss_newton(case.problem)


def cut(M: Tensor, case: Case, l: str, m: str) -> Tensor:
    """The block (l, m) of a matrix over the parameters."""
    return M[case.problem.index[l]][:, case.problem.index[m]]


# --- G1 and G2: one parameter, one layer ----------------------------------------------------------------------------
@lru_cache
def _symbolic_residual() -> tuple[Any, Any, Any]:
    """H − G in the steps w and v of two parameters, Σ_d ∂ℓ/∂f_d ∂²f_d/∂w∂v and ∂²f_d/∂w∂v, in symbols.

    Two outputs affine in w and in v, and any loss: to second order, which is all that H sees.
    """
    w, v = sympy.symbols("w v")
    b, c, e, slope = (sympy.symbols(f"{letter}:2") for letter in "bceg")
    f = [b[d] * w + c[d] * v + e[d] * w * v for d in range(2)]
    A, J = theory.symmetric_symbols(2, "a"), sympy.Matrix([[b[d], c[d]] for d in range(2)])
    loss = (
        sum(slope[d] * f[d] for d in range(2))
        + sum(A[i, j] * f[i] * f[j] for i in range(2) for j in range(2)) / 2
    )
    terms = sympy.Poly(loss, w, v).as_dict()
    H = sympy.Matrix([[2 * terms[2, 0], terms[1, 1]], [terms[1, 1], 2 * terms[0, 2]]])
    return H - J.T * A * J, slope[0] * e[0] + slope[1] * e[1], e


@claim(
    "G1",
    "Where the outputs are piecewise linear in each single parameter (ReLU, leaky ReLU, max and average pooling, "
    "residual sums, eval-mode batch norm, untied weights) diag H = diag G almost everywhere.",
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
)
def diagonals_agree_where_outputs_are_piecewise_linear(
    matrix: Any, context: Context
) -> Iterator[Check]:
    R, mixed, _ = _symbolic_residual()
    name = "any loss, two outputs affine in w and in v: diag H = diag G, H_wv − G_wv = Σ_d ∂ℓ/∂f_d ∂²f_d/∂w∂v"
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
    "Hence tr H_ll for every block of every partition, exactly and without a probe, from the outputs of a piecewise "
    "linear network.",
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
def exact_traces_of_every_partition(traces: Any, context: Context) -> Iterator[Check]:
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
    return {"layer": Partition.by_layer(model), "tensor": Partition.by_tensor(model),
            "top module": Partition.by_module(model), "network": everything}  # fmt: skip


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
    "Where the outputs are piecewise linear in a whole layer, the block itself: H_ll = G_ll. The last linear layer "
    "always is such a layer. Blocks off the diagonal keep a residual.",
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
)
def blocks_agree_where_outputs_are_linear_in_a_layer(
    matrix: Any, context: Context
) -> Iterator[Check]:
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
                cut(G, case, l, l),
                case.block(l, l),
                magnitude=2 * root[:, None] * root,
                terms=roundings(case, 1),
            )
        if case.network not in _LINEAR_IN:
            yield _residual_off_the_diagonal(case, G)


def _product_of_two_weights(matrix: Any) -> Iterator[Check]:
    """½(v·w·x − y)² at w = 2, v = 3, x = y = 1: R_wv = (vwx − y)x = 5."""
    model = nn.Sequential(*(blank(nn.Linear, 1, 1, bias=False) for _ in range(2))).double()
    nn.init.constant_(model[0].weight, 2.0)
    nn.init.constant_(model[1].weight, 3.0)
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = Problem(model, zoo.half_squared_error, [(one, one)])
    H, G = hessian(problem).to_dense(), matrix(problem)
    scale = {"magnitude": 36.0, "terms": 16}
    yield exact("½(v·w·x − y)²: H = [[9, 11], [11, 4]]", H, [[9, 11], [11, 4]], **scale)
    yield exact("½(v·w·x − y)²: R = H − G = [[0, 5], [5, 0]]", H - G, [[0, 5], [5, 0]], **scale)


def _residual_off_the_diagonal(case: Case, G: Tensor) -> Check:
    """The pair of layers whose residual is largest."""
    blocks, sizes = list(case.problem.index), slopes(case).sqrt()
    pairs = {}
    for l, m in [(l, m) for n, l in enumerate(blocks) for m in blocks[:n]]:
        gap = float((case.block(l, m) - cut(G, case, l, m)).norm())
        scale = 2 * float(sizes[case.problem.index[l]].norm() * sizes[case.problem.index[m]].norm())
        pairs[l, m] = gap, float(case.block(l, m).norm()), roundings(case, 1) * EPS * scale
    (l, m), (gap, whole, rounding) = max(pairs.items(), key=lambda item: item[1][0])
    detail = (
        f"‖R_lm‖ = {gap:.3g} beside ‖H_lm‖ = {whole:.3g} for {l} and {m}; rounding {rounding:.1g}"
    )
    return holds(f"{case}: a residual off the diagonal", gap > rounding, detail)


# --- G3: where the identity ends ------------------------------------------------------------------------------------
class NearlyLinear(nn.Module):
    """x ↦ leaky ReLU(x) + tanh(x)/4096."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.1) + x.tanh() / 4096


@dataclass(frozen=True)
class Counterexample:
    """A network whose outputs bend in the tensors `bent` alone; `module` is what the refusal must name."""

    name: str
    case: Case
    bent: tuple[str, ...]
    module: str


def _mlp(act: nn.Module, norm: nn.Module | None = None) -> nn.Sequential:
    """first, norm if there is one, act, head; batch norm would take a bias out again."""
    model = nn.Sequential()
    model.add_module("first", blank(nn.Linear, 4, 5, bias=not isinstance(norm, nn.BatchNorm1d)))
    if norm is not None:
        model.add_module("norm", norm)
    model.add_module("act", act)
    model.add_module("head", blank(nn.Linear, 5, 3))
    return model


@lru_cache(maxsize=2)
def _counterexamples(context: Context) -> list[Counterexample]:
    rows, vectors = zoo.digit_rows(3, 6), zoo.digits(4, 3, 6)
    to_itself = zoo.Data(vectors.inputs, vectors.inputs)
    first, attending = (
        ("first.weight", "first.bias"),
        ("query.weight", "key.weight", "embed.weight", "embed.bias"),
    )
    table: list[tuple[str, nn.Module, zoo.Data, tuple[str, ...], str]] = [
        (
            "activation of curvature 1/4096",
            _mlp(NearlyLinear()),
            vectors,
            first,
            "'act' (NearlyLinear)",
        ),
        ("smooth activation", _mlp(nn.Tanh()), vectors, first, "'act' (Tanh)"),
        (
            "recurrent matrix",
            zoo.Recurrent(8, 2, 3, _leaky),
            rows,
            ("recurrent.weight",),
            "'' (Recurrent)",
        ),
        (
            "tied autoencoder",
            zoo.TiedAutoencoder(4, 3, _leaky),
            to_itself,
            ("up.weight",),
            "'down' (Transposed)",
        ),
        (
            "train-mode batch norm",
            _mlp(_leaky(), blank(nn.BatchNorm1d, 5)),
            vectors,
            first[:1],
            "'norm' (BatchNorm1d)",
        ),
        (
            "layer norm",
            _mlp(_leaky(), blank(nn.LayerNorm, 5)),
            vectors,
            first,
            "'norm' (LayerNorm)",
        ),
        (
            "attention",
            zoo.Attention(2, 2, 3, _leaky, norm=False),
            rows,
            attending,
            "'' (Attention)",
        ),
    ]
    return [
        Counterexample(name, _drawn(name, model, data, context), bent, f"module {module}")
        for name, model, data, bent, module in table
    ]


def _drawn(name: str, model: nn.Module, data: zoo.Data, context: Context) -> Case:
    model = model.double()
    zoo.initialise(model, data.inputs, context.generator(name))
    in_train_mode = name.startswith("train-mode")
    loss = F.mse_loss if data.targets.is_floating_point() else F.cross_entropy
    problem = Problem(
        model.train(in_train_mode),
        loss,
        [tuple(data)],
        Partition.by_tensor(model),
        allow_train_mode=in_train_mode,
    )
    return Case(name, "untrained", problem)


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
    "G1 needs every output affine in each single weight. It breaks with a weight tied in series (recurrent matrix, "
    "tied autoencoder), below batch norm in train mode and layer norm, in attention's queries and keys and what feeds "
    "them, and below smooth activations; in the same networks recurrent input weights, biases, the gains of a norm, "
    "values, outputs and the MLP of a transformer without norm, and the last layer stay exact. Caveat: the almost "
    "everywhere Hessian of a ReLU network is not the curvature of its expected risk, which the kinks add to: "
    "E|relu(x − w)| has 0 almost everywhere against a true 1.",
    formula=r"\frac{\partial^2f}{\partial\theta_i^2}\neq0\;\Rightarrow\;\operatorname{tr}H_{ll}\neq"
    r"\operatorname{tr}G_{ll};\qquad\frac{d^2}{dw^2}\,\mathbb E\,|\mathrm{relu}(x-w)|=p(w)",
    reason="one counterexample each, found on the graph of the outputs and confirmed on the dense matrices",
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
def where_the_identity_ends(traces: Any, context: Context) -> Iterator[Check]:
    yield _of_kinks()
    for example in _counterexamples(context):
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
    case, spans = example.case, example.case.problem.offsets
    H, G, magnitude, terms = (
        case.H.diagonal(),
        dense_ggn(case).diagonal(),
        2 * slopes(case),
        roundings(case, 1),
    )
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


def _refusal(traces: Any, problem: Problem) -> str:
    try:
        traces(problem)
    except NotPiecewiseLinear as error:
        return str(error)
    return ""


# --- G4: traces from the outputs ------------------------------------------------------------------------------------
class CountedPasses(nn.Module):
    """A network that counts the backward passes through it, one for every column.

    Columns that come all at once are refused, after which the library passes them one by one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.model(x)
        if outputs.requires_grad:
            outputs.register_hook(self._counted)
        return outputs

    def _counted(self, slope: Tensor) -> None:
        float(slope.sum())  # RuntimeError for several columns at once
        self.count += 1


def passes(problem: Problem, act: Callable[[Problem], Any]) -> int:
    """Backward passes of an action, through all batches together."""
    counting = CountedPasses(problem.model)
    act(Problem(counting, problem.loss_fn, problem.batches))
    return counting.count


@lru_cache(maxsize=16)
def with_other_losses(case: Case) -> dict[str, Case]:
    """The network of a classifier under three losses."""
    hot = [(x, F.one_hot(y, 3).double()) for x, y in case.problem.batches]
    squares, binary = (Problem(case.problem.model, loss, hot) for loss in (F.mse_loss, _binary))
    named = {"cross-entropy": case.problem, "squares": squares, "binary": binary}
    return {
        name: Case(case.network, f"{case.stage}, {name}", problem)
        for name, problem in named.items()
    }


def _binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets)


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
    "tr G_ll = (1/N) Σ_n ‖S_nᵀJ_nl‖², S_nS_nᵀ the loss Hessian in the outputs: an exact trace without a probe, for any "
    "loss that is convex in the outputs, from one backward pass for every column of S, C − 1 for cross-entropy.",
    formula=r"\operatorname{tr}G_{ll}=\frac1N\sum_n\lVert S_n^{\top}J_{nl}\rVert^2,\quad S_nS_n^{\top}"
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
)
def traces_from_the_outputs(traces: Any, context: Context) -> Iterator[Check]:
    yield from _softmax_root()
    of_losses, of_ggn = with_other_losses(context.case("tiny_relu")), partial(traces, matrix=ggn)
    for loss, case in of_losses.items():
        columns = 2 if loss == "cross-entropy" else 3
        name = f"{case}: one backward pass for each of {columns} columns and 2 batches, after the trial of the rules"
        yield exact(
            name, passes(case.problem, of_ggn), passes(case.problem, rules_that_hold) + 2 * columns
        )
    for case in [*of_losses.values(), *context.cases()]:
        yield exact(
            f"{case}: tr G_ll of the dense matrix",
            of_ggn(case.problem).value,
            [float(cut(dense_ggn(case), case, l, l).trace()) for l in case.problem.index],
            magnitude=[
                2 * float(slopes(case)[index].sum()) for index in case.problem.index.values()
            ],
            terms=roundings(case, 1),
        )
