"""Estimates as probes give them: errors, intervals and differences."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
import torch
from builders import problem_of, stream
from scipy import stats

from hesstheory import BlockSeparatedTrace, Estimate, LayerwiseTrace, Problem, hessian, zoo
from hesstheory.results.estimate import as_mapping

ESTIMATORS = [LayerwiseTrace, BlockSeparatedTrace]

each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.__name__)


@each_estimator
def test_standard_error_and_interval_are_those_of_a_mean(estimator):
    estimate = estimator(7)(problem_of("tanh_mlp"), stream())
    samples = estimate.samples.to_numpy()
    mean, stderr = samples.mean(0), samples.std(0, ddof=1) / math.sqrt(7)
    np.testing.assert_allclose(estimate.value, mean, rtol=1e-13)
    np.testing.assert_allclose(estimate.stderr, stderr, rtol=1e-13)
    for level in (0.5, 0.95, 0.999):
        interval = estimate.confidence_interval(level)
        assert list(interval.columns) == ["low", "high"]
        low, high = stats.t(6, mean, stderr).interval(level)
        np.testing.assert_allclose(interval.to_numpy(), np.stack([low, high], axis=1), rtol=1e-12)
    assert as_mapping(estimate) == {
        block: (pytest.approx(m, rel=1e-13), pytest.approx(s, rel=1e-13))
        for block, m, s in zip(estimate.value.index, mean, stderr, strict=True)
    }


def test_intervals_cover_as_often_as_they_say():
    """Normal samples, K = 5, 20,000 intervals: coverage within six standard errors of the level."""
    draws = torch.randn(5, 20_000, generator=stream()).numpy()
    interval = Estimate(pd.DataFrame(draws), num_matvecs=5).confidence_interval(0.9)
    covered = ((interval["low"] <= 0) & (interval["high"] >= 0)).mean()
    assert abs(covered - 0.9) <= 6 * math.sqrt(0.9 * 0.1 / 20_000)


@each_estimator
def test_one_probe_has_no_standard_error(estimator):
    estimate = estimator(1)(problem_of("tiny_mlp"), stream())
    assert estimate.value.notna().all()
    assert estimate.stderr.isna().all()
    with pytest.raises(ValueError, match="use at least two probes"):
        estimate.confidence_interval()


@pytest.mark.parametrize("level", [0, 1, 95, -0.1, "a", None, float("nan"), [0.95]])
def test_impossible_levels_are_refused(level):
    with pytest.raises(ValueError, match=r"pass a probability, such as 0\.95"):
        LayerwiseTrace(3)(problem_of("tiny_mlp"), stream()).confidence_interval(level)


def test_an_estimate_shows_its_values():
    estimate = LayerwiseTrace(3)(problem_of("tiny_mlp"), stream())
    shown = repr(estimate)
    assert shown.startswith("Estimate(3 products)")
    assert all(block in shown for block in estimate.value.index)
    with pytest.raises(FrozenInstanceError):
        estimate.num_matvecs = 0


def test_the_change_between_two_states_with_common_probes():
    """After a small step the change is known far better than either trace."""
    before = problem_of("tanh_mlp")
    model = zoo.trained("tanh_mlp", stream(), 0)
    model.load_state_dict(before.model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.001)
    after = Problem(model, before.loss_fn, before.batches)
    common = LayerwiseTrace(40)(after, stream(2)) - LayerwiseTrace(40)(before, stream(2))
    apart = LayerwiseTrace(40)(after, stream(3)) - LayerwiseTrace(40)(before, stream(2))
    exact = hessian(after).trace_by_block() - hessian(before).trace_by_block()
    assert ((common.value - exact).abs() < 6 * common.stderr).all()
    assert (common.stderr < 0.05 * apart.stderr).all()
    assert common.num_matvecs == 80


def test_estimates_of_different_networks_have_no_difference():
    one, other = (LayerwiseTrace(2)(problem_of(name), stream()) for name in ("tanh_mlp", "cnn"))
    with pytest.raises(ValueError, match="subtract estimates of one network by one estimator"):
        one - other
    with pytest.raises(ValueError, match=r"3 probes of .* minus 2 probes"):
        LayerwiseTrace(3)(problem_of("cnn"), stream()) - other


def test_a_number_is_no_estimate(generator, unchecked):
    estimate = LayerwiseTrace(2)(zoo.problem("tiny_relu", generator), generator)
    with pytest.raises(
        TypeError, match=r"an Estimate minus a float: subtract an Estimate, or use \.value"
    ):
        _ = estimate - 1.0
