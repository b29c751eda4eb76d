"""Plans keep the error that they promise, and intervals of ranks hold the true ranks."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
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
from hesstheory.estimators import advice


def problem_of(name, generator):
    return zoo.problem(name, generator, num_samples=12)


def kinds(recommendation):
    return {
        plan.estimator.__name__ if plan.is_exact else type(plan.estimator)
        for plan in recommendation.plans
    }


# --- plans ------------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(advice, "_MOST", 5)
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
    """Pilot and run repeated 60 times: at 90 % a right rule fails in 18 or more with probability below 10⁻⁵."""
    problem = problem_of("relu_mlp", generator)
    exact, missed = exact_traces(problem).value, 0
    for _ in range(60):
        trial = advice._tried(kind(), problem, generator)
        plan = advice._plan(problem, trial, exact, 0.5, 0.9, 1.0)
        assert plan.worst <= 0.5
        error = (plan(problem, generator).value - exact).abs() / exact.abs()
        missed += bool((error > 0.5).any())
    assert missed < 18


def test_the_number_of_probes_is_steins(generator):
    samples = pd.DataFrame({"a": [1.0, 3.0, 2.0, 2.0], "b": [5.0, 5.0, 5.0, 5.0]})
    trial = advice._Trial(LayerwiseTrace(), samples, once=1.0, per_probe=0.5)
    reference, problem = pd.Series({"a": 2.0, "b": 5.0}), problem_of("tiny_mlp", generator)
    plan = advice._plan(problem, trial, reference, 0.1, 0.95, 0.25)
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
    trial = advice._Trial(LayerwiseTrace(), samples, once=0.0, per_probe=1.0)
    plan = advice._plan(problem_of("tiny_mlp", generator), trial, samples.mean(), 0.5, 0.9, 1.0)
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


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu_mlp", "cnn", "tanh_mlp"])
@pytest.mark.parametrize("by", ["trace", "mean_trace"])
def test_exact_ranks(name, by, generator):
    problem = problem_of(name, generator)
    sizes = pd.Series({block: len(index) for block, index in problem.index.items()})
    expected = hessian(problem).trace_by_block() / (sizes if by == "mean_trace" else 1)
    found = rank_layers(problem, by)
    assert list(found.table.index) == list(expected.sort_values(ascending=False).index)
    assert found.is_decided
    assert found.num_probes_needed == 0
    assert found.method == ("dense_traces" if name == "tanh_mlp" else "exact_traces")


def test_equal_layers_are_never_told_apart(generator):
    model = nn.Module()
    model.a, model.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    model.forward = lambda x: (x * (model.a + model.b)).sum(1, keepdim=True)
    data = torch.randn(5, 2, generator=generator), torch.randn(5, 1, generator=generator)
    problem = Problem(model, F.mse_loss, [data])
    exact = rank_layers(problem)
    assert not exact.is_decided
    assert exact.num_probes_needed == math.inf
    assert exact.table["rank_low"].tolist() == [1, 1]
    assert exact.table["rank_high"].tolist() == [2, 2]
    assert "undecided" in str(exact)


def test_ranks_from_samples_by_hand():
    """Layers far apart are told apart; two whose difference has no spread at all are so with any samples."""
    noise = np.array([0.1, -0.1, 0.2, -0.2, 0.0, 0.05, -0.05, 0.1])
    samples = pd.DataFrame(
        {"low": noise, "far": 100 + 30 * noise, "near": 0.5 + noise, "wide": 50 + 1000 * noise}
    )
    found = advice._ranking(samples, 0.95, "by hand").table
    assert list(found.index) == ["far", "wide", "near", "low"]
    assert tuple(found.loc["far", ["rank_low", "rank_high"]]) == (1, 2)
    assert tuple(found.loc["near", ["rank_low", "rank_high"]]) == (2, 3)
    assert tuple(found.loc["low", ["rank_low", "rank_high"]]) == (3, 4)
    assert tuple(found.loc["wide", ["rank_low", "rank_high"]]) == (1, 4)


def test_intervals_of_values_and_ranks_hold_the_truth_jointly(generator):
    """Eighty estimates at 90 %: a right rule misses in 22 or more with probability below 10⁻⁵."""
    problem = problem_of("relu_mlp", generator)
    exact = rank_layers(problem, "trace").table.sort_index()
    missed = 0
    for _ in range(80):
        found = rank_layers(problem, "trace", 0.9, generator, LayerwiseTrace(30)).table.sort_index()
        values = found["low"].le(exact["value"]) & exact["value"].le(found["high"])
        ranks = found["rank_low"].le(exact["rank"]) & exact["rank"].le(found["rank_high"])
        missed += not (values & ranks).all()
    assert missed < 22


def test_the_probes_needed_decide_the_order(generator):
    problem = problem_of("tanh_mlp", generator)
    needed = rank_layers(problem, "trace", 0.9, generator, LayerwiseTrace(200)).num_probes_needed
    assert math.isfinite(needed)
    assert rank_layers(problem, "trace", 0.9, generator, LayerwiseTrace(int(4 * needed))).is_decided


def test_bad_requests_to_rank_are_refused(generator):
    problem = problem_of("tiny_mlp", generator)
    with pytest.raises(ValueError, match="pass 'mean_trace' or 'trace'"):
        rank_layers(problem, "size")
    with pytest.raises(ValueError, match="pass a probability"):
        rank_layers(problem, level=2)
    with pytest.raises(TypeError, match=r"pass a torch.Generator"):
        rank_layers(problem, estimator=LayerwiseTrace(4))
    with pytest.raises(ValueError, match="at least two"):
        rank_layers(problem, generator=generator, estimator=LayerwiseTrace(1))


def test_a_trace_that_the_pilot_cannot_tell_from_zero_is_promised_nothing(generator):
    samples = pd.DataFrame({"a": [1.0, -1.0, 2.0, -1.5], "b": [5.0, 5.1, 5.0, 4.9]})
    trial = advice._Trial(LayerwiseTrace(), samples, once=0.0, per_probe=1.0)
    plan = advice._plan(
        problem_of("tiny_mlp", generator), trial, pd.Series({"a": 0.0, "b": 4.0}), 0.1, 0.9, 1.0
    )
    assert plan.worst == math.inf
    assert plan.num_probes == advice._MOST
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


@pytest.mark.parametrize(
    ("wrong", "said"), [(LayerwiseTrace, "LayerwiseTrace"), ("LayerwiseTrace", "'LayerwiseTrace'")]
)
def test_an_estimator_is_an_instance(wrong, said, generator):
    problem = zoo.problem("tiny_relu", generator)
    with pytest.raises(
        TypeError, match=rf"estimator is {said}: pass an instance, such as LayerwiseTrace\(64\)"
    ):
        rank_layers(problem, generator=generator, estimator=wrong)
