"""The measurements of a full-scale run, each a function from the subject and what was found before to plain numbers.

A stage returns `layers` (a number by name and layer), `checks` (of `evidence`), `seconds` and whatever else it found.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import theory
from hesstheory.autograd.graph import NotTwiceDifferentiable, differentiating
from hesstheory.curvature.matrix import Curvature, ggn, hessian, residual
from hesstheory.estimators.from_outputs import LogitProbeTrace
from hesstheory.estimators.probes import Rademacher
from hesstheory.evidence.checks import Check, Kind, Status
from hesstheory.evidence.sequential import Tail
from hesstheory.harness.subject import Subject
from hesstheory.outputs.gram import DualGram, dual_gram
from hesstheory.outputs.sketches import sketched_norms
from hesstheory.outputs.traces import exact_traces, sample_traces
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import seconds_of
from hesstheory.run.memory import keep_freed_memory
from hesstheory.run.streams import stream
from hesstheory.zoo.full_scale import TwoExits

Found = dict[str, Any]

ALPHA = 1e-6  # of a run whose numbers are right, for each of the tests of means
VARIANCE_ALPHA = 1e-3  # of the test of variances
_MOST_ROWS = 256  # of the dual Gram matrices; more samples × columns are sketched
_SKETCHES, _SKETCH_ROWS = 4, 16
_GROUP = 8  # probes whose products are held at once
_STEPS = (
    1e-8,
    1e-9,
    1e-10,
    1e-11,
)  # relative: the shorter, the fewer kinks lie between, and the more rounding counts
_NORM_PROBES = 16  # at least, for the norms of the blocks


@dataclass
class Stage:
    """What a stage found."""

    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    found: Found = field(default_factory=dict)


def matrix_of(subject: Subject) -> Callable[[Problem], Curvature]:
    """What is estimated: the Hessian where its block traces are known, else the Gauss-Newton matrix."""
    return hessian if subject.piecewise_linear else ggn


# --- stages -----------------------------------------------------------------------------------------------------------


def gradient(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """The unit of cost: the quickest gradient of the whole batch by this process, with memory kept as products do."""
    keep_freed_memory()

    def of(problem: Problem) -> float:
        return min(seconds_of(partial(_flat_gradient, problem), subject.device) for _ in range(6))

    return Stage(seconds={"gradient": subject.halving(of, subject.problem)})


def kinks(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """How many units rounding switches on or off, in float32 beside float64 and in samples alone beside the batch.

    Each changes the matrix by its share of its layer, whatever the digits of the dtype.
    """
    problem, units, flipped, share = subject.problem, 0, 0, 0.0
    if problem.dtype != torch.float64:
        reference = subject.halving(_switches, problem.double())
        for way in (problem, problem.rebatched(1)):
            for low, high in zip(subject.halving(_switches, way), reference, strict=True):
                wrong = int((low != high).sum())
                units, flipped, share = (
                    units + low.numel(),
                    flipped + wrong,
                    max(share, wrong / low.numel()),
                )
    eps = torch.finfo(problem.dtype).eps
    # Units that flip independently change a product, relatively, by the root of their share; four times that.
    return Stage(
        found={"units": units, "flipped": flipped, "tolerance": eps**0.5 + 4 * math.sqrt(share)}
    )


def _switches(problem: Problem) -> list[Tensor]:
    """Which units of every ReLU are on, and which inputs every maximum takes."""
    modules = [m for m in problem.model.modules() if isinstance(m, nn.ReLU | nn.MaxPool2d)]
    found: list[list[Tensor]] = [[] for _ in modules]

    def record(number: int, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        if isinstance(module, nn.MaxPool2d):
            _, out = F.max_pool2d(args[0], module.kernel_size, module.stride, return_indices=True)
            found[number].append(out.cpu())
        else:
            found[number].append((out > 0).cpu())

    handles = [m.register_forward_hook(partial(record, number)) for number, m in enumerate(modules)]
    try:
        with torch.no_grad():
            for batch in problem.batches:
                problem.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts) for parts in found]


def exact(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """Exact block traces, the ground truth, sample by sample."""
    target = "hessian" if subject.piecewise_linear else "ggn"
    found: list[Float[Tensor, "samples blocks"]] = []

    def work() -> None:
        found.append(
            subject.each_sample(lambda local: torch.tensor(sample_traces(local, target).to_numpy()))
        )

    seconds = seconds_of(work, subject.device)
    (traces,) = found
    return Stage(
        {
            "exact": _by_layer(subject, traces.mean(0)),
            "sample_trace_sd": _by_layer(subject, traces.std(0)),
        },
        seconds={"exact_traces": seconds},
        found={"samples": traces.tolist()},
    )


def estimates(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """One-product estimates, a probe from a stream of its own each."""
    K, matrix = subject.settings.probes, matrix_of(subject)
    samples: list[Tensor] = []
    groups = [range(start, min(start + _GROUP, K)) for start in range(0, K, _GROUP)]
    graph = min(seconds_of(partial(_graphs, subject, matrix), subject.device) for _ in range(3))
    seconds = 0.0
    for group in groups:
        subject.say(f"products with probes {group.start + 1} to {group.stop} of {K}")
        seconds += seconds_of(
            partial(_append_forms, samples, subject, matrix, group), subject.device
        )
    q = torch.cat(samples).cpu()
    distinct = len(torch.unique(q, dim=0))
    per_probe = max(seconds - len(groups) * graph, 1e-9) / K
    return Stage(
        {
            "estimate": _by_layer(subject, q.mean(0)),
            "stderr": _by_layer(subject, q.std(0) / math.sqrt(K)),
        },
        [_at_most("probes differ", K - distinct, 0, "samples that repeat another one")],
        seconds={"product": per_probe, "graph": graph, "estimates": seconds},
        found={"samples": q.tolist()},
    )


def _graphs(subject: Subject, matrix: Callable[[Problem], Curvature]) -> None:
    """What is built before the first product, and dropped."""

    def build(problem: Problem) -> Tensor:
        for _ in matrix(problem).pushes():
            pass
        return torch.zeros(())

    if subject.settings.parallel == "data":
        subject.over_samples(build)
    else:
        subject.ranks.agreed(lambda: subject.halving(build, subject.problem))


def _append_forms(samples: list[Tensor], *arguments: Any) -> None:
    samples.append(_forms(*arguments))


def _forms(
    subject: Subject, matrix: Callable[[Problem], Curvature], numbers: range
) -> Float[Tensor, "probes blocks"]:
    """q_l = z_lᵀ(Mz)_l of the numbered probes: of all samples together, or of this process's probes and all samples."""
    if subject.settings.parallel == "data" or subject.ranks.count == 1:
        Z = subject.probes(numbers)
        return subject.over_samples(lambda local: matrix(local).quadratic_forms(Z))
    mine = subject.ranks.share(len(numbers))
    q = torch.zeros(
        len(numbers),
        len(subject.problem.partition.blocks),
        dtype=torch.float64,
        device=subject.device,
    )

    def work() -> Tensor:
        Z = subject.probes(range(numbers.start + mine.start, numbers.start + mine.stop))
        return subject.halving(lambda problem: matrix(problem).quadratic_forms(Z), subject.problem)

    if len(mine):
        q[mine.start : mine.stop] = subject.ranks.agreed(work)
    else:
        subject.ranks.agreed(lambda: None)
    return subject.ranks.total(q)


