"""Claim T16: batch norm and dropout in train mode."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hesstheory import mutants, theory, zoo
from hesstheory.claims.context import Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import hessian, per_sample_hessians
from hesstheory.estimators.enumerations import hadamard_columns
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.zoo.initial import blank
from hesstheory_validation.magnitudes import EPS
from hesstheory_validation.subjects import EstimatorClass, MatrixOf
from hesstheory_validation.train_mode import wrong

NUM_SAMPLES = 4
SIZES = (2, 3)  # a mini-batch of one sample has no batch norm


# --- networks -------------------------------------------------------------------------------------
def _tiny(middle: nn.Module, generator: torch.Generator, num_samples: int) -> Problem:
    """2-2-2 network with a module before its tanh, left in train mode."""
    model = nn.Sequential()
    model.add_module("layer1", blank(nn.Linear, 2, 2))
    model.add_module("middle", middle)
    model.add_module("act", nn.Tanh())
    model.add_module("layer2", blank(nn.Linear, 2, 2))
    data = zoo.digits(2, 2, num_samples)
    zoo.initialise(model.double(), data.inputs, generator)
    return Problem(model.train(), F.cross_entropy, [tuple(data)], allow_train_mode=True)


def batch_norm_problems(context: Context, num_samples: int) -> dict[str, Problem]:
    """Networks with batch norm in train mode, all samples in one batch."""
    generator = context.generator("batch norm")
    found = {"tiny_batchnorm": _tiny(blank(nn.BatchNorm1d, 2), generator, num_samples)}
    if context.profile != "smoke":
        found["batchnorm_train"] = zoo.problem(
            "batchnorm_train", generator, batch_sizes=[num_samples]
        )
    return found


def dropout_problems(context: Context) -> dict[str, Problem]:
    """Networks with dropout at work."""
    generator = context.generator("dropout")
    found = {"tiny_dropout": _tiny(nn.Dropout(0.25), generator, 6)}
    if context.profile != "smoke":
        found["dropout_mlp"] = zoo.problem("dropout_mlp", generator, batch_sizes=[7, 4])
    return found


def in_eval_mode(problem: Problem) -> Problem:
    """The same problem with the running statistics of batch norm and without dropout."""
    return Problem(copy.deepcopy(problem.model).eval(), problem.loss_fn, problem.batches)


def mini_batches(problem: Problem, size: int) -> list[Batch]:
    """All mini-batches of a size."""
    inputs, targets = problem.batches[0]
    rows = [list(chosen) for chosen in combinations(range(len(inputs)), size)]
    return [(inputs[r], targets[r]) for r in rows]


def mini_batch_hessian(problem: Problem, batch: Batch) -> Tensor:
    """H_B of one mini-batch."""
    return hessian(problem.with_batches([batch])).to_dense()


def _terms(problem: Problem) -> int:
    """Roundings on the way to an entry of a mean of Hessians: sums over samples and units, the
    passes of a network."""
    return problem.num_params + problem.num_samples + 64


# --- batch norm -----------------------------------------------------------------------------------
def _normalised_line() -> Problem:
    """f(x) = w x̂ with x̂ = (x − μ_B)/√(s_B² + 1) and loss ½(f − y)²: H_B = s_B²/(s_B² + 1) for x =
    0, 2, 4."""
    model = nn.Sequential(
        nn.BatchNorm1d(1, eps=1.0, affine=False), blank(nn.Linear, 1, 1, bias=False)
    ).double()
    nn.init.ones_(model[1].weight)
    x = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)
    return Problem(model, zoo.half_squared_error, [(x, x)], allow_train_mode=True)


@claim(
    "T16",
    "With batch norm in train mode the mini-batch Hessian is not an average of per-sample "
    "Hessians: E_B H_B ≠ H. In eval mode it is.",
    formula=r"\mathbb{E}_B H_B\neq H",
    reason="the statistics of the mini-batch are a non-linear function of its samples",
    subject=mini_batch_hessian,
    mutants=[
        wrong.batch_norm_in_eval_mode,
        wrong.statistics_of_all_samples,
        wrong.average_of_pairs,
        wrong.first_half_of_the_batch,
    ],
)
def batch_norm_is_no_average(hessian_of: MatrixOf, context: Context) -> Iterator[Check]:
    """All mini-batches of two sizes, in eval mode and in train mode."""
    line = _normalised_line()
    mean = torch.stack([hessian_of(line, batch) for batch in mini_batches(line, 2)]).mean()
    whole = hessian_of(line, line.batches[0])
    # Pairs have s² = 1, 1, 4, all three samples s² = 8/3.
    yield exact("w x̂, three samples: E_B H_B = 3/5", mean, 3 / 5, terms=_terms(line))
    yield exact("w x̂, three samples: H = 8/11", whole.sum(), 8 / 11, terms=_terms(line))
    for name, problem in batch_norm_problems(context, NUM_SAMPLES).items():
        yield from _averages(f"{name}, eval mode", hessian_of, in_eval_mode(problem), equal=True)
        yield from _averages(f"{name}, train mode", hessian_of, problem, equal=False)


def _averages(name: str, hessian_of: MatrixOf, problem: Problem, *, equal: bool) -> Iterator[Check]:
    """E_B H_B over all mini-batches against H of all samples."""
    whole = hessian_of(problem, problem.batches[0])
    for size in SIZES:
        mini = torch.stack([hessian_of(problem, batch) for batch in mini_batches(problem, size)])
        magnitude = torch.maximum(mini.abs().amax(), whole.abs().max())
        check = exact(
            f"{name}, b = {size}: E_B H_B = H",
            mini.mean(0),
            whole,
            magnitude=magnitude,
            terms=_terms(problem),
        )
        if equal:
            yield check
        else:
            gap = float((mini.mean(0) - whole).norm() / whole.norm())
            bound = (
                _terms(problem) * EPS * float(magnitude) * problem.num_params / float(whole.norm())
            )
            yield holds(
                f"{name}, b = {size}: E_B H_B ≠ H",
                gap > bound,
                f"relative gap {gap:.3g}, rounding {bound:.1g}",
            )


@claim(
    "T16.a",
    "With batch norm in train mode T10 breaks: the variance between mini-batches is not S_t² f/b "
    "for any S_t². In eval mode it is.",
    formula=r"\operatorname{Var}_B\operatorname{tr}H_{B,ll}\neq\frac{S_t^2}{b}\Bigl(1-\frac "
    r"bn\Bigr)",
    reason="T16: the traces of mini-batches are no means of n fixed numbers",
    rests_on=["T10.a", "T16"],
    subject=mini_batch_hessian,
    mutants=[
        wrong.batch_norm_in_eval_mode,
        wrong.statistics_of_all_samples,
        wrong.first_half_of_the_batch,
    ],
)
def batch_norm_breaks_the_law_of_batches(hessian_of: MatrixOf, context: Context) -> Iterator[Check]:
    """Variances between all mini-batches of two sizes, in both modes."""
    for name, problem in batch_norm_problems(context, NUM_SAMPLES).items():
        still = in_eval_mode(problem)
        per_sample = per_sample_hessians(still)
        spread = _block_traces(per_sample, still).var(0, unbiased=True)
        for b in SIZES:
            yield exact(
                f"{name}, eval mode, b = {b}: Var_B = S_t² f/b",
                _batch_variance(hessian_of, still, b)[0],
                theory.batch_trace_variance(spread, b, NUM_SAMPLES),
                magnitude=_absolute_traces(per_sample, still) ** 2,
                terms=4 * _terms(problem),
            )
        yield _no_spread_fits(f"{name}, train mode: no S_t² fits b = {SIZES}", hessian_of, problem)


def _no_spread_fits(name: str, hessian_of: MatrixOf, problem: Problem) -> Check:
    """S_t² = Var_B·b/f comes out otherwise for one size of mini-batches than for another, in some
    block."""
    factors = [b / theory.finite_population_factor(b, NUM_SAMPLES) for b in SIZES]
    measured = [_batch_variance(hessian_of, problem, b) for b in SIZES]
    small, large = (
        factor * variance for factor, (variance, _) in zip(factors, measured, strict=True)
    )
    noise = (
        4
        * _terms(problem)
        * EPS
        * sum(f * size**2 for f, (_, size) in zip(factors, measured, strict=True))
    )
    shown = "; ".join(
        f"{x:.3g} and {y:.3g}" for x, y in zip(small.tolist(), large.tolist(), strict=True)
    )
    return holds(name, bool(((small - large).abs() > noise).any()), f"S_t² by block: {shown}")


def _batch_variance(hessian_of: MatrixOf, problem: Problem, size: int) -> tuple[Tensor, Tensor]:
    """Var_B tr H_B,ll over all mini-batches of a size, by block, and the magnitude of the
    traces."""
    mini = torch.stack([hessian_of(problem, batch) for batch in mini_batches(problem, size)])
    return _block_traces(mini, problem).var(0, unbiased=False), _absolute_traces(mini, problem)


def _block_traces(matrices: Tensor, problem: Problem) -> Tensor:
    diagonals = matrices.diagonal(dim1=1, dim2=2)
    return torch.stack([diagonals[:, index].sum(1) for index in problem.index.values()], dim=1)


def _absolute_traces(matrices: Tensor, problem: Problem) -> Tensor:
    """Largest sum of absolute diagonal entries of each block."""
    diagonals = matrices.diagonal(dim1=1, dim2=2).abs()
    return torch.stack([diagonals[:, index].sum(1).max() for index in problem.index.values()])


# --- dropout --------------------------------------------------------------------------------------
class FixedMask(nn.Module):
    """Multiplies by a given mask."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global stream at a seed, given back afterwards: what decides which mask a graph draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def masks_at(problem: Problem, seed: int) -> list[dict[str, Tensor]]:
    """The masks that every batch draws in train mode, by the name of the dropout module."""
    masks: list[dict[str, Tensor]] = []

    def record(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        masks[-1][name] = (output != 0).to(output.dtype) / (1 - module.p)

    hooks = [
        module.register_forward_hook(partial(record, name))
        for name, module in problem.model.named_modules()
        if isinstance(module, nn.Dropout)
    ]
    with seeded(seed):
        for batch in problem.batches:
            masks.append({})
            problem.outputs(batch)
    for hook in hooks:
        hook.remove()
    return masks


def masked_hessian(problem: Problem, masks: list[dict[str, Tensor]]) -> Tensor:
    """The Hessian of the network that multiplies by these masks, by `torch.autograd` in one
    piece."""
    theta = torch.cat([p.detach().reshape(-1) for p in problem.params.values()])
    spans = {name: slice(*span) for name, span in problem.offsets.items()}

    def risk(theta: Tensor) -> Tensor:
        params = {name: theta[spans[name]].reshape(p.shape) for name, p in problem.params.items()}
        losses = [
            problem.loss_fn(functional_call(model, params, (batch[0],)), batch[1])
            for model, batch in zip(models, problem.batches, strict=True)
        ]
        return sum(weight * loss for weight, loss in zip(problem.weights, losses, strict=True))

    models = [_masked(problem.model, of_batch) for of_batch in masks]
    return torch.autograd.functional.hessian(risk, theta)


def _masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    masked = copy.deepcopy(model)
    for name, mask in masks.items():
        masked.set_submodule(name, FixedMask(mask))
    return masked


NUM_MASKS = 3


@claim(
    "T16.b",
    "With dropout and one mask per graph, the estimate is that of the masked network, however "
    "many probes. Another mask has another trace, and neither is that of the network without "
    "dropout.",
    formula=r"\mathbb{E}[q_l\mid\text{mask}]=\operatorname{tr}H^{\text{mask}}_{ll}",
    reason="all probes are pulled back through the graph of one forward pass",
    rests_on=["T1"],
    subject=LayerwiseTrace,
    mutants=[
        wrong.DropoutSwitchedOff,
        wrong.FreshMaskPerProbe,
        wrong.UnscaledMask,
        mutants.JustOutsideRounding,
    ],
)
def dropout_measures_the_masked_network(
    estimator: EstimatorClass, context: Context
) -> Iterator[Check]:
    """Three masks, each against the network that multiplies by it."""
    for name, problem in dropout_problems(context).items():
        Z = hadamard_columns(problem.num_params)
        seen = [hessian(in_eval_mode(problem)).to_dense()]
        for seed in range(NUM_MASKS):
            H = masked_hessian(problem, masks_at(problem, seed))
            with seeded(seed):
                value = estimator()(problem, probes=Z).value
            yield exact(
                f"{name}, mask {seed}: mean over all Hadamard columns",
                value,
                [float(H[index][:, index].trace()) for index in problem.index.values()],
                magnitude=[float(H[index].abs().sum()) for index in problem.index.values()],
                terms=_terms(problem) + Z.shape[1].bit_length(),
            )
            seen.append(H)
        yield _all_different(
            f"{name}: no two masks, nor no mask, have the same traces", seen, problem
        )


def _all_different(name: str, matrices: list[Tensor], problem: Problem) -> Check:
    traces = _block_traces(torch.stack(matrices), problem)
    gaps = [float((a - b).abs().max()) for a, b in combinations(traces, 2)]
    bound = _terms(problem) * EPS * float(torch.stack(matrices).abs().sum((1, 2)).max())
    return holds(
        name,
        min(gaps) > bound,
        f"smallest difference of a trace {min(gaps):.3g}, rounding {bound:.1g}",
    )


# --- looking changes nothing ----------------------------------------------------------------------
def _state(problem: Problem) -> dict[str, Tensor]:
    """Everything that a look could change, as numbers."""
    model = problem.model
    flags = [float(module.training) for module in model.modules()]
    gradients = [float(p.grad is not None) for p in model.parameters()]
    return {
        "parameters": torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()]),
        "buffers": torch.cat(
            [torch.zeros(1), *(b.reshape(-1).double() for b in model.buffers())]
        ).clone(),
        "train and eval flags": torch.tensor(flags),
        "gradients": torch.tensor(gradients),
        "global random stream": torch.random.get_rng_state().double(),
    }


@claim(
    "T16.c",
    "Looking at a network in train mode changes nothing. Parameters, buffers, gradients, modes "
    "and the global random stream are as before, bit for bit.",
    reason="the forward pass runs on copies of the buffers and gives the random state back",
    subject=LayerwiseTrace,
    mutants=[
        wrong.UpdatesRunningStatistics,
        wrong.LeavesEvalMode,
        wrong.MovesGlobalStream,
        wrong.LeavesGradients,
    ],
)
def looking_changes_nothing(estimator: EstimatorClass, context: Context) -> Iterator[Check]:
    """The state of every network before and after an estimate."""
    problems = {**batch_norm_problems(context, NUM_SAMPLES), **dropout_problems(context)}
    for name, problem in problems.items():
        with seeded(0):
            before = _state(problem)
            estimator()(problem, probes=hadamard_columns(problem.num_params)[:, :4])
            after = _state(problem)
        for what, value in before.items():
            yield exact(f"{name}: {what}", after[what], value, magnitude=0.0)
