"""Side effects, dtypes and edges, and memory between calls."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, MutableMapping
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hesstheory.conformance.subjects.wrong.steps import (
    Report,
    as_estimate,
    as_pairs,
    as_total,
    as_values,
    by_block,
    dense_of,
    listed,
    spoils,
    whole,
    with_model,
)
from hesstheory.curvature.matrix import hessian
from hesstheory.problem.risk import Problem


# --- side effects --------------------------------------------------------------------------------
def _after(effect: Callable[[Problem], object]) -> Report:
    """The right answer, and what happens to the problem after it is found."""

    def report(problem: Problem, samples: Tensor, values: Tensor, errors: Tensor) -> Any:
        effect(problem)
        return as_pairs(problem, samples, values, errors)

    return report


listed(
    "report",
    leaves_train_mode=(
        "Leaves the model in train mode.",
        _after(lambda p: p.model.train()),
    ),
    leaves_last_module_in_train_mode=(
        "Leaves the last module only in train mode.",
        _after(lambda p: list(p.model.modules())[-1].train()),
    ),
    leaves_gradients=(
        "Leaves gradients in .grad.",
        _after(lambda p: torch.autograd.backward(p.loss(p.batches[0]))),
    ),
    clears_gradients=(
        "Clears the gradients that the user had in .grad.",
        _after(lambda p: p.model.zero_grad()),
    ),
    freezes_the_model=(
        "Leaves the parameters frozen.",
        _after(lambda p: p.model.requires_grad_(False)),
    ),
    leaves_a_buffer=(
        "Leaves one more buffer in the model.",
        _after(lambda p: p.model.register_buffer("hessian_trace", torch.zeros(()))),
    ),
    leaves_model_in_float64=(
        "Leaves the model in float64.",
        _after(lambda p: p.model.double()),
    ),
)

listed(
    "view",
    train_mode_copy=(
        "Measures a copy of the model in train mode.",
        lambda p: with_model(p, copy.deepcopy(p.model).train()),
        as_estimate,
    ),
)


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


# --- dtypes, autograd, edges ---------------------------------------------------------------------
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
    half_precision_answer=(
        "Rounds its answer to float16.",
        lambda s: s.mean(0).half(),
        as_values,
    ),
    nan_for_one_probe=(
        "Returns NaN for one probe.",
        lambda s: s.mean(0) * (len(s) - 1) / torch.tensor(len(s) - 1.0),
        as_values,
    ),
    nan_for_zero_curvature=(
        "Divides by the trace and multiplies by it again, which makes zero NaN.",
        lambda s: s.mean(0).square() / s.mean(0),
        as_values,
    ),
)

listed(
    "forms",
    probes_always_double=(
        "Fails on a float32 model, for its probes are float64.",
        lambda p, Z: hessian(p).quadratic_forms(Z.double()),
    ),
    frees_the_graph=(
        "Fails from the second probe on, for the first one frees the graph.",
        lambda p, Z: _double_backward(p, Z, keep=False, materialize=True),
    ),
    insists_on_every_parameter=(
        "Fails where the loss does not reach a parameter, or does so without curvature.",
        lambda p, Z: _double_backward(p, Z, keep=True, materialize=False),
        as_values,
    ),
)


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
    fails_for_one_probe=(
        "Fails for one probe, which has no variance.",
        lambda p, s, v, e: as_pairs(
            p, s, v, torch.tensor([statistics.stdev(c) / len(s) ** 0.5 for c in s.mT.tolist()])
        ),
    ),
    nan_in_last_block=(
        "Returns NaN for the last block.",
        lambda p, s, v, e: as_pairs(p, s, torch.cat([v[:-1], v[-1:] * math.nan]), e),
    ),
    complex_traces=(
        "Returns complex numbers, as a nonsymmetric eigensolver would.",
        lambda p, s, v, e: {
            block: complex(value) for block, value in as_values(p, s, v, e).items()
        },
    ),
)

# --- memory between calls ------------------------------------------------------------------------
_FIRST_ANSWERS: dict[tuple[str, ...], Any] = {}

_FIRST_CURVATURES: MutableMapping[nn.Module, Tensor] = WeakKeyDictionary()

_PAST_MEANS: MutableMapping[Problem, list[Tensor]] = WeakKeyDictionary()

listed(
    "forms",
    first_curvature_for_ever=(
        "Keeps the Hessian of a model's first problem, though the next one has other data.",
        lambda p, Z: by_block(
            p, Z * (_FIRST_CURVATURES.setdefault(p.model, dense_of(p)).to(Z) @ Z)
        ),
    ),
)

listed(
    "report",
    first_answer_for_ever=(
        "Returns the first answer that it gave for blocks of these names.",
        lambda p, s, v, e: _FIRST_ANSWERS.setdefault(tuple(p.index), as_pairs(p, s, v, e)),
    ),
)


@spoils("report")
def averages_over_calls(problem: Problem, samples: Tensor, values: Tensor, errors: Tensor) -> Any:
    """Returns the mean of all answers that it gave for this problem."""
    past = _PAST_MEANS.setdefault(problem, [])
    past.append(values)
    return as_values(problem, samples, torch.stack(past).mean(0), errors)
