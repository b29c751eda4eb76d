"""Oversights at the edges: layouts, names, later batches, numbers of probes, leftovers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hesstheory.conformance.subjects.wrong.steps import (
    as_estimate,
    as_values,
    by_block,
    draw_signs,
    entries,
    listed,
    quadratic_forms,
    spoils,
    stderr_of,
    whole,
)
from hesstheory.curvature.matrix import hessian
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem


# --- parameters and batches -----------------------------------------------------------------------
@spoils("forms")
def scalars_skipped(problem: Problem, Z: Tensor) -> Tensor:
    """Leaves parameters without dimensions out of the probe."""
    ranks = [torch.full((p.numel(),), float(p.ndim > 0)) for p in problem.params.values()]
    return quadratic_forms(problem, Z * torch.cat(ranks)[:, None])


@spoils("draw", as_values)
def rows_share_a_sign(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Draws one sign for all entries along the last axis of a tensor of rank three."""
    Z = draw_signs(problem, num_probes, generator).clone()
    for (start, stop), p in zip(problem.offsets.values(), problem.params.values(), strict=True):
        if p.ndim == 3:
            z = Z[start:stop].reshape(*p.shape, -1)
            Z[start:stop] = z[:, :, :1].expand_as(z).reshape(stop - start, -1)
    return Z


@spoils("forms", as_values)
def flattened_by_memory(problem: Problem, Z: Tensor) -> Tensor:
    """Flattens the product of a transposed parameter by its memory and the probe by its indices."""
    HZ = hessian(problem) @ Z
    for (start, stop), p in zip(problem.offsets.values(), problem.params.values(), strict=True):
        order = sorted(range(p.ndim), key=p.stride, reverse=True)
        HZ[start:stop] = (
            HZ[start:stop].reshape(*p.shape, -1).permute(*order, p.ndim).reshape(stop - start, -1)
        )
    return by_block(problem, Z * HZ)


@spoils("forms")
def blocks_taken_for_slices(problem: Problem, Z: Tensor) -> Tensor:
    """Takes every block for a slice of the flat vector that starts where the last one ends."""
    parts = torch.split(entries(problem, Z), [len(index) for index in problem.index.values()])
    return torch.stack([part.sum(0) for part in parts], 1)


@spoils("report")
def layers_under_other_names(
    problem: Problem, samples: Tensor, values: Tensor, errors: Tensor
) -> Any:
    """Measures layers, and gives them the names of the blocks where there are as many."""
    layers = problem.with_partition(Partition.by_layer(problem.model))
    if len(layers.index) != len(problem.index):
        return as_values(problem, samples, values, errors)
    Z = draw_signs(
        problem, len(samples), torch.Generator().manual_seed(int(1e6 * float(values.sum())) % 2**40)
    )
    return as_values(problem, samples, quadratic_forms(layers, Z.to(problem.dtype)).mean(0), errors)


@spoils("report")
def names_by_their_beginning(
    problem: Problem, samples: Tensor, values: Tensor, errors: Tensor
) -> Any:
    """Gives a block all tensors whose names begin with that of the block."""
    of = [
        values[[other.startswith(name) for other in problem.index]].sum() for name in problem.index
    ]
    return as_values(problem, samples, torch.stack(of), errors)


@spoils("report")
def fourth_block_is_the_first(
    problem: Problem, samples: Tensor, values: Tensor, errors: Tensor
) -> Any:
    """Counts blocks modulo three."""
    return as_values(problem, samples, values[torch.arange(len(values)) % 3], errors)


@spoils("forms", as_values)
def a_batch_for_each_probe(problem: Problem, Z: Tensor) -> Tensor:
    """Takes the batches in turn, one for each probe, and the mean over the probes."""
    parts = [problem.with_batches([batch]) for batch in problem.batches]
    B = len(parts)
    samples = Z.new_zeros(Z.shape[1], len(problem.index), dtype=torch.float64)
    for b, part in enumerate(parts[: len(samples)]):
        samples[b::B] = B * problem.weights[b] * quadratic_forms(part, Z[:, b::B])
    return samples


@spoils("view")
def two_batches_at_most(problem: Problem) -> Problem:
    """Looks at the first two batches alone."""
    return problem.with_batches(problem.batches[:2])


