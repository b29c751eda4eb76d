"""Parameters that are left out, shifted, reordered or counted twice."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hesstheory.conformance.subjects.wrong.steps import (
    as_estimate,
    as_total,
    as_values,
    by_block,
    entries,
    forms_of,
    listed,
    quadratic_forms,
    sizes_of,
    spoils,
    with_model,
)
from hesstheory.curvature.matrix import hessian
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem

# --- parameters counted wrongly -------------------------------------------------------------------
listed(
    "forms",
    matrices_only=(
        "Leaves out tensors of one dimension.",
        lambda p, Z: forms_of(p, Z, {name for name, tensor in p.params.items() if tensor.ndim > 1}),
    ),
    first_tensor_only=(
        "Looks only at the first tensor of every block.",
        lambda p, Z: forms_of(p, Z, {names[0] for names in p.partition.blocks.values()}),
        as_values,
    ),
    first_eight_parameters=(
        "Looks only at the first eight parameters of every tensor.",
        lambda p, Z: forms_of(p, Z, set(p.params), 8),
        as_estimate,
    ),
    last_parameter_dropped=(
        "Ends the slice of every block one parameter early.",
        lambda p, Z: by_block(p, entries(p, Z), slice(-1)),
    ),
    slices_one_late=(
        "Begins and ends the slice of every block one parameter late.",
        lambda p, Z: by_block(p, entries(p, Z).roll(-1, 0)),
        as_values,
    ),
    single_parameters_skipped=(
        "Takes a block of one parameter for empty.",
        lambda p, Z: quadratic_forms(p, Z) * (sizes_of(p) > 1),
    ),
    neighbours_product=(
        "Multiplies every probe by the product of the next one.",
        lambda p, Z: by_block(p, Z * (hessian(p) @ Z).roll(-1, 1)),
        as_total,
    ),
)


@spoils("forms")
def alphabetical_order(problem: Problem, Z: Tensor) -> Tensor:
    """Flattens probes in the alphabetical order of names and products in the order of the model."""
    order = torch.cat([torch.arange(*problem.offsets[name]) for name in sorted(problem.params)])
    return by_block(problem, Z[order] * (hessian(problem) @ Z))


@spoils("forms")
def column_major(problem: Problem, Z: Tensor) -> Tensor:
    """Flattens probes row by row and products column by column."""
    products = hessian(problem) @ Z
    order = []
    for (start, _), p in zip(problem.offsets.values(), problem.params.values(), strict=True):
        order.append(
            start
            + torch.arange(p.numel()).reshape(p.shape).permute(*range(p.ndim)[::-1]).reshape(-1)
        )
    return by_block(problem, Z * products[torch.cat(order)])


def _unrolled(problem: Problem, *, first_only: bool) -> Problem:
    """Every use of a tied tensor has a tensor of its own; all but the first frozen if so asked."""
    model = copy.deepcopy(problem.model)
    aliases: dict[int, list[str]] = {}
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
    ties_counted_per_instance=(
        "Takes the uses of a tied tensor for tensors of their own, with probes of their own.",
        lambda p: _unrolled(p, first_only=False),
    ),
    tie_lost=(
        "Differentiates only the first use of a tied tensor.",
        lambda p: _unrolled(p, first_only=True),
        as_values,
    ),
)


@spoils("forms", as_estimate)
def ties_counted_twice(problem: Problem, Z: Tensor) -> Tensor:
    """Adds the trace of a tied tensor once for each of its names."""
    uses = dict.fromkeys(map(id, problem.params.values()), 0)
    for _, p in problem.model.named_parameters(remove_duplicate=False):
        uses[id(p)] = uses.get(id(p), 0) + 1
    times = torch.cat([torch.full((p.numel(),), uses[id(p)]) for p in problem.params.values()])
    return by_block(problem, times[:, None] * entries(problem, Z))
