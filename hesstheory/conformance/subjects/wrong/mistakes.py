"""Mistakes in probes, batches, matrices, blocks, means, errors, stopping rules, side effects and precision."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from hesstheory import theory
from hesstheory.conformance.subjects.wrong.steps import (
    Report,
    as_estimate,
    as_pairs,
    as_total,
    as_values,
    by_block,
    changed,
    draw_signs,
    entries,
    forms_of,
    gradient,
    listed,
    of_batches,
    outer,
    quadratic_forms,
    sizes_of,
    spoils,
    stderr_of,
    whole,
    with_model,
)
from hesstheory.curvature.matrix import ggn, hessian
from hesstheory.estimators.probes import Gaussian, Rademacher, SparseSigns, Uniform
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem

if TYPE_CHECKING:
    from collections.abc import MutableMapping


# --- wrong probes -----------------------------------------------------------------------------------------------------
listed(
    "draw",
    normals_for_signs=("Draws normals where it declares signs.",
        lambda p, K, g: Gaussian().sample(p.num_params, K, g), as_estimate),
    signs_for_normals=("Draws signs where it declares normals.", lambda p, K, g: draw_signs(p, K, g)),
    uniform_unscaled=("Draws uniform entries on [−1, 1] without scaling them to unit variance.",
        lambda p, K, g: Uniform().sample(p.num_params, K, g) / 3**0.5, as_values),
    zeros_for_minus_ones=("Draws zeros and ones and forgets to turn the zeros into minus ones.",
        lambda p, K, g: (draw_signs(p, K, g) + 1) / 2),
    zeros_among_signs=("Draws whole numbers from −1 to 1, so that a third of the entries is zero.",
        lambda p, K, g: torch.randint(-1, 2, (p.num_params, K), generator=g).double()),
    unfair_signs=("Draws plus ones three times as often as minus ones.",
        lambda p, K, g: 1 - 2 * (torch.rand(p.num_params, K, generator=g) < 0.25).double()),
    signs_in_pairs=("Gives neighbouring parameters one and the same sign.",
        lambda p, K, g: draw_signs(p, K, g).repeat_interleave(2, 0)[:p.num_params]),
    centred_probes=("Subtracts from every probe the mean of its entries.",
        lambda p, K, g: (lambda Z: Z - Z.mean(0))(draw_signs(p, K, g)), as_values),
    unscaled_sparse_signs=("Keeps a quarter of the signs without scaling them up.",
        lambda p, K, g: SparseSigns(0.25).sample(p.num_params, K, g) / 2, as_estimate),
    unit_sphere=("Draws from the unit sphere and forgets √P.",
        lambda p, K, g: F.normalize(Gaussian().sample(p.num_params, K, g), dim=0), as_total),
    normalised_over_probes=("Normalises normal probes to length √P over the wrong axis.",
        lambda p, K, g: F.normalize(Gaussian().sample(p.num_params, K, g), dim=1) * p.num_params**0.5, as_values),
    reused_probe=("Draws one probe and reuses it for all products.", lambda p, K, g: draw_signs(p, 1, g).expand(-1, K)),
    antithetic_probes=("Takes −z for another probe than z.",
        lambda p, K, g: draw_signs(p, -(-K // 2), g).repeat_interleave(2, 1)[:, :K] * (-1) ** torch.arange(K),
        as_estimate),
    first_coordinates=("Takes the first unit vectors, times √P, for random ones.",
        lambda p, K, g: p.num_params**0.5 * torch.eye(p.num_params)[:, torch.arange(K) % p.num_params].double()),
    four_probes_in_turn=("Draws four probes and takes them in turn.",
        lambda p, K, g: draw_signs(p, 4, g)[:, torch.arange(K) % 4]),
)  # fmt: skip


@spoils("draw", as_estimate)
def layers_reseeded(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Starts every layer's probe from the same random state, so that layers share signs."""
    stream, Z = (draw_signs(problem, num_probes, generator) for _ in range(2))
    for index in problem.index.values():
        Z[index] = stream[: len(index)]
    return Z


