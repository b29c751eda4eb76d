"""The Gauss-Newton matrix by its rows: traces and norms without a Hessian product."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.curvature.matrix import ggn
from hesstheory.harness.stages.agreement import (
    Rounding,
    against_products,
    against_rows,
    in_float64,
    norms_by_rows,
)
from hesstheory.harness.stages.matrices import full_forms, matrix_of, residual_forms, row_norms2
from hesstheory.harness.stages.stage import Found, Stage, by_layer, samples_of
from hesstheory.harness.subject import Subject
from hesstheory.outputs.gram import DualGram, dual_gram
from hesstheory.outputs.sketches import sketched_norms
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import timed
from hesstheory.run.streams import stream

# Rows, that is samples × columns, whose Gram matrices are formed; more are sketched. The matrices
# take 256² numbers for each of the 62 layers of ResNet-18, 33 MB, and time that grows likewise.
MOST_ROWS = 256
_SKETCHES = 4  # their spread is the error that is stated
_SKETCH_ROWS = 16  # of each: the cost of 16 backward passes


@dataclass(frozen=True)
class _Part:
    """The samples that are compared to rows, of all those that are measured."""

    samples: list[int] | slice
    problem: Problem
    num_rows: int
    sketched: bool


def dual(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """The Gauss-Newton matrix by its rows: traces, norms of diagonal blocks, and G = H − R."""
    part = _part_of(subject)
    verified = _verified(subject)
    subject.say(f"rows of the dual Gram matrices: {part.problem.num_samples} samples")
    Z = torch.cat([subject.probes(verified), subject.probes(verified, "norms")], 1)

    def rows() -> DualGram:
        samples = subject.ranks.share(part.problem.num_samples)
        return dual_gram(part.problem, Z, samples=samples, total=subject.ranks.total)

    seconds, gram = timed(rows, subject.device)
    stage = _logit_law(subject, gram, part)
    stage.seconds["dual_gram"] = seconds
    _add_norms(subject, gram, part, stage)
    _compare(subject, gram, part, Z, before, stage)
    return stage


def _part_of(subject: Subject) -> _Part:
    """All samples, or as many as have few enough rows."""
    problem = subject.problem
    columns = subject.settings.num_classes - 1
    num_rows = problem.num_samples * columns
    if num_rows <= MOST_ROWS:
        return _Part(slice(None), problem, num_rows, False)
    some = spaced(problem.num_samples, max(MOST_ROWS // columns, 2))
    return _Part(some, subject.some(some), num_rows, True)


def _verified(subject: Subject) -> list[int]:
    """Probes that are taken apart: the first and the last.

    Their products are of different groups if there are any.
    """
    return [0, subject.settings.probes - 1]


def spaced(number: int, most: int) -> list[int]:
    """So many samples at most, evenly spaced from the first to the last."""
    few = min(number, most)
    return [n * (number - 1) // (few - 1) for n in range(few)]


def _logit_law(subject: Subject, gram: DualGram, part: _Part) -> Stage:
    """What is known of the law of a logit probe, and the largest eigenvalue of G."""
    logit = logit_forms(gram)
    # The mean of all samples, of which these are some, varies by so much less.
    some = part.problem.num_samples
    variance = 2 * logit.square().sum((1, 2, 3)) * some / subject.problem.num_samples
    spectral = torch.linalg.eigvalsh(logit).abs().amax((1, 2))
    found: Found = {
        "sketched": part.sketched,
        "rows": part.num_rows,
        "logit_spectral": [float(x) for x in spectral],
    }
    if not part.sketched:
        found["largest_eigenvalue"] = float(torch.linalg.eigvalsh(gram.grams.sum(0)).max())
    return Stage({"logit_sd": by_layer(subject, variance.sqrt())}, found=found)


def logit_forms(gram: DualGram) -> Float[Tensor, "blocks samples columns columns"]:
    """Forms of the signs of one logit probe, without diagonal: a sample has one (claim G5)."""
    forms = torch.stack(list(gram.of_samples()), dim=1).cpu()
    off_diagonal = forms - torch.diag_embed(forms.diagonal(dim1=-2, dim2=-1))
    return off_diagonal / forms.shape[1]


def _add_norms(subject: Subject, gram: DualGram, part: _Part, stage: Stage) -> None:
    """‖G_ll‖² and ‖diag G_ll‖², exactly or from a few sketches, whose spread is their error."""
    if not part.sketched:
        stage.layers["norm2"] = by_layer(subject, gram.norms2)
        stage.layers["diagonal_norm2"] = by_layer(subject, gram.diagonal_norms2)
        stage.layers["norm2_stderr"] = by_layer(subject, torch.zeros_like(gram.norms2))
        return
    subject.say(f"{part.num_rows} rows are too many: norms from random combinations of them")
    sketches = [
        sketched_norms(
            subject.problem,
            stream(subject.settings.seed, "sketch", str(i)),
            num_rows=_SKETCH_ROWS,
            samples=subject.own_samples,
            total=subject.ranks.total,
        )
        for i in range(_SKETCHES)
    ]
    norms2 = torch.stack([sketch.norms2 for sketch in sketches])
    diagonals = torch.stack([sketch.diagonal_norms2 for sketch in sketches])
    stage.layers["norm2"] = by_layer(subject, norms2.mean(0))
    stage.layers["diagonal_norm2"] = by_layer(subject, diagonals.mean(0))
    # What the prediction of variances rests on (claim T2) is this difference.
    spread = (norms2 - 2 * diagonals).std(0) / math.sqrt(_SKETCHES)
    stage.layers["norm2_stderr"] = by_layer(subject, spread)


def _compare(
    subject: Subject,
    gram: DualGram,
    part: _Part,
    Z: Tensor,
    before: Mapping[str, Found],
    stage: Stage,
) -> None:
    """Exact traces, estimates and norms of products beside the rows."""
    verified = _verified(subject)
    rounding = Rounding.of(subject, before["kinks"]["found"])
    two = Z[:, : len(verified)]
    traces = samples_of(before, "exact")[part.samples]
    q = samples_of(before, "estimates")[verified]
    if part.sketched:  # what is compared to rows is of some samples alone
        stage.checks.append(against_products(subject, verified, q, rounding.of_products))
        q = full_forms(subject, matrix_of(subject), part.problem, two)
    residuals = residual_forms(subject, part.problem, two)
    stage.checks += against_rows(subject, gram, (traces, q, residuals), rounding)
    squares = row_norms2(subject, ggn, verified, part.problem)
    stage.checks.append(
        norms_by_rows(subject, gram, squares, slice(len(verified), None), 2 * rounding.of_forms)
    )
    if subject.problem.dtype != torch.float64:
        stage.checks += in_float64(subject, two, verified)
