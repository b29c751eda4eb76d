"""The variance of the estimates: what it should be by other probes, and what it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.estimators.probes import Rademacher
from hesstheory.evidence.checks import Check
from hesstheory.harness.stages.checks import ALPHA, MISSED, POWER_QUANTILE, VARIANCE_ALPHA, at_level
from hesstheory.harness.stages.critical import critical_probes
from hesstheory.harness.stages.estimates import groups_of
from hesstheory.harness.stages.matrices import matrix_of, row_norms2
from hesstheory.harness.stages.stage import Found, Stage, by_layer, samples_of, vector
from hesstheory.harness.subject import Subject

_NORM_PROBES = 16  # at least: fewer leave the prediction uncertain by a factor of two
_WIDENING = 4  # standard errors of the prediction, on either side: seldom exceeded in any layer


@dataclass(frozen=True)
class _Prediction:
    """Variance of one probe by layer, NaN where it is not told from zero; relative uncertainty."""

    variance: Tensor
    uncertain: Tensor

    @property
    def widening(self) -> Tensor:
        """By what the bounds on a ratio to the prediction are moved apart, in logarithms."""
        return (_WIDENING * self.uncertain).exp()

    @property
    def left_out(self) -> str:
        """How many layers are not tested, for the sentence about the others."""
        untold = int(self.variance.isnan().sum())
        return f"; {untold} of them have no variance told from zero" if untold else ""


def variance(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """The variance of the estimates beside that of claims T1 and T2, from norms by other probes."""
    K = subject.settings.probes
    prediction = _predicted(subject, before)
    q = samples_of(before, "estimates")
    error = q.mean(0) - vector(before["exact"]["layers"]["exact"])
    z = error / (prediction.variance / K).sqrt()
    ratio = q.var(0) / prediction.variance
    law = SquareLaw(K, len(z))
    low, high, detectable = law.variance_ratios()
    interval = (low / prediction.widening, high * prediction.widening)
    stage = Stage(_layers(subject, prediction, z, ratio, interval))
    stage.checks.append(_z_test(law, prediction, z))
    stage.checks.append(_ratio_test(law, prediction, ratio, interval, detectable))
    stage.layers |= critical_probes(subject, before, prediction.variance)
    return stage


def _predicted(subject: Subject, before: Mapping[str, Found]) -> _Prediction:
    """T2 with Σ_m ‖H_lm‖² = E‖(Hz)_l‖² from probes of their own."""
    count = max(subject.settings.probes, _NORM_PROBES)
    rows = []
    for group in groups_of(count):
        subject.say(f"norms from products {group.start + 1} to {group.stop} of {count}")
        rows.append(row_norms2(subject, matrix_of(subject), group))
    squares = torch.cat(rows)
    of_dual = before["dual"]["layers"]
    norm2 = vector(of_dual["norm2"])
    # With signs the diagonal drops out.
    kurtosis = Rademacher().kurtosis(subject.problem.num_params)
    predicted = theory.probe_variance_from_norms(
        norm2, vector(of_dual["diagonal_norm2"]), squares.mean(0) - norm2, kurtosis
    ).clamp(min=0)
    of_rows = squares.std(0) / math.sqrt(count)
    stderr = (of_rows.square() + vector(of_dual["norm2_stderr"]).square()).sqrt()
    # A layer of a few parameters may have a prediction that is not told from zero: there is
    # nothing to compare with.
    told = torch.where(predicted > stderr, predicted, math.nan)
    return _Prediction(told, stderr / told)


def _layers(
    subject: Subject,
    prediction: _Prediction,
    z: Tensor,
    ratio: Tensor,
    interval: tuple[Tensor, Tensor],
) -> dict[str, dict[str, float]]:
    """What the report says of every layer."""
    deviation = prediction.variance.sqrt()
    quantities = {
        "predicted_sd": deviation,
        "predicted_sd_stderr": deviation * prediction.uncertain / 2,
        "z": z,
        "variance_ratio": ratio,
        "variance_low": interval[0],
        "variance_high": interval[1],
    }
    return {name: by_layer(subject, values) for name, values in quantities.items()}


def _z_test(law: SquareLaw, prediction: _Prediction, z: Tensor) -> Check:
    """Is the mean of the estimates the exact trace, in all layers together?"""
    K = law.num_probes
    widening = prediction.widening
    bound = law.largest_z()
    bias = (bound * largest(widening) ** 0.5 + POWER_QUANTILE) / math.sqrt(K)
    detail = (
        f"largest |z| {largest(z.abs()):.2f} of {len(z)} layers with K = {K}, bound {bound:.1f}; "
        f"finds a bias of {bias:.1f} standard deviations of one probe{prediction.left_out}"
    )
    widened = largest(z.abs() / widening.sqrt())
    return at_level("joint z-test of the layers", widened, bound, detail, ALPHA, K, bias)


def _ratio_test(
    law: SquareLaw,
    prediction: _Prediction,
    ratio: Tensor,
    interval: tuple[Tensor, Tensor],
    detectable: float,
) -> Check:
    """Is the variance of the estimates the predicted one, in all layers together?"""
    K = law.num_probes
    lows, highs = interval
    factor = detectable * largest(prediction.widening) ** 2
    detail = (
        f"measured over predicted {-largest(-ratio):.2f} to {largest(ratio):.2f}, median "
        f"{float(ratio.nanmedian()):.2f}, of {len(ratio)} layers with K = {K}; intervals "
        f"{-largest(-lows):.2g} to {largest(highs):.3g}; finds a factor of {factor:.3g}"
        f"{prediction.left_out}"
    )
    outside = largest(torch.maximum(ratio / highs, lows / ratio))
    return at_level("variance as predicted", outside, 1.0, detail, VARIANCE_ALPHA, K, factor)


def largest(values: Tensor) -> float:
    """Of those that are numbers; NaN where none is, which passes no test."""
    told = values[~values.isnan()]
    return float(told.max()) if len(told) else math.nan


@dataclass(frozen=True)
class SquareLaw:
    """The law of K draws of (z² − 1)/√2 with normal z, taken for that of an estimate.

    Mean and variance of the estimate are known. Among the forms of one variance a single square
    has the widest tail (Székely and Bakirov 2003, for weights of one sign). A form of many
    independent terms is nearly normal. Levels hold at least, to the extent that this does.
    """

    num_probes: int
    num_layers: int

    def largest_z(self) -> float:
        """What |z| of no layer exceeds, at level ALPHA."""
        from scipy.stats import chi2

        K = self.num_probes
        return float((chi2.isf(ALPHA / (2 * self.num_layers), K) - K) / math.sqrt(2 * K))

    def variance_ratios(self, runs: int = 1_000_000) -> tuple[float, float, float]:
        """Between which the sample variances of all layers lie, in the true one.

        At level VARIANCE_ALPHA, by simulation. Third, the true ratio that is found with
        probability 0.999, likewise.
        """
        at_once = 100_000  # runs: 8 MB for each ten probes
        chunks = [min(at_once, runs - start) for start in range(0, runs, at_once)]
        generator = np.random.default_rng(0)  # the bounds are constants, not draws of a run
        share = VARIANCE_ALPHA / self.num_layers / 2  # Bonferroni over layers, and two tails
        # χ² with one degree of freedom, the square of a normal number, has variance 2.
        ratios = np.concatenate(
            [generator.chisquare(1, size=(n, self.num_probes)).var(1, ddof=1) / 2 for n in chunks]
        )
        low, high, seldom = np.quantile(ratios, [share, 1 - share, MISSED])
        return float(low), float(high), float(high / seldom)
