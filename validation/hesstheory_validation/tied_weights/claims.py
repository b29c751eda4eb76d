"""Claims T7 to T9: one tensor used several times, what separate probes get wrong, and how PyTorch loses a tie."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hesstheory import theory, zoo
from hesstheory.claims.context import TRAINED_STEPS, Case, Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import ggn, hessian
from hesstheory.curvature.uses import unrolled_hessian
from hesstheory.estimators.enumerations import hadamard_columns
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory_validation.crossover.claims import slope_squares
from hesstheory_validation.tied_weights import wrong
from hesstheory_validation.unbiasedness.claims import roundings

EPS = np.finfo(np.float64).eps


# --- networks with and without the tie ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tie:
    """A tied tensor, and the same network with a tensor of its own for every use, named in the order of use."""

    tied: Case
    tensor: str
    untied: Case
    instances: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.tied.network}, {self.tensor}, {self.tied.stage}"

    @cached_property
    def U(self) -> Tensor:
        """The unrolled Hessian."""
        return unrolled_hessian(self.tied.problem, self.tensor)

    @cached_property
    def H_w(self) -> Tensor:
        """The Hessian of the tied tensor."""
        w = slice(*self.tied.problem.offsets[self.tensor])
        return self.tied.H[w, w]

    @cached_property
    def rows(self) -> Tensor:
        """Positions of the instances among the parameters of the untied network, instances × n."""
        return torch.stack(
            [torch.arange(*self.untied.problem.offsets[name]) for name in self.instances]
        )

    def cut(self, M: Tensor) -> Tensor:
        """The blocks of the instances in a matrix over the untied parameters, in the shape of U."""
        T, n = self.rows.shape
        return M[self.rows.flatten()][:, self.rows.flatten()].reshape(T, n, T, n)

    @cached_property
    def entry(self) -> float:
        """What an entry of U is made of: the largest one, and what cancels inside."""
        return float(self.untied.H.abs().max() + 2 * _slopes(self.untied).max())

    @cached_property
    def form(self) -> float:
        """What Σ_r q_r is made of when the probes are signs: the rows of the instances, and what cancels inside."""
        t, rows = _slopes(self.untied), self.rows.flatten()
        return float(self.untied.H[rows].abs().sum() + 2 * t[rows].sqrt().sum() * t.sqrt().sum())

    def terms(self, num_probes: int = 1) -> int:
        return roundings(self.untied, num_probes)


@lru_cache(maxsize=64)
def _slopes(case: Case) -> Tensor:
    return slope_squares(case.problem)


class ManyUses(nn.Module):
    """W_T ⋯ W_1 x in series, or Σ_r W_r x_r in parallel (inputs n×T×d); the weights may be one and the same."""

    def __init__(self, weights: Sequence[nn.Parameter], *, series: bool) -> None:
        super().__init__()
        self.weights, self.series = nn.ParameterList(weights), series

    def forward(self, x: Tensor) -> Tensor:
        if not self.series:
            return torch.stack([F.linear(x[:, r], W) for r, W in enumerate(self.weights)]).sum(0)
        for W in self.weights:
            x = F.linear(x, W)
        return x


class UnrolledRecurrent(nn.Module):
    """A recurrent network with weights of its own for every step."""

    def __init__(self, model: zoo.Recurrent, num_steps: int) -> None:
        super().__init__()
        self.input = nn.ModuleList(copy.deepcopy(model.input) for _ in range(num_steps))
        self.recurrent = nn.ModuleList(copy.deepcopy(model.recurrent) for _ in range(num_steps - 1))
        self.act, self.head = model.act, copy.deepcopy(model.head)

    def forward(self, rows: Tensor) -> Tensor:
        first, *rest = rows.unbind(1)
        state = self.act(self.input[0](first))
        for row, enter, recur in zip(rest, self.input[1:], self.recurrent, strict=True):
            state = self.act(enter(row) + recur(state))
        return self.head(state)


def _own_weight(model: nn.Module, owner: str) -> nn.Module:
    """A copy of the model, one module of which has a weight of its own."""
    model = copy.deepcopy(model)
    module = model.get_submodule(owner)
    module.weight = nn.Parameter(module.weight.detach().clone())
    return model


def _untied(case: Case, model: nn.Module) -> Case:
    problem = Problem(model, case.problem.loss_fn, case.problem.batches, Partition.by_tensor(model))
    return Case(f"{case.network}, untied", case.stage, problem)


@lru_cache(maxsize=32)
def _ties_of(case: Case) -> tuple[Tie, ...]:
    """The ties of a network of the zoo."""
    model = case.problem.model
    if isinstance(model, zoo.TiedAutoencoder):
        return (
            Tie(
                case,
                "up.weight",
                _untied(case, _own_weight(model, "down")),
                ("up.weight", "down.weight"),
            ),
        )
    T = case.problem.batches[0][0].shape[1]
    untied = _untied(case, UnrolledRecurrent(model, T))
    uses = {"input.weight": T, "input.bias": T, "recurrent.weight": T - 1}
    return tuple(
        Tie(case, name, untied, tuple(name.replace(".", f".{t}.") for t in range(count)))
        for name, count in uses.items()
    )


def _network_ties(context: Context) -> list[Tie]:
    if context.profile == "smoke":
        return list(_ties_of(context.case("autoencoder")))
    names = ("rnn", "relu_rnn", "autoencoder", "relu_autoencoder")
    return [
        tie
        for name in names
        for steps in (0, TRAINED_STEPS)
        for tie in _ties_of(context.case(name, steps))
    ]


@lru_cache(maxsize=32)
def _pairs(context: Context, sign: int) -> list[tuple[Tie, zoo.TiedPair]]:
    """The zoo's parallel and series tie and its linear autoencoder whose bias has the given sign."""
    drawn = zoo.tied_pairs(sign, context.generator("pairs", str(sign)))
    owners = [("first", "second"), ("first", "second"), ("up", "down")]
    found = []
    for pair, (first, second) in zip([*drawn, _autoencoder(context, sign)], owners, strict=True):
        case = Case(pair.name, f"bias {'−0+'[sign + 1]}", pair.problem)
        untied = _untied(case, _own_weight(pair.problem.model, second))
        found.append(
            (Tie(case, f"{first}.weight", untied, (f"{first}.weight", f"{second}.weight")), pair)
        )
    return found