def dual(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """The Gauss-Newton matrix by its rows, without Hessian products: traces, norms of diagonal blocks, G = H - R."""
    problem, per_sample = subject.problem, subject.settings.num_classes - 1
    num_rows = problem.num_samples * per_sample
    sketch = num_rows > _MOST_ROWS
    some = _spaced(problem.num_samples, max(_MOST_ROWS // per_sample, 2))
    part = subject.some(some) if sketch else problem
    subject.say(f"rows of the dual Gram matrices: {part.num_samples} samples")
    verified, two = _verified(subject), slice(2)
    Z = torch.cat([subject.probes(verified), subject.probes(verified, "norms")], 1)
    grams: list[DualGram] = []

    def rows() -> None:
        samples = subject.ranks.share(part.num_samples)
        grams.append(dual_gram(part, Z, samples=samples, total=subject.ranks.total))

    seconds = {"dual_gram": seconds_of(rows, subject.device)}
    (gram,) = grams
    logit = _logit_forms(gram)
    # The mean of all samples, of which these are some, varies by so much less.
    logit_variance = 2 * logit.square().sum((1, 2, 3)) * part.num_samples / problem.num_samples
    stage = Stage(
        {"logit_sd": _by_layer(subject, logit_variance.sqrt())},
        seconds=seconds,
        found={
            "sketched": sketch,
            "rows": num_rows,
            "logit_spectral": [float(x) for x in torch.linalg.eigvalsh(logit).abs().amax((1, 2))],
        },
    )
    if not sketch:
        stage.found["largest_eigenvalue"] = float(torch.linalg.eigvalsh(gram.grams.sum(0)).max())
    _norms(subject, gram, sketch, stage)
    q = torch.tensor(before["estimates"]["found"]["samples"], dtype=torch.float64)[verified]
    traces = torch.tensor(before["exact"]["found"]["samples"], dtype=torch.float64)
    if sketch:  # what is compared to rows is of some samples alone
        traces = traces[some]
        stage.checks.append(_against_products(subject, q, before["kinks"]["found"]["tolerance"]))
        q = _full_forms(subject, matrix_of(subject), part, Z[:, two])
    residuals = _residual_forms(subject, part, Z[:, two])
    tolerance, flipped = (before["kinks"]["found"][key] for key in ("tolerance", "flipped"))
    # What a switched unit does to a single layer has no bound; it must stay below the standard error of the estimate.
    of_forms = max(tolerance, 1 / math.sqrt(subject.settings.probes)) if flipped else tolerance
    stage.checks += _against_rows(subject, gram, (traces, q, residuals), (tolerance, of_forms), "")
    norms2 = gram.squared_product_norms().cpu()[2:]
    found = _row_norms2(subject, ggn, verified, part)
    scale = norms2 + gram.traces.cpu().square()
    stage.checks.append(
        _close("norms of products by rows", found - norms2, scale, subject, 2 * of_forms)
    )
    if problem.dtype != torch.float64:
        stage.checks += _in_float64(subject, Z[:, two])
    return stage


def _verified(subject: Subject) -> list[int]:
    """Probes that are taken apart: the first and the last, whose products are of different groups if there are any."""
    return [0, subject.settings.probes - 1]


def _spaced(number: int, most: int) -> list[int]:
    """So many samples at most, evenly spaced from the first to the last."""
    few = min(number, most)
    return [n * (number - 1) // (few - 1) for n in range(few)]


def _norms(subject: Subject, gram: DualGram, sketch: bool, stage: Stage) -> None:
    """‖G_ll‖² and ‖diag G_ll‖², exactly or from a few sketches, whose spread is their error."""
    kinds = {"norm2": gram.norms2, "diagonal_norm2": gram.diagonal_norms2}
    if not sketch:
        for name, values in kinds.items():
            stage.layers[name] = _by_layer(subject, values)
        stage.layers["norm2_stderr"] = _by_layer(subject, torch.zeros_like(gram.norms2))
        return
    subject.say(f"{stage.found['rows']} rows are too many: norms from random combinations of them")
    sketches = [
        sketched_norms(
            subject.problem, stream(subject.settings.seed, "sketch", str(i)), num_rows=_SKETCH_ROWS,
            samples=subject.own_samples, total=subject.ranks.total,
        )
        for i in range(_SKETCHES)
    ]  # fmt: skip
    norms2 = torch.stack([sketch.norms2 for sketch in sketches])
    diagonals = torch.stack([sketch.diagonal_norms2 for sketch in sketches])
    stage.layers["norm2"] = _by_layer(subject, norms2.mean(0))
    stage.layers["diagonal_norm2"] = _by_layer(subject, diagonals.mean(0))
    spread = (norms2 - 2 * diagonals).std(0) / math.sqrt(_SKETCHES)
    stage.layers["norm2_stderr"] = _by_layer(subject, spread)


def _against_rows(
    subject: Subject,
    gram: DualGram,
    found: tuple[Tensor, Tensor, tuple[Tensor, Tensor]],
    tolerances: tuple[float, float],
    where: str,
) -> list[Check]:
    """Sample traces, and z_lᵀ(Hz)_l beside ⟨B_l z_l, Σ_m B_m z_m⟩ + z_lᵀ(Rz)_l, in units of the products' norms.

    A form may be small by chance; what rounding does to a product goes by ‖(Hz)_l‖ ≤ ‖(Gz)_l‖ + ‖(Rz)_l‖.
    """
    traces, q, (residuals, residual_norms) = found
    of_samples, forms = gram.sample_traces.mT.cpu(), gram.forms().cpu()[: len(q)]
    trace, wrong = of_samples.mean(0), traces - of_samples
    # Of the mean, and of the samples together: what rounding does to one of them goes by the size of all.
    errors = torch.stack([wrong.mean(0), wrong.norm(dim=0)])
    sizes = torch.stack([trace.abs(), of_samples.norm(dim=0)])
    name = "H = G + R, probe by probe" if subject.piecewise_linear else "G by rows, probe by probe"
    scale = trace.abs() + gram.squared_product_norms().cpu()[: len(q)].sqrt() + residual_norms
    some, all_samples = len(of_samples), subject.problem.num_samples
    of = f", of {some} of {all_samples} samples" if some < all_samples else ""
    return [
        _close(f"exact traces by two routes{where}", errors, sizes, subject, tolerances[0], of),
        _close(f"{name}{where}", q - forms - residuals, scale, subject, tolerances[1], of),
    ]


def _against_products(subject: Subject, q: Tensor, tolerance: float) -> Check:
    """The estimates beside z_lᵀ(Hz)_l of products of the whole batch."""
    forms, norms, index = [], [], subject.problem.index.values()
    for z in subject.probes(_verified(subject)).mT:
        Hz = subject.product(matrix_of(subject), z.to(subject.problem.dtype)).cpu()
        forms.append(torch.stack([z.cpu()[i].double() @ Hz[i] for i in index]))
        norms.append(torch.stack([Hz[i].norm() for i in index]))
    scale = torch.stack(forms).abs() + torch.stack(norms)
    return _close(
        "estimates are forms of products", q - torch.stack(forms), scale, subject, tolerance
    )


def _in_float64(subject: Subject, Z: Tensor) -> list[Check]:
    """The same of two samples in float64, where rounding switches no units and hides nothing."""

    def work() -> list[Check]:
        few = subject.problem.double().head(2)
        gram = dual_gram(few, Z)
        traces = torch.tensor(
            sample_traces(few, "hessian" if subject.piecewise_linear else "ggn").to_numpy()
        )
        q = _full_forms(subject, matrix_of(subject), few, Z)
        residuals = _residual_forms(subject, few, Z)
        strict, where = torch.finfo(torch.float64).eps ** 0.5, ", in float64"
        norms2 = gram.squared_product_norms().cpu()
        error = _row_norms2(subject, ggn, _verified(subject), few, "probes") - norms2
        scale = norms2 + gram.traces.cpu().square()
        return [
            *_against_rows(subject, gram, (traces, q, residuals), (strict, strict), where),
            _close(f"norms of products by rows{where}", error, scale, subject, strict),
        ]

    return subject.ranks.agreed(work)


def _logit_forms(gram: DualGram) -> Float[Tensor, "blocks samples columns columns"]:
    """Forms of the signs of one logit probe, without their diagonal: every sample has one (claim G5)."""
    forms = torch.stack(list(gram.of_samples()), dim=1).cpu()
    return (forms - torch.diag_embed(forms.diagonal(dim1=-2, dim2=-1))) / forms.shape[1]


def _full_forms(
    subject: Subject, matrix: Callable[[Problem], Curvature], problem: Problem, Z: Tensor
) -> Float[Tensor, "probes blocks"]:
    return subject.halving(lambda part: matrix(part).quadratic_forms(Z), problem).cpu()


def _residual_forms(subject: Subject, problem: Problem, Z: Tensor) -> tuple[Tensor, Tensor]:
    """z_lᵀ(Rz)_l and ‖(Rz)_l‖ of R = H − G; zero where G is what is measured."""
    index = problem.index.values()
    if not subject.piecewise_linear:
        zero = torch.zeros(Z.shape[1], len(index), dtype=torch.float64)
        return zero, zero
    Y = subject.halving(lambda part: residual(part) @ Z.to(part.dtype), problem).double().cpu()
    z = Z.double().cpu()
    forms = torch.stack([(z[i] * Y[i]).sum(0) for i in index], dim=1)
    return forms, torch.stack([Y[i].square().sum(0).sqrt() for i in index], dim=1)


def variance(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """What the variance of the estimates should be, by norms that other probes give, and what it is (claims T1, T2)."""
    K, matrix = subject.settings.probes, matrix_of(subject)
    count = max(K, _NORM_PROBES)
    rows2 = []
    for group in (range(start, min(start + _GROUP, count)) for start in range(0, count, _GROUP)):
        subject.say(f"norms from products {group.start + 1} to {group.stop} of {count}")
        rows2.append(_row_norms2(subject, matrix, group))
    squares, of_dual = torch.cat(rows2), before["dual"]["layers"]
    norm2, diagonal2 = _vector(of_dual["norm2"]), _vector(of_dual["diagonal_norm2"])
    # 2(‖H_ll‖² − ‖diag H_ll‖²) + Σ_{m≠l}‖H_lm‖², where Σ_m ‖H_lm‖² = E‖(Hz)_l‖².
    predicted = (squares.mean(0) + norm2 - 2 * diagonal2).clamp(min=0)
    of_rows2 = squares.std(0) / math.sqrt(count)
    of_prediction = (of_rows2.square() + _vector(of_dual["norm2_stderr"]).square()).sqrt()
    # A layer of a few parameters may have a prediction that is not told from zero: there is nothing to compare with.
    predicted = torch.where(predicted > of_prediction, predicted, math.nan)
    untold, uncertain = int(predicted.isnan().sum()), of_prediction / predicted
    q = torch.tensor(before["estimates"]["found"]["samples"], dtype=torch.float64)
    error = q.mean(0) - _vector(before["exact"]["layers"]["exact"])
    z, ratio = error / (predicted / K).sqrt(), q.var(0) / predicted
    law = _SquareLaw(K, len(z))
    low, high, detectable = law.variance_ratios()
    # The prediction rests on estimated norms: four of their standard errors on either side, in logarithms.
    widening = (4 * uncertain).exp()
    lows, highs = low / widening, high * widening
    stage = Stage(
        {
            "predicted_sd": _by_layer(subject, predicted.sqrt()),
            "predicted_sd_stderr": _by_layer(subject, predicted.sqrt() * uncertain / 2),
            "z": _by_layer(subject, z),
            "variance_ratio": _by_layer(subject, ratio),
            "variance_low": _by_layer(subject, lows),
            "variance_high": _by_layer(subject, highs),
        }
    )
    bound = law.largest_z()
    widened = z.abs() / widening.sqrt()
    bias = (bound * _largest(widening) ** 0.5 + 3.1) / math.sqrt(K)
    factor = detectable * _largest(widening) ** 2
    without = f"; {untold} of them have no variance told from zero" if untold else ""
    detail = (
        f"largest |z| {_largest(z.abs()):.2f} of {len(z)} layers with K = {K}, bound {bound:.1f}; finds a bias of "
        f"{bias:.1f} standard deviations of one probe{without}"
    )
    stage.checks.append(
        _tested("joint z-test of the layers", _largest(widened), bound, detail, ALPHA, K, bias)
    )
    detail = (
        f"measured over predicted {-_largest(-ratio):.2f} to {_largest(ratio):.2f}, median "
        f"{float(ratio.nanmedian()):.2f}, of {len(z)} layers with K = {K}; intervals {-_largest(-lows):.2g} to "
        f"{_largest(highs):.3g}; finds a factor of {factor:.3g}{without}"
    )
    outside = torch.maximum(ratio / highs, lows / ratio)
    stage.checks.append(
        _tested("variance as predicted", _largest(outside), 1.0, detail, VARIANCE_ALPHA, K, factor)
    )
    _critical_probes(subject, before, predicted, stage)
    return stage


def _largest(values: Tensor) -> float:
    """Of those that are numbers; NaN where none is, which passes no test."""
    told = values[~values.isnan()]
    return float(told.max()) if len(told) else math.nan


def _row_norms2(
    subject: Subject,
    matrix: Callable[[Problem], Curvature],
    numbers: Sequence[int],
    problem: Problem | None = None,
    purpose: str = "norms",
) -> Float[Tensor, "probes blocks"]:
    """‖(Mz)_l‖² of probes of their own."""
    Z = subject.probes(numbers, purpose).to((problem or subject.problem).dtype)
    if problem is None or problem is subject.problem:
        Y = subject.over_samples(lambda local: matrix(local) @ Z)
    else:  # some samples, by every process
        Y = subject.halving(lambda part: matrix(part) @ Z, problem).double()
    return torch.stack(
        [Y[i.to(Y.device)].square().sum(0) for i in subject.problem.index.values()], dim=1
    ).cpu()


@dataclass(frozen=True)
class _SquareLaw:
    """The law of K draws of (z² − 1)/√2, z normal, taken for that of an estimate with its mean and variance known.

    Among the forms of one variance a single square has the widest tail (Székely and Bakirov 2003, for weights of one
    sign), and a form of many independent terms is nearly normal: levels hold at least, to the extent that this does.
    """

    num_probes: int
    num_layers: int

    def largest_z(self) -> float:
        """What |z| of no layer exceeds, at level ALPHA."""
        from scipy.stats import chi2

        K = self.num_probes
        return float((chi2.isf(ALPHA / (2 * self.num_layers), K) - K) / math.sqrt(2 * K))

    def variance_ratios(self, runs: int = 1_000_000) -> tuple[float, float, float]:
        """Between which the sample variances of all layers lie, in the true one, at level VARIANCE_ALPHA.

        Third, the true ratio that is found with a probability of 0.999, by simulation like the other two.
        """
        chunks = [min(100_000, runs - start) for start in range(0, runs, 100_000)]
        generator, share = np.random.default_rng(0), VARIANCE_ALPHA / self.num_layers / 2
        ratios = np.concatenate(
            [generator.chisquare(1, size=(n, self.num_probes)).var(1, ddof=1) / 2 for n in chunks]
        )
        low, high, seldom = np.quantile(ratios, [share, 1 - share, 1e-3])
        return float(low), float(high), float(high / seldom)


def _critical_probes(
    subject: Subject, before: Mapping[str, Found], predicted: Tensor, stage: Stage
) -> None:
    """K* = V(H_B)/Var_B[tr H_B] with the traces of single samples, and the K that costs least.

    Batches are drawn from a stream of fresh data, so that no part of the noise is left out.
    """
    seconds, b = before["estimates"]["seconds"], subject.problem.num_samples
    for layer, V in _by_layer(subject, predicted).items():
        floor = theory.batch_trace_variance(
            before["exact"]["layers"]["sample_trace_sd"][layer] ** 2, b, math.inf
        )
        critical = (
            theory.critical_num_probes(V, floor) if floor > 0 and math.isfinite(V) else math.inf
        )
        best = math.inf
        if math.isfinite(critical):
            best = max(
                theory.cost_optimal_num_probes(seconds["graph"], seconds["product"], critical), 1.0
            )
        stage.layers.setdefault("k_star", {})[layer] = critical
        stage.layers.setdefault("k_cost_optimal", {})[layer] = best


def logit_probes(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """Estimates from the outputs alone, for every sample of its own."""
    K, own = subject.settings.probes, subject.own_samples
    samples: list[Tensor] = []

    def work() -> None:
        probe = _PartOfSigns(own.start, subject.problem.num_samples)
        generator = stream(subject.settings.seed, "logit probes")
        state = generator.get_state()

        def forms(local: Problem) -> Tensor:
            generator.set_state(state)
            estimate = LogitProbeTrace(K, probe=probe)(local, generator)
            return torch.tensor(estimate.samples.to_numpy())

        samples.append(subject.over_samples(forms))

    seconds = seconds_of(work, subject.device) / K
    q = samples[0].cpu()
    exact_trace, found = _vector(before["exact"]["layers"]["exact"]), before["dual"]["found"]
    stage = Stage(
        {
            "logit_estimate": _by_layer(subject, q.mean(0)),
            "logit_stderr": _by_layer(subject, q.std(0) / math.sqrt(K)),
        },
        seconds={"logit_probe": seconds},
    )
    if found["sketched"]:
        traces = torch.tensor(before["exact"]["found"]["samples"], dtype=torch.float64)
        tail = _tail_of_sample_traces(traces, subject.settings.num_classes - 1)
    else:
        tail = Tail.sign_form(
            _vector(before["dual"]["layers"]["logit_sd"]) / math.sqrt(2), found["logit_spectral"]
        )
    error, size = (q.mean(0) - exact_trace).numpy(), exact_trace.abs().numpy()
    width = (
        tail.half_width(K, ALPHA / len(error))
        + torch.finfo(subject.problem.dtype).eps ** 0.5 * size
    )
    bias = float(np.nanmax((width + tail.half_width(K, 1e-3)) / np.where(size > 0, size, math.nan)))
    worst = int(np.argmax(np.abs(error) / width))
    layer = list(subject.problem.partition.blocks)[worst]
    detail = (
        f"nearest to its bound {layer}: {error[worst]:.3g} of ±{width[worst]:.3g}; finds a bias of "
        f"{100 * bias:.2g} % of the trace in any layer"
    )
    stage.checks.append(
        _tested(
            "logit probes", float(abs(error[worst])), float(width[worst]), detail, ALPHA, K, bias
        )
    )
    return stage


def _tail_of_sample_traces(traces: Float[Tensor, "samples blocks"], columns: int) -> Tail:
    """What the law of a logit probe is at most, M_n ≥ 0 being known by its trace t_n and its r columns alone.

    ‖M_n‖² − ‖diag M_n‖² ≤ (1 − 1/r) t_n² and ‖M_n − diag M_n‖₂ ≤ t_n.
    """
    N = len(traces)
    return Tail.sign_form(traces.norm(dim=0) * math.sqrt(1 - 1 / columns) / N, traces.amax(0) / N)


@dataclass(frozen=True)
class _PartOfSigns:
    """Signs for all samples, of which a process keeps those of its own: the same whatever the shards."""

    start: int
    num_samples: int

    def kurtosis(self, num_params: int) -> float:
        return 1.0

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        everyone = Rademacher().sample(num_params, self.num_samples, generator)
        return everyone[:, self.start : self.start + num_probes]


def products(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """What a Hessian product must be whatever the network: symmetric, linear, a difference of gradients."""
    problem, stage = subject.problem, Stage()
    u, v = (subject.probes(range(k, k + 1), "products")[:, 0].to(problem.dtype) for k in (0, 1))
    Hu, Hv = subject.product(hessian, u), subject.product(hessian, v)
    size = math.sqrt(float(Hu.norm() * Hv.norm()))  # E‖Hv‖² = ‖H‖_F², the variance of uᵀHv
    eps = torch.finfo(problem.dtype).eps
    asymmetry = abs(float(u.double() @ Hv - v.double() @ Hu)) / size
    stage.checks.append(
        _at_most(
            "symmetry",
            asymmetry,
            1e-5 if problem.dtype == torch.float32 else 1e-12,
            "|uᵀHv − vᵀHu|/‖H‖_F",
        )
    )
    mixed = subject.product(hessian, u / 2 + 2 * v)
    nonlinear = float((mixed - (Hu / 2 + 2 * Hv)).norm() / mixed.norm())
    stage.checks.append(
        _at_most("linearity", nonlinear, eps**0.5, "‖H(u/2 + 2v) − Hu/2 − 2Hv‖/‖·‖")
    )
    exact64 = _double(subject)
    Hv64 = Hv if problem.dtype == torch.float64 else subject.product(hessian, v.double(), exact64)
    if problem.dtype != torch.float64:
        rounding = float((Hv - Hv64).norm() / Hv64.norm())
        tolerance, flipped = (before["kinks"]["found"][key] for key in ("tolerance", "flipped"))
        what = f"‖Hv − H₆₄v‖/‖H₆₄v‖, {flipped} units switched"
        stage.checks.append(_at_most("agreement with float64", rounding, tolerance, what))
    wrong = {}
    for step in _STEPS:
        difference = _central_difference(subject, exact64, v.double(), step)
        wrong[step] = float((difference - Hv64).norm() / Hv64.norm())
    best = min(wrong, key=lambda step: wrong[step])
    what = f"‖(∇R(θ+hv) − ∇R(θ−hv))/2h − Hv‖/‖Hv‖ in float64, ‖hv‖ = {best:g} ‖θ‖"
    stage.checks.append(
        _at_most("central differences", wrong[best], torch.finfo(torch.float32).eps ** 0.5, what)
    )
    stage.found["central_differences"] = {f"{step:g}": error for step, error in wrong.items()}
    return stage


def _double(subject: Subject) -> Problem:
    """A float64 problem whose parameters may be moved."""
    if subject.problem.dtype != torch.float64:
        return subject.problem.double()
    return Problem(
        copy.deepcopy(subject.problem.model), subject.problem.loss_fn, subject.problem.batches
    )


def _central_difference(subject: Subject, problem: Problem, v: Tensor, step: float) -> Tensor:
    """(∇R(θ+hv) − ∇R(θ−hv))/2h on a copy, ‖hv‖ = step ‖θ‖."""
    theta = torch.cat([p.detach().reshape(-1) for p in problem.params.values()])
    h = step * float(theta.norm() / v.norm())
    gradients = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, (start, stop) in zip(
                problem.params.values(), problem.offsets.values(), strict=True
            ):
                p.copy_((theta[start:stop] + sign * h * v[start:stop]).reshape(p.shape))
        gradients.append(subject.over_samples(_flat_gradient, problem))
    with torch.no_grad():
        for p, (start, stop) in zip(problem.params.values(), problem.offsets.values(), strict=True):
            p.copy_(theta[start:stop].reshape(p.shape))
    return (gradients[0] - gradients[1]) / (2 * h)


def _flat_gradient(problem: Problem) -> Tensor:
    total = torch.zeros(problem.num_params, dtype=problem.dtype, device=problem.device)
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        with differentiating():
            parts = torch.autograd.grad(problem.loss(batch), list(problem.params.values()))
        total += weight * torch.cat([part.reshape(-1) for part in parts])
    return total


def train_mode(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """Batch norm by the statistics of the batch: another function, with another Hessian, that couples the samples."""
    K = min(subject.settings.probes, _GROUP)
    model = copy.deepcopy(subject.problem.model).train()
    whole = Problem(model, F.cross_entropy, subject.problem.batches, allow_train_mode=True)
    Z = subject.probes(range(K))
    q = {
        name: hessian(p).quadratic_forms(Z).sum(1).cpu()
        for name, p in (("eval", subject.problem), ("train", whole))
    }
    found = {
        name: {"trace": float(x.mean()), "stderr": float(x.std() / math.sqrt(K)), "probes": K}
        for name, x in q.items()
    }
    change = q["train"] - q["eval"]
    detail = (
        f"tr H {found['train']['trace']:.4g} ± {found['train']['stderr']:.2g} in train mode, "
        f"{found['eval']['trace']:.4g} ± {found['eval']['stderr']:.2g} in eval mode; "
        f"difference {float(change.mean()):.4g} ± {float(change.std() / math.sqrt(K)):.2g} (K = {K}, common probes)"
    )
    return Stage(
        checks=[_reported("batch norm in train mode", detail)], found={"batch_norm": found}
    )


def tied_head(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """One classifier for two exits beside a classifier for each: 2 tr U₁₂ is what the cross-instance block adds."""
    traces = {}
    for tied in (True, False):
        model = TwoExits(subject.problem.model, tied=tied).eval()
        problem = Problem(model, F.cross_entropy, subject.problem.batches)
        wanted = [block for block in problem.partition.blocks if block.startswith("head")]
        of_all = subject.over_samples(
            lambda p: torch.tensor(exact_traces(p, ggn).value.to_numpy()), problem
        )
        traces["tied" if tied else "untied"] = {
            block: float(t)
            for block, t in zip(problem.partition.blocks, of_all, strict=True)
            if block in wanted
        }
    tied_trace, apart = sum(traces["tied"].values()), sum(traces["untied"].values())
    detail = (
        f"tr of the head {tied_trace:.4g} tied, {apart:.4g} for its two instances: the cross-instance blocks add "
        f"{tied_trace - apart:.4g}, {100 * (tied_trace - apart) / tied_trace:.3g} % of it"
    )
    return Stage(checks=[_reported("tied head", detail)], found={"head": traces})


def precision(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """What lower precision does to a product, beside float64."""
    stage, reference, z = Stage(), _double(subject), subject.probes(range(1))
    expected = _full_form(subject, reference, z)
    scale = (
        _vector(before["variance"]["layers"]["predicted_sd"]).nan_to_num()
        + _vector(before["exact"]["layers"]["exact"]).abs()
    )
    errors: dict[str, float | None] = {}
    for name, way in _ways(subject):
        try:
            with way as problem:
                found = _full_form(subject, problem, z)
        except (RuntimeError, NotTwiceDifferentiable, ValueError) as error:
            errors[name] = None
            subject.say(f"{name}: {str(error).splitlines()[0]}")
            continue
        errors[name] = float(((found - expected).abs() / scale).max())
    shown = ", ".join(
        f"{name} {'not possible' if e is None else f'{e:.2g}'}" for name, e in errors.items()
    )
    stage.checks.append(
        _reported("reduced precision", f"error of zᵀ(Hz) in the worst layer, in its size: {shown}")
    )
    stage.found["precision"] = errors
    return stage


def _full_form(subject: Subject, problem: Problem, z: Int8[Tensor, "params probes"]) -> Tensor:
    return matrix_of(subject)(problem).quadratic_forms(z)[0].cpu()


def _ways(subject: Subject) -> Iterator[tuple[str, Any]]:
    problem, kind = subject.problem, subject.device.type
    if problem.dtype == torch.float32:
        yield "float32", _as_it_is(problem)
    yield "bfloat16 autocast", _autocast(subject, torch.bfloat16)
    if kind == "cuda":
        yield "float16 autocast", _autocast(subject, torch.float16)
        if problem.dtype == torch.float32:
            yield "TF32", _tf32(problem)


@contextmanager
def _as_it_is(problem: Problem) -> Iterator[Problem]:
    yield problem


@contextmanager
def _tf32(problem: Problem) -> Iterator[Problem]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield problem
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


class _Autocast(nn.Module):
    """A network under autocast, which gives its outputs in float32."""

    def __init__(self, model: nn.Module, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.kind, self.dtype = model, kind, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.kind, dtype=self.dtype):
            out: Tensor = self.model(x)
        return out.float()


@contextmanager
def _autocast(subject: Subject, dtype: torch.dtype) -> Iterator[Problem]:
    problem = subject.problem
    if problem.dtype == torch.float64:
        model = copy.deepcopy(problem.model).float()
        batches = [(x.float(), y) for x, y in problem.batches]
    else:
        model, batches = problem.model, [(x, y) for x, y in problem.batches]
    yield Problem(_Autocast(model, subject.device.type, dtype).eval(), problem.loss_fn, batches)


# --- wording and bookkeeping ------------------------------------------------------------------------------------------


def _close(
    name: str, error: Tensor, scale: Tensor, subject: Subject, tolerance: float, of: str = ""
) -> Check:
    """Relative errors of all layers within a tolerance."""
    relative = (
        (error.abs() / scale.clamp(min=torch.finfo(torch.float64).tiny))
        .reshape(-1, error.shape[-1])
        .amax(0)
    )
    layer = list(subject.problem.partition.blocks)[int(relative.argmax())]
    return _at_most(
        name, float(relative.max()), tolerance, f"largest relative error{of}, in {layer}"
    )


def _at_most(name: str, value: float, bound: float, what: str) -> Check:
    status = Status.PASSED if value <= bound else Status.FAILED  # also where it is NaN
    return Check(
        name, Kind.EXACT, status, f"{what}: {value:.2g}, at most {bound:.2g}", value, bound
    )


def _tested(
    name: str,
    value: float,
    bound: float,
    detail: str,
    alpha: float,
    num_draws: int,
    detectable: float | None = None,
) -> Check:
    """A test of numbers that are drawn; `alpha` is the probability that right ones fail it."""
    status = Status.PASSED if value <= bound else Status.FAILED
    return Check(
        name, Kind.STATISTICAL, status, detail, value, bound, alpha, 0.999, detectable, num_draws
    )


def _reported(name: str, detail: str) -> Check:
    return Check(name, Kind.EMPIRICAL, Status.REPORTED, detail)


def _by_layer(subject: Subject, values: Tensor) -> dict[str, float]:
    return {
        block: float(x) for block, x in zip(subject.problem.partition.blocks, values, strict=True)
    }


def _vector(of_layer: Mapping[str, float]) -> Tensor:
    return torch.tensor(list(of_layer.values()), dtype=torch.float64)


STAGES: Mapping[str, Callable[[Subject, Mapping[str, Found]], Stage]] = {
    "gradient": gradient, "kinks": kinks, "exact": exact, "estimates": estimates, "dual": dual, "variance": variance,
    "logit_probes": logit_probes, "products": products, "train_mode": train_mode, "tied_head": tied_head,
    "precision": precision,
}  # fmt: skip
