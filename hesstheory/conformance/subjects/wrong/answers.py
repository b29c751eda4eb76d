"""Wrong averages, standard errors, blocks, budgets and stopping rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.conformance.subjects.wrong.steps import (
    as_estimate,
    as_pairs,
    as_total,
    as_values,
    by_block,
    dense_of,
    draw_signs,
    listed,
    quadratic_forms,
    sizes_of,
    spoils,
    stderr_of,
    whole,
)
from hesstheory.curvature.matrix import hessian
from hesstheory.problem.risk import Problem

# --- wrong averages -------------------------------------------------------------------------------
listed(
    "reduce",
    summed_probes=(
        "Adds up the probes instead of averaging them.",
        lambda s: s.sum(0),
    ),
    divided_twice=(
        "Divides by the number of probes twice.",
        lambda s: s.mean(0) / len(s),
        as_values,
    ),
    divided_by_one_less=(
        "Divides by K − 1 instead of K.",
        lambda s: s.sum(0) / (len(s) - 1),
        as_total,
    ),
    median_of_probes=(
        "Takes the lower median over the probes for their mean.",
        lambda s: s.median(0).values,
        as_values,
    ),
    largest_discarded=(
        "Discards the largest quadratic form as an outlier.",
        lambda s: s.sort(0).values[: max(len(s) - 1, 1)].mean(0),
    ),
    negative_traces_clamped=(
        "Reports zero for a trace that comes out negative.",
        lambda s: s.mean(0).clamp(min=0),
    ),
    one_percent_high=(
        "Reports every trace one per cent too large.",
        lambda s: 1.01 * s.mean(0),
    ),
    one_percent_low=(
        "Reports the total one per cent too small.",
        lambda s: 0.99 * s.mean(0),
        as_total,
    ),
    one_percent_high_in_one_block=(
        "Reports the trace of the first block one per cent too large.",
        lambda s: torch.cat([1.01 * s[:, :1], s[:, 1:]], 1).mean(0),
        as_values,
    ),
)

listed(
    "forms",
    absolute_samples=(
        "Takes the absolute value of every quadratic form.",
        lambda p, Z: quadratic_forms(p, Z).abs(),
        as_estimate,
    ),
    two_percent_high=(
        "Makes every quadratic form two per cent too large.",
        lambda p, Z: 1.02 * quadratic_forms(p, Z),
        as_estimate,
    ),
)

# --- wrong standard errors ------------------------------------------------------------------------
listed(
    "spread",
    stderr_zero=(
        "Reports a standard error of zero.",
        lambda p, s: torch.zeros_like(s[0]),
    ),
    stderr_too_small_by_root_two=(
        "Divides the standard error by √2.",
        lambda p, s: stderr_of(p, s) / math.sqrt(2),
    ),
    stderr_too_large_by_root_two=(
        "Multiplies the standard error by √2.",
        lambda p, s: stderr_of(p, s) * math.sqrt(2),
    ),
    stderr_doubled=(
        "Reports half of a 95 % interval as the standard error.",
        lambda p, s: 1.96 * stderr_of(p, s),
    ),
    stderr_four_times=(
        "Reports four times the standard error.",
        lambda p, s: 4 * stderr_of(p, s),
    ),
    stderr_ten_times=(
        "Reports ten times the standard error.",
        lambda p, s: 10 * stderr_of(p, s),
    ),
    stderr_without_root_k=(
        "Reports the spread of one probe as that of the mean.",
        lambda p, s: stderr_of(p, s) * math.sqrt(len(s)),
    ),
    stderr_divided_by_k=(
        "Divides the spread of one probe by K instead of √K.",
        lambda p, s: stderr_of(p, s) / math.sqrt(len(s)),
    ),
    stderr_not_rooted=(
        "Reports the variance of the mean as its standard error.",
        lambda p, s: stderr_of(p, s).square(),
    ),
    stderr_relative=(
        "Reports the relative standard error as the absolute one.",
        lambda p, s: stderr_of(p, s) / s.mean(0).abs(),
    ),
    stderr_constant=(
        "Reports a standard error of one whatever the samples.",
        lambda p, s: torch.ones_like(s[0]),
    ),
    stderr_of_the_neighbour=(
        "Reports the standard error of the next block.",
        lambda p, s: stderr_of(p, s).roll(-1),
    ),
    stderr_of_the_total=(
        "Reports the standard error of the total with every block.",
        lambda p, s: stderr_of(p, s.sum(1, keepdim=True)).expand(s.shape[1]),
    ),
    stderr_of_the_first_half=(
        "Reports the standard error of the first half of the probes.",
        lambda p, s: stderr_of(p, s[: (len(s) + 1) // 2]),
    ),
    stderr_of_median_deviation=(
        "Takes the median absolute deviation for the standard deviation, without 1.48.",
        lambda p, s: (s - s.median(0).values).abs().median(0).values / math.sqrt(len(s)),
    ),
    stderr_predicted_for_normals=(
        "Predicts the standard error of normals for signs.",
        lambda p, s: (
            theory.probe_covariance_matrix(dense_of(p), p.index, 3.0).diagonal() / len(s)
        ).sqrt(),
    ),
)


@spoils("spread")
def stderr_without_cross_blocks(problem: Problem, samples: Tensor) -> Tensor:
    """Predicts the standard error without the blocks that couple layers."""
    blocks = [dense_of(problem)[index][:, index] for index in problem.index.values()]
    own = torch.stack([2 * (H.square().sum() - H.diagonal().square().sum()) for H in blocks])
    return (own / len(samples)).sqrt()


listed(
    "report",
    stderr_signed=(
        "Multiplies the relative standard error by the trace, so that a negative trace has a "
        "negative one.",
        lambda p, s, v, e: as_pairs(p, s, v, e * v.sign()),
    ),
    rows_recorded_twice=(
        "Records every probe twice in its Estimate, which makes its standard error too small.",
        lambda p, s, v, e: as_estimate(p, s.repeat(2, 1), v, e),
    ),
)

# --- wrong blocks ---------------------------------------------------------------------------------
listed(
    "report",
    shifted_blocks=(
        "Hands every block the trace of its neighbour.",
        lambda p, s, v, e: as_pairs(p, s, v.roll(-1), e.roll(-1)),
    ),
    swapped_blocks=(
        "Exchanges the first two blocks.",
        lambda p, s, v, e: as_values(p, s, torch.cat([v[:2].flip(0), v[2:]]), e),
    ),
    sorted_names=(
        "Sorts the names of the blocks and not their traces, largest name first.",
        lambda p, s, v, e: dict(zip(sorted(p.index, reverse=True), v.tolist(), strict=True)),
    ),
    mean_curvature=(
        "Divides every trace by the number of its parameters.",
        lambda p, s, v, e: as_pairs(p, s, v / sizes_of(p), e / sizes_of(p)),
    ),
    missing_block=(
        "Leaves out the last block.",
        lambda p, s, v, e: dict(list(as_pairs(p, s, v, e).items())[:-1]),
    ),
    extra_block=(
        "Reports the total among the blocks.",
        lambda p, s, v, e: {**as_values(p, s, v, e), "total": float(v.sum())},
    ),
    flat_blocks_left_out=(
        "Leaves out blocks whose trace is zero.",
        lambda p, s, v, e: {
            block: value for block, value in as_values(p, s, v, e).items() if value
        },
    ),
    tied_block_split=(
        "Reports a tied block under the name of its first owner.",
        lambda p, s, v, e: {
            name.split("+")[0]: pair for name, pair in as_pairs(p, s, v, e).items()
        },
    ),
    total_averaged_over_blocks=(
        "Reports the mean of the blocks as their total.",
        lambda p, s, v, e: float(v.mean()),
    ),
)

# --- wrong budgets and stopping rules -------------------------------------------------------------
listed(
    "draw",
    one_probe_always=(
        "Draws one probe whatever the number asked for.",
        lambda p, K, g: draw_signs(p, 1, g),
        as_values,
    ),
    ten_probes_always=(
        "Draws ten probes whatever the number asked for.",
        lambda p, K, g: draw_signs(p, 10, g),
    ),
    five_probes_at_most=(
        "Draws no more than five probes.",
        lambda p, K, g: draw_signs(p, min(K, 5), g),
        as_estimate,
    ),
    one_probe_short=(
        "Throws the first probe away, also where it is the only one.",
        lambda p, K, g: draw_signs(p, K, g)[:, 1:],
    ),
)

listed(
    "forms",
    gradients_pile_up=(
        "Does not clear .grad between probes, so that products pile up.",
        lambda p, Z: by_block(p, Z * (hessian(p) @ Z).cumsum(1)),
    ),
)


def _stopped(samples: Tensor, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """The running mean of each block at the first probe that moves it by less than 1e-3 of it."""
    means = samples.cumsum(0) / torch.arange(1, len(samples) + 1)[:, None]
    before = torch.cat([0 * means[:1], means[:-1]])
    rests = (means - before).abs() / (scale(before) + 1e-6) < 1e-3
    return means.gather(0, torch.where(rests.any(0), rests.int().argmax(0), len(means) - 1)[None])[
        0
    ]


listed(
    "reduce",
    stops_when_the_mean_rests=(
        "Stops a block when its running mean moves by less than one part in a thousand.",
        lambda s: _stopped(s, torch.abs),
        as_values,
    ),
    stops_with_signed_denominator=(
        "Stops a block when its mean moves by little of itself, be it negative.",
        lambda s: _stopped(s, torch.positive),
        as_values,
    ),
)


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
    third = max(num_probes // 3, 1)
    H = hessian(problem)
    S, G = (draw_signs(problem, third, generator).to(problem.dtype) for _ in range(2))
    Q = torch.linalg.qr(H @ S).Q
    return float((Q * (H @ Q)).sum() + (G * (H @ G)).sum() / third)