def _autoencoder(context: Context, sign: int) -> zoo.TiedPair:
    return zoo.linear_autoencoder(sign, context.generator("autoencoder", str(sign)))


def _many_uses(name: str, weight: Tensor, times: int, x: Tensor, y: Tensor, *, series: bool) -> Tie:
    shared = nn.Parameter(weight)
    model = ManyUses([shared] * times, series=series)
    case = Case(name, f"T = {times}", Problem(model, zoo.half_squared_error, [(x, y)]))
    own = ManyUses([nn.Parameter(weight.clone()) for _ in range(times)], series=series)
    return Tie(case, "weights.0", _untied(case, own), tuple(f"weights.{r}" for r in range(times)))


@lru_cache(maxsize=32)
def _square(y: float) -> Tie:
    """½(w·w·x − y)² at w = x = 1: U = [[1, 2−y], [2−y, 1]], the bias is 2y − 4, and U ⪰ 0 for 1 ≤ y ≤ 3."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return _many_uses(f"w·w·x, y = {y:g}", one, 2, one, y * one, series=True)


# --- T7 -------------------------------------------------------------------------------------------------------------
def _symbolic_unrolled(U: Any) -> np.ndarray:
    """A symmetric 6×6 sympy matrix as the unrolled Hessian of three instances of two entries."""
    return np.array(U.tolist(), dtype=object).reshape(3, 2, 3, 2)


@lru_cache
def _symbolic_bias() -> tuple[np.ndarray, Any]:
    """U in symbols, and E Σ_r z_rᵀ(Uz)_r − tr Σ_rs U_rs for independent z_r."""
    flat, z = theory.symmetric_symbols(6), sympy.symbols("z:6")
    form = sum(z[i] * flat[i, j] * z[j] for i in range(6) for j in range(6))
    U = _symbolic_unrolled(flat)
    return U, theory.expectation(form, z, {1: 0, 2: 1}) - sum(
        U[r, i, s, i] for r, i, s in np.ndindex(3, 2, 3)
    )


@lru_cache(maxsize=32)
def _separate_traces(untied: Case) -> Any:
    """Mean of every tensor's estimate over all Hadamard columns: the expectation under independent probes."""
    return LayerwiseTrace()(
        untied.problem, probes=hadamard_columns(untied.problem.num_params)
    ).value


