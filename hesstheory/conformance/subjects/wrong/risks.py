"""Wrong batches, and another matrix than the Hessian of the risk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from hesstheory.conformance.subjects.wrong.steps import (
    as_estimate,
    as_total,
    as_values,
    by_block,
    changed,
    dense_of,
    gradient,
    listed,
    of_batches,
    outer,
    quadratic_forms,
    spoils,
    whole,
)
from hesstheory.curvature.matrix import ggn, hessian
from hesstheory.problem.risk import Problem

# --- wrong batches -------------------------------------------------------------------------------
listed(
    "view",
    unweighted_batches=(
        "Averages batches without weighting them by their size.",
        lambda p: changed(p, batch_sizes=(1,) * len(p.batches)),
        as_estimate,
    ),
    last_batch_only=(
        "Differentiates the last batch instead of the data set.",
        lambda p: p.with_batches(p.batches[-1:]),
        as_values,
    ),
    first_batch_only=(
        "Differentiates the first batch instead of the data set.",
        lambda p: p.with_batches(p.batches[:1]),
        as_total,
    ),
)

listed(
    "forms",
    twice_the_last_batch=(
        "Reports twice the Hessian of the last batch.",
        lambda p, Z: 2 * quadratic_forms(p.with_batches(p.batches[-1:]), Z),
    ),
    summed_batches=(
        "Adds up the batches instead of averaging them.",
        lambda p, Z: of_batches(p, Z, [1.0] * len(p.batches)),
    ),
    summed_loss=(
        "Takes the sum of the losses of a batch for their mean.",
        lambda p, Z: of_batches(
            p, Z, [w * n for w, n in zip(p.weights, p.batch_sizes, strict=True)]
        ),
    ),
    weighted_twice=(
        "Multiplies every batch by its share of the samples twice.",
        lambda p, Z: of_batches(p, Z, [w * w for w in p.weights]),
        as_values,
    ),
    all_batches_as_large_as_the_first=(
        "Weights every batch by the size of the first.",
        lambda p, Z: of_batches(p, Z, [p.weights[0]] * len(p.batches)),
    ),
    ragged_batch_dropped=(
        "Drops batches smaller than the first, and still divides by the number of all samples.",
        lambda p, Z: of_batches(p, Z, [w if w >= p.weights[0] else 0.0 for w in p.weights]),
        as_estimate,
    ),
)


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


# --- another matrix ------------------------------------------------------------------------------
listed(
    "forms",
    gauss_newton_instead=(
        "Measures the Gauss-Newton matrix and calls it the Hessian.",
        lambda p, Z: ggn(p).quadratic_forms(Z),
        as_estimate,
    ),
    empirical_fisher=(
        "Measures the mean of g gᵀ over the samples' gradients g.",
        lambda p, Z: outer(p, torch.stack([gradient(sample) for sample in p.samples()]), Z),
    ),
    squared_gradient=(
        "Measures g gᵀ of the gradient g of the risk.",
        lambda p, Z: outer(p, gradient(p)[None], Z),
        as_values,
    ),
    squared_product=(
        "Squares the product Hz instead of multiplying it by z.",
        lambda p, Z: by_block(p, (hessian(p) @ Z).square()),
    ),
    negated=(
        "Differentiates the log-likelihood instead of the loss.",
        lambda p, Z: -quadratic_forms(p, Z),
        as_values,
    ),
    weight_decay=(
        "Counts a weight decay of 0.05 that is not in the loss.",
        lambda p, Z: quadratic_forms(p, Z) + 0.05 * by_block(p, Z.square()),
        as_values,
    ),
    coarse_differences=(
        "Takes central differences of the gradient at steps of one half.",
        lambda p, Z: by_block(p, Z * _differences(p, Z, 0.5)),
        as_estimate,
    ),
    differences_of_a_twentieth=(
        "Takes central differences of the gradient at steps of 0.05.",
        lambda p, Z: by_block(p, Z * _differences(p, Z, 0.05)),
        as_values,
    ),
    parameters_not_restored=(
        "Takes fine differences and walks the parameters back, which leaves rounding in them.",
        lambda p, Z: by_block(p, Z * _differences(p, Z, 0.0001, restore=False)),
    ),
)


@whole
def absolute_eigenvalues(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> dict[str, float]:
    """Adds up the absolute eigenvalues, exactly and without probes."""
    eigenvalues, Q = torch.linalg.eigh(dense_of(problem))
    diagonal = Q.square() @ eigenvalues.abs()
    return {block: float(diagonal[index].sum()) for block, index in problem.index.items()}


listed(
    "view",
    assumes_cross_entropy=(
        "Differentiates the cross-entropy whatever the loss.",
        lambda p: changed(p, loss_fn=F.cross_entropy),
    ),
)


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