@spoils("draw")
def one_flip_at_a_time(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Makes a probe from the one before by flipping one sign."""
    flips = torch.randint(problem.num_params, (1, num_probes), generator=generator)
    steps = torch.ones(problem.num_params, num_probes, dtype=torch.float64).scatter_(0, flips, -1.0)
    return draw_signs(problem, 1, generator) * steps.cumprod(1)


@spoils("draw", as_values)
def probe_cached_by_shape(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Draws one probe per shape, so that tensors of one shape share it."""
    drawn: dict[Any, Tensor] = {}
    for p in problem.params.values():
        if p.shape not in drawn:
            drawn[p.shape] = Rademacher().sample(p.numel(), num_probes, generator)
    return torch.cat([drawn[p.shape] for p in problem.params.values()])


# --- wrong use of the generator ---------------------------------------------------------------------------------------
listed(
    "draw",
    own_fixed_seed=("Seeds a generator of its own with 0 and ignores the one it is given.",
        lambda p, K, g: draw_signs(p, K, torch.Generator().manual_seed(0))),
    unseeded_generator=("Makes an unseeded torch.Generator, which draws the same numbers at every call.",
        lambda p, K, g: draw_signs(p, K, torch.Generator()), as_total),
    rewound_generator=("Takes the seed of the generator for its state, so that every call starts anew.",
        lambda p, K, g: draw_signs(p, K, torch.Generator().manual_seed(g.initial_seed())), as_estimate),
    generator_not_moved=("Draws from a copy of the generator, so that the next call draws the same.",
        lambda p, K, g: draw_signs(p, K, g.clone_state())),
    eight_streams=("Keeps three bits of the random state, so that there are only eight answers.",
        lambda p, K, g: draw_signs(p, K, torch.Generator().manual_seed(int(torch.randint(8, (), generator=g)))),
        as_values),
)  # fmt: skip


@spoils("draw")
def seeded_by_the_system(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Asks the operating system for a seed and ignores the generator."""
    own = torch.Generator()
    own.seed()
    return draw_signs(problem, num_probes, own)


@spoils("draw", as_values)
def global_stream(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Draws from the global random stream and ignores the generator."""
    return torch.randint(2, (problem.num_params, num_probes)) * 2.0 - 1.0


@spoils("draw", as_estimate)
def global_stream_seeded(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Seeds the global random stream from the generator and draws from it."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    return torch.randint(2, (problem.num_params, num_probes)) * 2.0 - 1.0


# --- wrong batches ----------------------------------------------------------------------------------------------------
listed(
    "view",
    unweighted_batches=("Averages batches without weighting them by their size.",
        lambda p: changed(p, batch_sizes=(1,) * len(p.batches)), as_estimate),
    last_batch_only=("Differentiates the last batch instead of the data set.",
        lambda p: p.with_batches(p.batches[-1:]), as_values),
    first_batch_only=("Differentiates the first batch instead of the data set.",
        lambda p: p.with_batches(p.batches[:1]), as_total),
)  # fmt: skip

listed(
    "forms",
    twice_the_last_batch=("Reports twice the Hessian of the last batch.",
        lambda p, Z: 2 * quadratic_forms(p.with_batches(p.batches[-1:]), Z)),
    summed_batches=("Adds up the batches instead of averaging them.",
        lambda p, Z: of_batches(p, Z, [1.0] * len(p.batches))),
    summed_loss=("Takes the sum of the losses of a batch for their mean.",
        lambda p, Z: of_batches(p, Z, [w * n for w, n in zip(p.weights, p.batch_sizes, strict=True)])),
    weighted_twice=("Multiplies every batch by its share of the samples twice.",
        lambda p, Z: of_batches(p, Z, [w * w for w in p.weights]), as_values),
    all_batches_as_large_as_the_first=("Weights every batch by the size of the first.",
        lambda p, Z: of_batches(p, Z, [p.weights[0]] * len(p.batches))),
    ragged_batch_dropped=("Drops batches smaller than the first, and still divides by the number of all samples.",
        lambda p, Z: of_batches(p, Z, [w if w >= p.weights[0] else 0.0 for w in p.weights]), as_estimate),
)  # fmt: skip


@spoils("forms")
def batches_in_turn(problem: Problem, Z: Tensor) -> Tensor:
    """Shows every probe one batch only, the batches in turn."""
    each = [quadratic_forms(problem.with_batches([batch]), Z) for batch in problem.batches]
    return torch.stack([each[k % len(each)][k] for k in range(Z.shape[1])])


@spoils("forms", as_values)
def running_average_of_batches(problem: Problem, Z: Tensor) -> Tensor:
    """Averages batches exponentially, so that their order matters."""
    old = [0.75**b for b in reversed(range(len(problem.batches)))]
    return of_batches(problem, Z, [old[0], *(0.25 * weight for weight in old[1:])])


@spoils("view")
def last_samples_dropped(problem: Problem) -> Problem:
    """Leaves out the last sample of every batch."""

    def cut(leaf: Any) -> Any:
        return leaf[:-1] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) > 1 else leaf

    return problem.with_batches([tree_map(cut, batch) for batch in problem.batches])


# --- another matrix ---------------------------------------------------------------------------------------------------
listed(
    "forms",
    gauss_newton_instead=("Measures the Gauss-Newton matrix and calls it the Hessian.",
        lambda p, Z: ggn(p).quadratic_forms(Z), as_estimate),
    empirical_fisher=("Measures the mean of g gᵀ over the samples' gradients g.",
        lambda p, Z: outer(p, torch.stack([gradient(sample) for sample in p.samples()]), Z)),
    squared_gradient=("Measures g gᵀ of the gradient g of the risk.",
        lambda p, Z: outer(p, gradient(p)[None], Z), as_values),
    squared_product=("Squares the product Hz instead of multiplying it by z.",
        lambda p, Z: by_block(p, (hessian(p) @ Z).square())),
    negated=("Differentiates the log-likelihood instead of the loss.", lambda p, Z: -quadratic_forms(p, Z), as_values),
    weight_decay=("Counts a weight decay of 0.05 that is not in the loss.",
        lambda p, Z: quadratic_forms(p, Z) + 0.05 * by_block(p, Z.square()), as_values),
    coarse_differences=("Takes central differences of the gradient at steps of one half.",
        lambda p, Z: by_block(p, Z * _differences(p, Z, 0.5)), as_estimate),
    differences_of_a_twentieth=("Takes central differences of the gradient at steps of 0.05.",
        lambda p, Z: by_block(p, Z * _differences(p, Z, 0.05)), as_values),
    parameters_not_restored=("Takes fine differences and walks the parameters back, which leaves rounding in them.",
        lambda p, Z: by_block(p, Z * _differences(p, Z, 0.0001, restore=False))),
)  # fmt: skip

_KNOWN: MutableMapping[Problem, Tensor] = WeakKeyDictionary()


def _dense(problem: Problem) -> Tensor:
    if problem not in _KNOWN:
        _KNOWN[problem] = hessian(problem).to_dense()
    return _KNOWN[problem]


@whole
def absolute_eigenvalues(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> dict[str, float]:
    """Adds up the absolute eigenvalues, exactly and without probes."""
    eigenvalues, Q = torch.linalg.eigh(_dense(problem))
    diagonal = Q.square() @ eigenvalues.abs()
    return {block: float(diagonal[index].sum()) for block, index in problem.index.items()}


listed(
    "view",
    assumes_cross_entropy=("Differentiates the cross-entropy whatever the loss.",
        lambda p: changed(p, loss_fn=F.cross_entropy)),
)  # fmt: skip


@spoils("view", as_values)
def assumes_squared_error(problem: Problem) -> Problem:
    """Differentiates the squared error whatever the loss, class numbers as unit vectors."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = targets if targets.is_floating_point() else F.one_hot(targets, outputs.shape[-1])
        return (outputs - wanted).square().mean()

    return changed(problem, loss_fn=loss)


def _differences(problem: Problem, Z: Tensor, step: float, *, restore: bool = True) -> Tensor:
    """(g(θ + εz) − g(θ − εz)) / 2ε for every column z, with the model's own parameters moved."""
    params, before = (
        list(problem.params.values()),
        [p.detach().clone() for p in problem.params.values()],
    )
    columns = []
    for z in Z.mT:
        gradients = []
        for stride in (step, -2 * step, step):
            parts = torch.split(stride * z, [p.numel() for p in params])
            for p, part in zip(params, parts, strict=True):
                p.data += part.reshape(p.shape)
            gradients.append(gradient(problem))
        columns.append((gradients[0] - gradients[1]) / (2 * step))
    if restore:
        for p, old in zip(params, before, strict=True):
            p.data.copy_(old)
    return torch.stack(columns, 1)


# --- parameters counted wrongly ---------------------------------------------------------------------------------------
listed(
    "forms",
    matrices_only=("Leaves out tensors of one dimension.",
        lambda p, Z: forms_of(p, Z, {name for name, tensor in p.params.items() if tensor.ndim > 1})),
    first_tensor_only=("Looks only at the first tensor of every block.",
        lambda p, Z: forms_of(p, Z, {names[0] for names in p.partition.blocks.values()}), as_values),
    first_eight_parameters=("Looks only at the first eight parameters of every tensor.",
        lambda p, Z: forms_of(p, Z, set(p.params), 8), as_estimate),
    last_parameter_dropped=("Ends the slice of every block one parameter early.",
        lambda p, Z: by_block(p, entries(p, Z), slice(-1))),
    slices_one_late=("Begins and ends the slice of every block one parameter late.",
        lambda p, Z: by_block(p, entries(p, Z).roll(-1, 0)), as_values),
    single_parameters_skipped=("Takes a block of one parameter for empty.",
        lambda p, Z: quadratic_forms(p, Z) * (sizes_of(p) > 1)),
    neighbours_product=("Multiplies every probe by the product of the next one.",
        lambda p, Z: by_block(p, Z * (hessian(p) @ Z).roll(-1, 1)), as_total),
)  # fmt: skip


@spoils("forms")
def alphabetical_order(problem: Problem, Z: Tensor) -> Tensor:
    """Flattens probes in the alphabetical order of names and products in the order of the model."""
    order = torch.cat([torch.arange(*problem.offsets[name]) for name in sorted(problem.params)])
    return by_block(problem, Z[order] * (hessian(problem) @ Z))


@spoils("forms")
def column_major(problem: Problem, Z: Tensor) -> Tensor:
    """Flattens probes row by row and products column by column."""
    products, order = hessian(problem) @ Z, []
    for (start, _), p in zip(problem.offsets.values(), problem.params.values(), strict=True):
        order.append(
            start
            + torch.arange(p.numel()).reshape(p.shape).permute(*range(p.ndim)[::-1]).reshape(-1)
        )
    return by_block(problem, Z * products[torch.cat(order)])


def _unrolled(problem: Problem, *, first_only: bool) -> Problem:
    """The model with every use of a tied tensor given a tensor of its own; all but the first frozen if so asked."""
    model, aliases = copy.deepcopy(problem.model), dict[int, list[str]]()
    for name, p in problem.model.named_parameters(remove_duplicate=False):
        if p.requires_grad:
            aliases.setdefault(id(p), []).append(name)
    copies = {names[0]: names if not first_only else names[:1] for names in aliases.values()}
    for first, *others in aliases.values():
        for name in others:
            owner, _, attribute = name.rpartition(".")
            fresh = problem.params[first].detach().clone()
            setattr(
                model.get_submodule(owner),
                attribute,
                nn.Parameter(fresh, requires_grad=not first_only),
            )
    blocks = problem.partition.blocks
    return with_model(
        problem,
        model,
        Partition({b: tuple(n for t in ts for n in copies[t]) for b, ts in blocks.items()}),
    )


listed(
    "view",
    ties_counted_per_instance=("Takes the uses of a tied tensor for tensors of their own, with probes of their own.",
        lambda p: _unrolled(p, first_only=False)),
    tie_lost=("Differentiates only the first use of a tied tensor.",
        lambda p: _unrolled(p, first_only=True), as_values),
)  # fmt: skip


@spoils("forms", as_estimate)
def ties_counted_twice(problem: Problem, Z: Tensor) -> Tensor:
    """Adds the trace of a tied tensor once for each of its names."""
    uses = dict.fromkeys(map(id, problem.params.values()), 0)
    for _, p in problem.model.named_parameters(remove_duplicate=False):
        uses[id(p)] = uses.get(id(p), 0) + 1
    times = torch.cat([torch.full((p.numel(),), uses[id(p)]) for p in problem.params.values()])
    return by_block(problem, times[:, None] * entries(problem, Z))


# --- wrong averages ---------------------------------------------------------------------------------------------------
listed(
    "reduce",
    summed_probes=("Adds up the probes instead of averaging them.", lambda s: s.sum(0)),
    divided_twice=("Divides by the number of probes twice.", lambda s: s.mean(0) / len(s), as_values),
    divided_by_one_less=("Divides by K − 1 instead of K.", lambda s: s.sum(0) / (len(s) - 1), as_total),
    median_of_probes=("Takes the lower median over the probes for their mean.",
        lambda s: s.median(0).values, as_values),
    largest_discarded=("Discards the largest quadratic form as an outlier.",
        lambda s: s.sort(0).values[:max(len(s) - 1, 1)].mean(0)),
    negative_traces_clamped=("Reports zero for a trace that comes out negative.", lambda s: s.mean(0).clamp(min=0)),
    one_percent_high=("Reports every trace one per cent too large.", lambda s: 1.01 * s.mean(0)),
    one_percent_low=("Reports the total one per cent too small.", lambda s: 0.99 * s.mean(0), as_total),
    one_percent_high_in_one_block=("Reports the trace of the first block one per cent too large.",
        lambda s: torch.cat([1.01 * s[:, :1], s[:, 1:]], 1).mean(0), as_values),
)  # fmt: skip

listed(
    "forms",
    absolute_samples=("Takes the absolute value of every quadratic form.",
        lambda p, Z: quadratic_forms(p, Z).abs(), as_estimate),
    two_percent_high=("Makes every quadratic form two per cent too large.",
        lambda p, Z: 1.02 * quadratic_forms(p, Z), as_estimate),
)  # fmt: skip

# --- wrong standard errors --------------------------------------------------------------------------------------------
listed(
    "spread",
    stderr_zero=("Reports a standard error of zero.", lambda p, s: torch.zeros_like(s[0])),
    stderr_too_small_by_root_two=("Divides the standard error by √2.", lambda p, s: stderr_of(p, s) / math.sqrt(2)),
    stderr_too_large_by_root_two=("Multiplies the standard error by √2.", lambda p, s: stderr_of(p, s) * math.sqrt(2)),
    stderr_doubled=("Reports half of a 95 % interval as the standard error.", lambda p, s: 1.96 * stderr_of(p, s)),
    stderr_four_times=("Reports four times the standard error.", lambda p, s: 4 * stderr_of(p, s)),
    stderr_ten_times=("Reports ten times the standard error.", lambda p, s: 10 * stderr_of(p, s)),
    stderr_without_root_k=("Reports the spread of one probe as that of the mean.",
        lambda p, s: stderr_of(p, s) * math.sqrt(len(s))),
    stderr_divided_by_k=("Divides the spread of one probe by K instead of √K.",
        lambda p, s: stderr_of(p, s) / math.sqrt(len(s))),
    stderr_not_rooted=("Reports the variance of the mean as its standard error.",
        lambda p, s: stderr_of(p, s).square()),
    stderr_relative=("Reports the relative standard error as the absolute one.",
        lambda p, s: stderr_of(p, s) / s.mean(0).abs()),
    stderr_constant=("Reports a standard error of one whatever the samples.", lambda p, s: torch.ones_like(s[0])),
    stderr_of_the_neighbour=("Reports the standard error of the next block.", lambda p, s: stderr_of(p, s).roll(-1)),
    stderr_of_the_total=("Reports the standard error of the total with every block.",
        lambda p, s: stderr_of(p, s.sum(1, keepdim=True)).expand(s.shape[1])),
    stderr_of_the_first_half=("Reports the standard error of the first half of the probes.",
        lambda p, s: stderr_of(p, s[:(len(s) + 1) // 2])),
    stderr_of_median_deviation=("Takes the median absolute deviation for the standard deviation, without 1.48.",
        lambda p, s: (s - s.median(0).values).abs().median(0).values / math.sqrt(len(s))),
    stderr_predicted_for_normals=("Predicts the standard error of normals for signs.",
        lambda p, s: (theory.probe_covariance_matrix(_dense(p), p.index, 3.0).diagonal() / len(s)).sqrt()),
)  # fmt: skip


@spoils("spread")
def stderr_without_cross_blocks(problem: Problem, samples: Tensor) -> Tensor:
    """Predicts the standard error without the blocks that couple layers."""
    blocks = [_dense(problem)[index][:, index] for index in problem.index.values()]
    own = torch.stack([2 * (H.square().sum() - H.diagonal().square().sum()) for H in blocks])
    return (own / len(samples)).sqrt()


listed(
    "report",
    stderr_signed=("Multiplies the relative standard error by the trace, so that a negative trace has a negative one.",
        lambda p, s, v, e: as_pairs(p, s, v, e * v.sign())),
    rows_recorded_twice=("Records every probe twice in its Estimate, which makes its standard error too small.",
        lambda p, s, v, e: as_estimate(p, s.repeat(2, 1), v, e)),
)  # fmt: skip

# --- wrong blocks -----------------------------------------------------------------------------------------------------
listed(
    "report",
    shifted_blocks=("Hands every block the trace of its neighbour.",
        lambda p, s, v, e: as_pairs(p, s, v.roll(-1), e.roll(-1))),
    swapped_blocks=("Exchanges the first two blocks.",
        lambda p, s, v, e: as_values(p, s, torch.cat([v[:2].flip(0), v[2:]]), e)),
    sorted_names=("Sorts the names of the blocks and not their traces, largest name first.",
        lambda p, s, v, e: dict(zip(sorted(p.index, reverse=True), v.tolist(), strict=True))),
    mean_curvature=("Divides every trace by the number of its parameters.",
        lambda p, s, v, e: as_pairs(p, s, v / sizes_of(p), e / sizes_of(p))),
    missing_block=("Leaves out the last block.", lambda p, s, v, e: dict(list(as_pairs(p, s, v, e).items())[:-1])),
    extra_block=("Reports the total among the blocks.",
        lambda p, s, v, e: {**as_values(p, s, v, e), "total": float(v.sum())}),
    flat_blocks_left_out=("Leaves out blocks whose trace is zero.",
        lambda p, s, v, e: {block: value for block, value in as_values(p, s, v, e).items() if value}),
    tied_block_split=("Reports a tied block under the name of its first owner.",
        lambda p, s, v, e: {name.split("+")[0]: pair for name, pair in as_pairs(p, s, v, e).items()}),
    total_averaged_over_blocks=("Reports the mean of the blocks as their total.", lambda p, s, v, e: float(v.mean())),
)  # fmt: skip

# --- wrong budgets and stopping rules ---------------------------------------------------------------------------------
listed(
    "draw",
    one_probe_always=("Draws one probe whatever the number asked for.", lambda p, K, g: draw_signs(p, 1, g), as_values),
    ten_probes_always=("Draws ten probes whatever the number asked for.", lambda p, K, g: draw_signs(p, 10, g)),
    five_probes_at_most=("Draws no more than five probes.", lambda p, K, g: draw_signs(p, min(K, 5), g), as_estimate),
    one_probe_short=("Throws the first probe away, also where it is the only one.",
        lambda p, K, g: draw_signs(p, K, g)[:, 1:]),
)  # fmt: skip

listed(
    "forms",
    gradients_pile_up=("Does not clear .grad between probes, so that products pile up.",
        lambda p, Z: by_block(p, Z * (hessian(p) @ Z).cumsum(1))),
)  # fmt: skip


def _stopped(samples: Tensor, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """The running mean of each block at the first probe that moves it by less than one part in a thousand."""
    means = samples.cumsum(0) / torch.arange(1, len(samples) + 1)[:, None]
    before = torch.cat([0 * means[:1], means[:-1]])
    rests = (means - before).abs() / (scale(before) + 1e-6) < 1e-3
    return means.gather(0, torch.where(rests.any(0), rests.int().argmax(0), len(means) - 1)[None])[
        0
    ]


listed(
    "reduce",
    stops_when_the_mean_rests=("Stops a block when its running mean moves by less than one part in a thousand.",
        lambda s: _stopped(s, torch.abs), as_values),
    stops_with_signed_denominator=("Stops a block when its mean moves by little of itself, be it negative.",
        lambda s: _stopped(s, torch.positive), as_values),
)  # fmt: skip


@spoils("report")
def stops_when_the_error_looks_small(
    problem: Problem, samples: Tensor, values: Tensor, errors: Tensor
) -> Any:
    """Stops, from the third probe on, when the total's standard error is below a tenth of it."""
    for k in range(3, len(samples)):
        total = samples[:k].sum(1, keepdim=True)
        if stderr_of(problem, total) < 0.1 * total.mean().abs():
            return as_pairs(problem, samples, samples[:k].mean(0), stderr_of(problem, samples[:k]))
    return as_pairs(problem, samples, values, errors)


@whole
def sketch_without_projection(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> float:
    """Adds to a sketched trace that of the whole matrix instead of the remainder."""
    third, H = max(num_probes // 3, 1), hessian(problem)
    S, G = (draw_signs(problem, third, generator).to(problem.dtype) for _ in range(2))
    Q = torch.linalg.qr(H @ S).Q
    return float((Q * (H @ Q)).sum() + (G * (H @ G)).sum() / third)


# --- side effects -----------------------------------------------------------------------------------------------------
def _after(effect: Callable[[Problem], object]) -> Report:
    """The right answer, and what happens to the problem after it is found."""

    def report(problem: Problem, samples: Tensor, values: Tensor, errors: Tensor) -> Any:
        effect(problem)
        return as_pairs(problem, samples, values, errors)

    return report


listed(
    "report",
    leaves_train_mode=("Leaves the model in train mode.", _after(lambda p: p.model.train())),
    leaves_last_module_in_train_mode=("Leaves the last module only in train mode.",
        _after(lambda p: list(p.model.modules())[-1].train())),
    leaves_gradients=("Leaves gradients in .grad.",
        _after(lambda p: torch.autograd.backward(p.loss(p.batches[0])))),
    clears_gradients=("Clears the gradients that the user had in .grad.", _after(lambda p: p.model.zero_grad())),
    freezes_the_model=("Leaves the parameters frozen.", _after(lambda p: p.model.requires_grad_(False))),
    leaves_a_buffer=("Leaves one more buffer in the model.",
        _after(lambda p: p.model.register_buffer("hessian_trace", torch.zeros(())))),
    leaves_model_in_float64=("Leaves the model in float64.", _after(lambda p: p.model.double())),
)  # fmt: skip

listed(
    "view",
    train_mode_copy=("Measures a copy of the model in train mode.",
        lambda p: with_model(p, copy.deepcopy(p.model).train()), as_estimate),
)  # fmt: skip


@spoils("view", as_total)
def moves_running_statistics(problem: Problem) -> Problem:
    """Runs the model once in train mode, which moves the running statistics of batch norm."""
    modes = {module: module.training for module in problem.model.modules()}
    problem.model.train()(problem.batches[0][0])
    for module, mode in modes.items():
        module.training = mode
    return problem


@spoils("view", as_values)
def centres_inputs_in_place(problem: Problem) -> Problem:
    """Centres the user's inputs in place."""
    for leaf in tree_leaves([inputs for inputs, _ in problem.batches]):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            leaf -= leaf.mean()
    return problem


# --- dtypes, autograd, edges ------------------------------------------------------------------------------------------
@spoils("view")
def single_precision_inside(problem: Problem) -> Problem:
    """Computes in float32 whatever the dtype of the model."""

    def single(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    seen = problem.with_batches([tree_map(single, batch) for batch in problem.batches])
    return with_model(seen, copy.deepcopy(problem.model).float())


@whole
def exact_in_single_precision(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> dict[str, float]:
    """Allocates the exact Hessian in float32."""
    diagonal = hessian(problem).to_dense().float().diagonal()
    return {block: float(diagonal[index].sum()) for block, index in problem.index.items()}


listed(
    "reduce",
    half_precision_answer=("Rounds its answer to float16.", lambda s: s.mean(0).half(), as_values),
    nan_for_one_probe=("Returns NaN for one probe.",
        lambda s: s.mean(0) * (len(s) - 1) / torch.tensor(len(s) - 1.0), as_values),
    nan_for_zero_curvature=("Divides by the trace and multiplies by it again, which makes zero NaN.",
        lambda s: s.mean(0).square() / s.mean(0), as_values),
)  # fmt: skip

listed(
    "forms",
    probes_always_double=("Fails on a float32 model, for its probes are float64.",
        lambda p, Z: hessian(p).quadratic_forms(Z.double())),
    frees_the_graph=("Fails from the second probe on, for the first one frees the graph.",
        lambda p, Z: _double_backward(p, Z, keep=False, materialize=True)),
    insists_on_every_parameter=("Fails where the loss does not reach a parameter, or does so without curvature.",
        lambda p, Z: _double_backward(p, Z, keep=True, materialize=False), as_values),
)  # fmt: skip


def _double_backward(problem: Problem, Z: Tensor, *, keep: bool, materialize: bool) -> Tensor:
    """The quadratic forms by a plain loop over probes."""
    params, entries = list(problem.params.values()), torch.zeros_like(Z)
    bounds = [0, *(stop for _, stop in problem.offsets.values())]
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        gradients = torch.autograd.grad(
            problem.loss(batch), params, create_graph=True, materialize_grads=materialize
        )
        for k, z in enumerate(Z.mT):
            parts = [z[start:stop] for start, stop in pairwise(bounds)]
            slope = torch.stack(
                [g.reshape(-1) @ part for g, part in zip(gradients, parts, strict=True)]
            ).sum()
            rows = torch.autograd.grad(
                slope, params, retain_graph=keep, materialize_grads=materialize
            )
            entries[:, k] += weight * z * torch.cat([row.reshape(-1) for row in rows])
    return by_block(problem, entries)


listed(
    "report",
    fails_for_one_probe=("Fails for one probe, which has no variance.",
        lambda p, s, v, e: as_pairs(
            p, s, v, torch.tensor([statistics.stdev(c) / len(s) ** 0.5 for c in s.mT.tolist()]))),
    nan_in_last_block=("Returns NaN for the last block.",
        lambda p, s, v, e: as_pairs(p, s, torch.cat([v[:-1], v[-1:] * math.nan]), e)),
    complex_traces=("Returns complex numbers, as a nonsymmetric eigensolver would.",
        lambda p, s, v, e: {block: complex(value) for block, value in as_values(p, s, v, e).items()}),
)  # fmt: skip

# --- memory between calls ---------------------------------------------------------------------------------------------
_FIRST_ANSWERS: dict[tuple[str, ...], Any] = {}

_FIRST_CURVATURES: MutableMapping[nn.Module, Tensor] = WeakKeyDictionary()

_PAST_MEANS: MutableMapping[Problem, list[Tensor]] = WeakKeyDictionary()

listed(
    "forms",
    first_curvature_for_ever=("Keeps the Hessian of a model's first problem, though the next one has other data.",
        lambda p, Z: by_block(p, Z * (_FIRST_CURVATURES.setdefault(p.model, _dense(p)).to(Z) @ Z))),
)  # fmt: skip

listed(
    "report",
    first_answer_for_ever=("Returns the first answer that it gave for blocks of these names.",
        lambda p, s, v, e: _FIRST_ANSWERS.setdefault(tuple(p.index), as_pairs(p, s, v, e))),
)  # fmt: skip


@spoils("report")
def averages_over_calls(problem: Problem, samples: Tensor, values: Tensor, errors: Tensor) -> Any:
    """Returns the mean of all answers that it gave for this problem."""
    past = _PAST_MEANS.setdefault(problem, [])
    past.append(values)
    return as_values(problem, samples, torch.stack(past).mean(0), errors)