def _separate_trace(tie: Tie) -> float:
    blocks = {names[0]: block for block, names in tie.untied.problem.partition.blocks.items()}
    return float(sum(_separate_traces(tie.untied)[blocks[name]] for name in tie.instances))


@claim(
    "T7",
    "Instances r = 1..T of one tensor, unrolled Hessian U: H_w = Σ_rs U_rs, so estimating with independent probes per "
    "instance is off by −Σ_{r≠s} tr U_rs; the sign can be +, − or 0.",
    formula=r"\mathbb{E}\sum_r z_r^{\top}(Uz)_r-\operatorname{tr}H_w=-\sum_{r\neq s}\operatorname{tr}U_{rs}",
    source="[LHT]",
    reason="independent probes see the blocks U_rr only; H_w is the sum of all blocks, by the chain rule",
    rests_on=["T1", "T7.a"],
    subject=theory.tied_bias,
    mutants=[
        wrong.tied_bias_reversed,
        wrong.tied_bias_pairs_once,
        wrong.tied_bias_of_neighbours,
        wrong.tied_bias_none,
        wrong.tied_bias_just_outside_rounding,
    ],
)
def bias_of_separate_probes(formula: Any, context: Context) -> Iterator[Check]:
    U, bias = _symbolic_bias()
    yield symbolic("bias for T = 3, n = 2", bias, formula(U))
    for sign in (-1, 0, 1):
        for tie, pair in _pairs(context, sign):
            yield from _known_bias(formula, tie, pair.trace, pair.bias)
        tie = _square(2 + 2 * sign)
        yield from _known_bias(formula, tie, 2 - 4 * sign, 4 * sign)
        bias = float(formula(tie.U))
        yield holds(
            f"{tie}: the sign of the bias is {'−0+'[sign + 1]}", np.sign(bias) == sign, f"{bias:g}"
        )
    for tie in _network_ties(context):
        yield _measured_bias(formula, tie)


def _known_bias(formula: Any, tie: Tie, trace: float, bias: float) -> Iterator[Check]:
    yield exact(
        f"{tie}: closed forms of trace and bias",
        [float(tie.H_w.trace()), float(formula(tie.U))],
        [trace, bias],
        magnitude=tie.form,
        terms=tie.terms(),
    )
    yield _measured_bias(formula, tie)


def _measured_bias(formula: Any, tie: Tie) -> Check:
    separate, trace = _separate_trace(tie), float(tie.H_w.trace())
    row = {
        "example": tie.tied.network, "tensor": tie.tensor, "stage": tie.tied.stage, "instances": len(tie.U),
        "exact_trace": trace, "separate_trace": separate, "bias": separate - trace, "bound_low": None,
        "bound_high": None,
    }  # fmt: skip
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
    "The blocks U_rs between the uses of a tied tensor are those of the network with a tensor of its own for every "
    "use, and H_w = Σ_rs U_rs.",
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
)
def unrolled_blocks_add_up(unroll: Any, context: Context) -> Iterator[Check]:
    pairs = [tie for sign in (-1, 1) for tie, _ in _pairs(context, sign)]
    for tie in [*pairs, *_network_ties(context)]:
        U = unroll(tie.tied.problem, tie.tensor)
        scale = {"magnitude": tie.entry, "terms": tie.terms()}
        yield exact(f"{tie}: U_rs of the untied network", U, tie.cut(tie.untied.H), **scale)
        yield exact(
            f"{tie}: Σ_rs U_rs = H_w",
            U.sum((0, 2)),
            tie.H_w,
            **scale | {"magnitude": len(U) ** 2 * tie.entry},
        )


