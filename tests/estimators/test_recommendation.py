"""Plans keep what they promise, and the cheapest comes first."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from hesstheory import (
    BlockSeparatedTrace,
    ControlVariateTrace,
    LayerwiseTrace,
    LogitProbeTrace,
    Problem,
    exact_traces,
    hessian,
    rank_layers,
    recommend,
    zoo,
)
from hesstheory.estimators import recommendation


def problem_of(name, generator):
    return zoo.problem(name, generator, num_samples=12)


def kinds(recommendation):
    return {
        plan.estimator.__name__ if plan.is_exact else type(plan.estimator)
        for plan in recommendation.plans
    }


def test_a_piecewise_linear_network_is_measured_from_its_outputs(generator):
    found = recommend(problem_of("relu_mlp", generator), 0.1, 0.95, generator)
    assert kinds(found) == {"exact_traces", "dense_traces", LogitProbeTrace}


def test_a_smooth_network_is_measured_by_products(generator):
    found = recommend(problem_of("tanh_mlp", generator), 0.3, 0.95, generator)
    assert kinds(found) == {
        "dense_traces",
        ControlVariateTrace,
        LayerwiseTrace,
        BlockSeparatedTrace,
    }


def test_plans_that_keep_the_error_come_first_and_the_cheapest_of_them_is_best(
    generator, monkeypatch
):
    monkeypatch.setattr(recommendation, "_MOST", 5)
    found = recommend(problem_of("tanh_mlp", generator), 0.01, 0.95, generator)
    keeps = [plan.worst <= 0.01 for plan in found.plans]
    assert keeps == sorted(keeps, reverse=True)
    assert not all(keeps)
    costs = [plan.gradients for plan, kept in zip(found.plans, keeps, strict=True) if kept]
    assert costs == sorted(costs)
    assert found.best is found.plans[0]


def test_exact_plans_give_exact_traces_in_the_batches_that_they_name(generator):
    problem = problem_of("relu_mlp", generator)
    expected = hessian(problem).trace_by_block()
    for plan in recommend(problem, 0.1, 0.95, generator).plans:
        if plan.is_exact:
            assert plan.num_probes == plan.worst == 0
            assert np.allclose(plan(problem, generator).value, expected, rtol=1e-10)
        assert plan.batch_size == max(problem.batch_sizes)


@pytest.mark.parametrize("kind", [LogitProbeTrace, LayerwiseTrace])
def test_the_promised_error_is_kept_as_often_as_promised(kind, generator):
    """Sixty repeats: at 90 % a right rule fails in 18 or more with probability below 10⁻⁵."""
    problem = problem_of("relu_mlp", generator)
    exact, missed = exact_traces(problem).value, 0
    for _ in range(60):
        trial = recommendation.tried(kind(), problem, generator)
        plan = recommendation.plan_of(problem, trial, exact, 0.5, 0.9, 1.0)
        assert plan.worst <= 0.5
        error = (plan(problem, generator).value - exact).abs() / exact.abs()
        missed += bool((error > 0.5).any())
    assert missed < 18


def test_the_number_of_probes_is_steins(generator):
    samples = pd.DataFrame({"a": [1.0, 3.0, 2.0, 2.0], "b": [5.0, 5.0, 5.0, 5.0]})
    trial = recommendation.Trial(LayerwiseTrace(), samples, once=1.0, per_probe=0.5)
    reference, problem = pd.Series({"a": 2.0, "b": 5.0}), problem_of("tiny_mlp", generator)
    plan = recommendation.plan_of(problem, trial, reference, 0.1, 0.95, 0.25)
    factor, deviation = (
        4.17653,
        (2 / 3) ** 0.5,
    )  # Student's quantile at 1 − 0.05/4 with three degrees of freedom
    assert plan.num_probes == math.ceil((factor * deviation / 0.2) ** 2)
    assert plan.relative_error["b"] == 0
    assert plan.relative_error["a"] == pytest.approx(
        factor * deviation / 2 / plan.num_probes**0.5, rel=1e-5
    )
    assert plan.seconds == 1.0 + 0.5 * plan.num_probes
    assert plan.gradients == 4 * plan.seconds


def test_a_trace_of_zero_is_no_reason_to_measure_for_ever(generator):
    """A parameter that the loss does not reach has no spread and needs no probe."""
    samples = pd.DataFrame({"a": [1.0, 2.0, 3.0], "unreached": [0.0, 0.0, 0.0]})
    trial = recommendation.Trial(LayerwiseTrace(), samples, once=0.0, per_probe=1.0)
    plan = recommendation.plan_of(
        problem_of("tiny_mlp", generator), trial, samples.mean(), 0.5, 0.9, 1.0
    )
    assert plan.num_probes < 1000
    assert plan.relative_error["unreached"] == 0


def test_plans_are_read_at_a_glance(generator):
    text = str(recommend(problem_of("tanh_mlp", generator), 0.3, 0.95, generator))
    assert "dense_traces: exact, " in text
    assert "ControlVariateTrace(num_probes=" in text
    assert "function" not in text


@pytest.mark.parametrize(
    ("error", "level"), [(0, 0.9), (1, 0.9), (-0.1, 0.9), (0.1, 0), (0.1, 1), (5, 0.9)]
)
def test_impossible_requests_are_refused(error, level, generator):
    with pytest.raises(ValueError, match=r"pass a (share|probability)"):
        recommend(problem_of("tiny_mlp", generator), error, level, generator)


def test_a_trace_that_the_pilot_cannot_tell_from_zero_is_promised_nothing(generator):
    samples = pd.DataFrame({"a": [1.0, -1.0, 2.0, -1.5], "b": [5.0, 5.1, 5.0, 4.9]})
    trial = recommendation.Trial(LayerwiseTrace(), samples, once=0.0, per_probe=1.0)
    plan = recommendation.plan_of(
        problem_of("tiny_mlp", generator), trial, pd.Series({"a": 0.0, "b": 4.0}), 0.1, 0.9, 1.0
    )
    assert plan.worst == math.inf
    assert plan.num_probes == recommendation._MOST
    assert str(plan).endswith("the pilot cannot tell the trace of a from zero")


@pytest.mark.parametrize(
    "loss",
    [
        lambda f, y: -F.cross_entropy(f, y),
        lambda f, y: F.cross_entropy(
            f, y, torch.linspace(1, 2, 3, dtype=torch.float32), reduction="none"
        ).mean(),
    ],
    ids=["not convex", "weights of another dtype"],
)
def test_losses_that_some_estimators_refuse(loss, generator):
    dtype = torch.float32
    problem = zoo.problem("tiny_relu", generator, num_samples=6, dtype=dtype)
    problem = Problem(
        problem.model, lambda f, y: loss(F.pad(f, (0, 3 - f.shape[1])), y), problem.batches
    )
    assert recommend(problem, 0.5, 0.9, generator).plans
    assert len(rank_layers(problem, generator=generator, estimator=LayerwiseTrace(8)).table) == 2