@whole
def stops_at_a_linear_tensor(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> dict[str, float]:
    """Ends the loop over tensors at the first one without a second derivative."""
    Z = draw_signs(problem, num_probes, generator)
    products = torch.zeros_like(Z)
    HZ = (hessian(problem) @ Z.to(problem.dtype)).double()
    for start, stop in problem.offsets.values():
        if not HZ[start:stop].any():
            break
        products[start:stop] = Z[start:stop] * HZ[start:stop]
    return dict(zip(problem.index, by_block(problem, products).mean(0).tolist(), strict=True))


# --- probes ---------------------------------------------------------------------------------------
@spoils("draw", as_values)
def seed_of_twelve_bits(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Seeds a generator of its own with one of 4096 numbers."""
    seed = int(torch.randint(4096, (), generator=generator))
    return draw_signs(problem, num_probes, torch.Generator().manual_seed(seed))


@spoils("draw")
def last_probe_is_the_first(
    problem: Problem, num_probes: int, generator: torch.Generator
) -> Tensor:
    """Takes the first probe again for the last one."""
    Z = draw_signs(problem, num_probes, generator).clone()
    Z[:, -1] = Z[:, 0]
    return Z


@spoils("draw", as_values)
def one_probe_is_ones(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Takes the vector of ones where one probe is asked for."""
    Z = draw_signs(problem, num_probes, generator)
    return torch.ones_like(Z) if num_probes == 1 else Z


@spoils("draw", as_estimate)
def chunks_from_one_seed(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Draws probes in chunks of 64, each from the same seed."""
    seed = int(torch.randint(2**40, (), generator=generator))
    chunk = draw_signs(problem, 64, torch.Generator().manual_seed(seed))
    return chunk.repeat(1, -(-num_probes // 64))[:, :num_probes]


@spoils("forms")
def given_signed(problem: Problem, Z: Tensor) -> Tensor:
    """Takes the signs of the probes that it is given."""
    return quadratic_forms(problem, torch.where(Z < 0, -1.0, 1.0).to(Z))


def _hundred(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    return draw_signs(problem, min(num_probes, 100), generator)


listed("draw", hundred_probes_at_most=("Draws a hundred probes at most.", _hundred, as_values))


# --- means and errors -----------------------------------------------------------------------------
@spoils("reduce")
def mean_of_chunks(samples: Tensor) -> Tensor:
    """Averages the means of chunks of 16 probes, the last of which may be one probe."""
    return torch.stack([chunk.mean(0) for chunk in torch.split(samples, 16)]).mean(0)


@spoils("reduce", as_values)
def median_of_four_means(samples: Tensor) -> Tensor:
    """Takes the median of the means of four groups."""
    return torch.stack([group.mean(0) for group in samples.chunk(4)]).quantile(0.5, dim=0)


def _divided_by_k(problem: Problem, samples: Tensor) -> Tensor:
    return samples.std(0, unbiased=False) / math.sqrt(len(samples))


def _divided_by_one_less(problem: Problem, samples: Tensor) -> Tensor:
    return samples.std(0) / math.sqrt(max(len(samples) - 1, 1))


def _zero_for_one(problem: Problem, samples: Tensor) -> Tensor:
    return stderr_of(problem, samples) if len(samples) > 1 else torch.zeros(len(problem.index))


listed(
    "spread",
    stderr_zero_for_one=("Claims the standard error 0 for one probe.", _zero_for_one),
    stderr_without_correction=("Divides the squares by K where K − 1 is right.", _divided_by_k),
    stderr_corrected_twice=(
        "Divides by √(K − 1) where √K is right, after the sum of squares was divided by K − 1.",
        _divided_by_one_less,
    ),
)

# --- what stays from call to call -----------------------------------------------------------------
_BY_VERSION: dict[tuple[Any, ...], Tensor] = {}

_BY_MODEL: MutableMapping[nn.Module, tuple[str, ...]] = WeakKeyDictionary()


def _values_of(tensors: Iterable[Tensor]) -> tuple[float, ...]:
    return tuple(float(tensor.detach().double().sum()) for tensor in tensors)


def _known(problem: Problem, key: tuple[Any, ...]) -> Tensor:
    whole_key = (id(problem.model), id(problem.loss_fn), len(problem.batches), *key)
    if whole_key not in _BY_VERSION:
        _KEPT.append(problem)  # else another problem may get its id
        _BY_VERSION[whole_key] = hessian(problem).to_dense()
    return _BY_VERSION[whole_key]


_KEPT: list[Problem] = []


@spoils("forms", as_values)
def cached_by_version(problem: Problem, Z: Tensor) -> Tensor:
    """Keeps the Hessian while autograd counts no new version of the parameters."""
    key = tuple(p._version for p in problem.params.values())
    return by_block(
        problem, Z.double() * (_known(problem, (*key, "version", id(problem.batches))) @ Z.double())
    )


@spoils("forms")
def cached_without_buffers(problem: Problem, Z: Tensor) -> Tensor:
    """Keeps the Hessian while the parameters stay, whatever the buffers do."""
    key = (*_values_of(problem.params.values()), id(problem.batches))
    return by_block(problem, Z.double() * (_known(problem, key) @ Z.double()))


@spoils("report")
def blocks_of_the_first_partition(
    problem: Problem, samples: Tensor, values: Tensor, errors: Tensor
) -> Any:
    """Keeps the names of the blocks of a model from its first partition."""
    names = _BY_MODEL.setdefault(problem.model, tuple(problem.index))
    known = names if len(names) == len(values) else tuple(problem.index)
    return dict(zip(known, values.tolist(), strict=True))


@spoils("report")
def hooks_left_on_parameters(
    problem: Problem, samples: Tensor, values: Tensor, errors: Tensor
) -> Any:
    """Leaves a hook on a parameter."""
    next(iter(problem.params.values())).register_hook(lambda gradient: None)  # type: ignore[no-untyped-call]
    return as_values(problem, samples, values, errors)


@spoils("report")
def anomaly_mode_left(problem: Problem, samples: Tensor, values: Tensor, errors: Tensor) -> Any:
    """Leaves the search for anomalies on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.autograd.set_detect_anomaly(True)
    return as_values(problem, samples, values, errors)