# --- T8 -------------------------------------------------------------------------------------------------------------
@claim(
    "T8",
    "For U ⪰ 0 the bias of separate probes lies in [−(T−1) Σ_r tr U_rr, Σ_r tr U_rr]; both ends are attained.",
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
def bias_lies_within_bounds(bounds: Any, context: Context) -> Iterator[Check]:
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


def _sums_of_squares(bounds: Any) -> Iterator[Check]:
    B = sympy.Matrix(2, 6, lambda i, j: sympy.Symbol(f"b_{i}_{j}", real=True))
    U, parts = _symbolic_unrolled(B.T * B), [B[:, 2 * r : 2 * r + 2] for r in range(3)]
    bias, found = theory.tied_bias(U), bounds(U)

    def square(A: Any) -> Any:
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
    same, cancelling = torch.stack([x, x, x], 1), torch.stack([x, -0.25 * x, -0.75 * x], 1)
    ties = {
        "low": _many_uses("three equal inputs", W, 3, same, x, series=False),
        "high": _many_uses("three inputs that add up to 0", W, 3, cancelling, x, series=False),
    }
    return {end: (str(tie), tie.U) for end, tie in ties.items()}


def _positive_examples(context: Context) -> dict[str, Tensor]:
    """Positive semi-definite U: linear networks, w·w·x near its target, Gauss-Newton matrices, ReLU input weights."""
    examples = {str(tie): tie.U for sign in (-1, 0, 1) for tie, _ in _pairs(context, sign)[:1]}
    examples |= {str(tie): tie.U for tie in map(_square, (1.0, 1.5, 2.0, 3.0))}
    for tie in _network_ties(context):
        if tie.tied.network == "relu_rnn" and tie.tensor.startswith("input"):
            examples[str(tie)] = tie.U
        examples[f"{tie}, Gauss-Newton"] = tie.cut(_gauss_newton(tie.untied))
    return examples


@lru_cache(maxsize=32)
def _gauss_newton(case: Case) -> Tensor:
    return ggn(case.problem).to_dense()


def _within(bounds: Any, name: str, U: Tensor) -> Iterator[Check]:
    T, found, bias = len(U), bounds(U), theory.tied_bias(U)
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
    "The bounds need U ⪰ 0: neither U_rr ⪰ 0 for every instance nor H_w ⪰ 0 is enough, and an indefinite U is refused.",
    formula=r"U=\begin{pmatrix}1&2-y\\2-y&1\end{pmatrix}:\quad 2y-4\in[-2,2]\iff 1\le y\le 3\iff U\succeq 0",
    reason="½(w·w·x − y)² at w = x = 1 leaves the interval at either end exactly where U loses its sign",
    rests_on=["T8"],
    subject=theory.tied_bias_bounds,
    mutants=[
        wrong.bounds_unasked,
        wrong.bounds_for_positive_diagonal,
        wrong.bounds_for_positive_blocks,
        wrong.bounds_for_positive_sum,
    ],
)
def bounds_need_a_positive_matrix(bounds: Any, context: Context) -> Iterator[Check]:
    for y in (0.0, 0.5, 0.75, 1.0, 2.0, 3.0, 3.25, 3.5, 4.0):
        tie = _square(y)
        bias, refusal = float(theory.tied_bias(tie.U)), _refusal(partial(bounds, tie.U))
        yield exact(f"y = {y:g}: bias", bias, 2 * y - 4, magnitude=tie.form, terms=tie.terms())
        yield holds(
            f"y = {y:g}: bounds are given exactly where they hold",
            (refusal == "") is (-2 <= bias <= 2),
            f"bias {bias:g}, {f'refused: {refusal}' if refusal else 'given'}",
        )


def _refusal(act: Callable[[], Any]) -> str:
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
    flat, z = theory.symmetric_symbols(6), sympy.symbols("z:2")
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
def one_shared_probe_has_no_bias(design: Any, context: Context) -> Iterator[Check]:
    yield _of_one_shared_probe()
    pairs = [tie for sign in (-1, 0, 1) for tie, _ in _pairs(context, sign)]
    for tie in [*pairs, *_network_ties(context)]:
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


# --- T9 -------------------------------------------------------------------------------------------------------------
Way = Callable[[Problem, tuple[str, str]], Tensor]


def shared_leaf(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Differentiates in the one nn.Parameter that both modules hold."""
    return wrong.own_blocks(
        wrong.plain_risk(problem, problem.model), [wrong.weight_of(problem.model, owners[0])]
    )


def reused_module(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Calls one module twice."""
    model = copy.deepcopy(problem.model)
    model.set_submodule(owners[1], model.get_submodule(owners[0]))
    return wrong.own_blocks(wrong.plain_risk(problem, model), list(model.parameters()))


def tied_functional_call(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Hands a copy under one name to functional_call, which ties by itself."""
    weight = wrong.weight_of(problem.model, owners[0]).detach().clone().requires_grad_()
    model = partial(functional_call, problem.model, {f"{owners[0]}.weight": weight})
    return wrong.own_blocks(wrong.plain_risk(problem, model), [weight])


def parametrised_original(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Differentiates in the original behind the parametrised weights."""
    model = wrong.with_parametrisation(problem.model, owners)
    original = model.get_parameter(f"{owners[0]}.parametrizations.weight.original")
    return wrong.own_blocks(wrong.plain_risk(problem, model), [original])


def checkpoint_without_reentry(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Checkpoints the first module that uses the weight with use_reentrant=False."""
    model = wrong.with_checkpoint(problem.model, owners[0], use_reentrant=False)
    return wrong.own_blocks(wrong.plain_risk(problem, model), [wrong.weight_of(model, owners[1])])


def library(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """The Hessian of this library."""
    w = slice(*problem.offsets[f"{owners[0]}.weight"])
    return hessian(problem).to_dense()[w, w]


KEEPERS: tuple[Way, ...] = (
    tied_functional_call,
    parametrised_original,
    checkpoint_without_reentry,
    library,
)

OWN_LEAVES: tuple[Way, ...] = (
    wrong.untied_functional_call,
    wrong.two_parameters_one_storage,
    wrong.parametrised_tensors,
)


def _pairs_of_modules(context: Context) -> list[tuple[Tie, tuple[str, str]]]:
    """Linear ties, in parallel and in series, held by two modules of these names."""
    return [(tie, ("first", "second")) for tie, _ in _pairs(context, 1)[:2]]


def _tied_modules(context: Context) -> list[tuple[Tie, tuple[str, str]]]:
    stages = (0,) if context.profile == "smoke" else (0, TRAINED_STEPS)
    nets = [
        (tie, ("up", "down"))
        for steps in stages
        for tie in _ties_of(context.case("autoencoder", steps))
    ]
    return [*_pairs_of_modules(context), *nets]


def _keepers(context: Context) -> Sequence[Way]:
    """All but, in the smoke profile, the one whose backward pass imports torch's compiler, a second and a half long."""
    return [
        way
        for way in KEEPERS
        if context.profile != "smoke" or way is not checkpoint_without_reentry
    ]


@claim(
    "T9",
    "In PyTorch a tie is kept by differentiating in the shared leaf and by module reuse; it is lost by "
    "named_parameters(remove_duplicate=False), functional_call(tie_weights=False), one storage in two nn.Parameters, "
    "differentiating in a parametrised tensor, allow_unused=True on a parametrised weight and reentrant checkpointing.",
    formula=r"\nabla^2_w R=\sum_{r,s}U_{rs}",
    reason="autograd adds up the uses of a leaf; it sees neither storages nor names",
    rests_on=["T7.a"],
    subject=shared_leaf,
    mutants=[
        wrong.every_alias_counted,
        wrong.untied_functional_call,
        wrong.one_alias_untied,
        wrong.two_parameters_one_storage,
        wrong.parametrised_tensors,
        wrong.unused_parametrised_tensors,
        wrong.reentrant_checkpoint,
        wrong.hessian_just_outside_rounding,
    ],
)
def pytorch_keeps_a_tie(way: Way, context: Context) -> Iterator[Check]:
    for tie, owners in _tied_modules(context):
        yield _gives(f"{tie}: H_w = Σ_rs U_rs", way, tie, owners)
        for keeper in _keepers(context):
            yield _gives(f"{tie}: {keeper.__name__.replace('_', ' ')}", keeper, tie, owners)
    for tie, owners in _pairs_of_modules(context):
        yield _gives(f"{tie}: reused module", reused_module, tie, owners)


def _gives(name: str, way: Way, tie: Tie, owners: tuple[str, str]) -> Check:
    H_w = tie.U.sum((0, 2))
    return exact(
        name,
        way(tie.tied.problem, owners),
        H_w,
        magnitude=len(tie.U) ** 2 * tie.entry,
        terms=tie.terms(),
    )


@claim(
    "T9.a",
    "A trap that gives every use a leaf of its own loses exactly the cross-instance blocks, and its trace is off by "
    "the bias of T7: functional_call(tie_weights=False) with every name, one storage in two nn.Parameters, and "
    "parametrised tensors under parametrize.cached().",
    formula=r"\sum_r\operatorname{tr}U_{rr}-\operatorname{tr}H_w=-\sum_{r\neq s}\operatorname{tr}U_{rs}",
    reason="∂²R/∂w_r² with the other uses held fast is U_rr",
    rests_on=["T7"],
    subject=theory.tied_bias,
    mutants=[
        wrong.tied_bias_reversed,
        wrong.tied_bias_pairs_once,
        wrong.tied_bias_none,
        wrong.tied_bias_just_outside_rounding,
    ],
)
def a_leaf_per_use_has_the_bias_of_separate_probes(
    formula: Any, context: Context
) -> Iterator[Check]:
    for tie, owners in _tied_modules(context):
        own = sum(tie.U[r, :, r, :] for r in range(len(tie.U)))
        for trap in OWN_LEAVES:
            found, name = (
                trap(tie.tied.problem, owners),
                f"{tie}: {trap.__name__.replace('_', ' ')}",
            )
            yield exact(
                f"{name}, Σ_r U_rr", found, own, magnitude=len(tie.U) * tie.entry, terms=tie.terms()
            )
            yield exact(
                f"{name}, trace",
                float(found.trace() - tie.H_w.trace()),
                float(formula(tie.U)),
                magnitude=tie.form,
                terms=tie.terms(),
            )


OTHER_TRAPS: dict[str, Way] = {
    "aliases": wrong.every_alias_counted,
    "one alias": wrong.one_alias_untied,
    "unused": wrong.unused_parametrised_tensors,
    "reentrant": wrong.reentrant_checkpoint,
}


def what_traps_keep(U: Tensor) -> dict[str, Tensor]:
    """What the other traps give for two uses: twice the truth, one use, nothing, and the use outside the checkpoint."""
    return {"aliases": 2 * U.sum((0, 2)), "one alias": U[0, :, 0, :], "unused": 0 * U[0, :, 0, :],
            "reentrant": U[1, :, 1, :]}  # fmt: skip


@claim(
    "T9.b",
    "The other traps lose more or less than that: listing both names in plain autograd counts H_w twice; one name "
    "under functional_call(tie_weights=False) leaves the other use a constant; allow_unused=True turns a "
    "parametrised weight into a silent zero; a reentrant checkpoint hides the uses inside it. PyTorch refuses only "
    "some of them.",
    formula=r"T\,H_w,\quad U_{11},\quad 0,\quad U_{22}",
    reason="what autograd reaches from the leaf that is handed to it",
    rests_on=["T7.a"],
    subject=what_traps_keep,
    mutants=[wrong.all_traps_alike, wrong.traps_harmless, wrong.traps_at_the_other_instance],
)
def the_other_traps(kept: Any, context: Context) -> Iterator[Check]:
    for tie, owners in _tied_modules(context):
        for name, expected in kept(tie.U).items():
            found = OTHER_TRAPS[name](tie.tied.problem, owners)
            yield exact(
                f"{tie}: {name}",
                found,
                expected,
                magnitude=2 * len(tie.U) ** 2 * tie.entry,
                terms=tie.terms(),
            )
    _, (series, owners) = _pairs_of_modules(context)
    for name, act in _refused(series.tied.problem, owners).items():
        refusal = _refusal(act)
        yield holds(f"refused: {name}", bool(refusal), refusal or "nothing is raised")


def _refused(problem: Problem, owners: tuple[str, str]) -> dict[str, Callable[[], Any]]:
    """Losses of a tie that raise instead of giving a number."""
    model = problem.model
    two = {f"{owner}.weight": wrong.weight_of(model, owner).detach().clone() for owner in owners}
    parametrised = wrong.with_parametrisation(model, owners)
    inner = wrong.with_checkpoint(model, owners[1], use_reentrant=True)
    wrapped = _own_weight(model, owners[1])
    wrapped.get_submodule(owners[1]).weight.data = wrong.weight_of(wrapped, owners[0]).data
    return {
        "two tensors under tied names in functional_call": lambda: functional_call(
            model, two, problem.batches[0][0]
        ),
        "differentiating in a parametrised tensor that is not cached": lambda: wrong.own_blocks(
            wrong.plain_risk(problem, parametrised), [wrong.weight_of(parametrised, owners[0])]
        ),
        "a reentrant checkpoint between two uses": lambda: wrong.own_blocks(
            wrong.plain_risk(problem, inner), [wrong.weight_of(inner, owners[0])]
        ),
        "a Problem with two parameters over one storage": lambda: Problem(
            wrapped, problem.loss_fn, problem.batches
        ),
    }
