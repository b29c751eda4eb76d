"""Orders of layers hold the truth at the level that was asked for."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesstheory import (
    LayerwiseTrace,
    Problem,
    hessian,
    rank_layers,
    zoo,
)
from hesstheory.estimators import ranks


def problem_of(name, generator):
    return zoo.problem(name, generator, num_samples=12)


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
    """Layers far apart are told apart, and so are two whose difference has no spread."""
    noise = np.array([0.1, -0.1, 0.2, -0.2, 0.0, 0.05, -0.05, 0.1])
    samples = pd.DataFrame(
        {"low": noise, "far": 100 + 30 * noise, "near": 0.5 + noise, "wide": 50 + 1000 * noise}
    )
    found = ranks.ranking_of(samples, 0.95, "by hand").table
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


@pytest.mark.parametrize(
    ("wrong", "said"), [(LayerwiseTrace, "LayerwiseTrace"), ("LayerwiseTrace", "'LayerwiseTrace'")]
)
def test_an_estimator_is_an_instance(wrong, said, generator, unchecked):
    problem = zoo.problem("tiny_relu", generator)
    with pytest.raises(
        TypeError, match=rf"estimator is {said}: pass an instance, such as LayerwiseTrace\(64\)"
    ):
        rank_layers(problem, generator=generator, estimator=wrong)


def test_no_number_of_probes_tells_equal_neighbours_apart():
    samples = pd.DataFrame({"one": [1.0, 3.0, 2.0, 2.0], "other": [3.0, 1.0, 2.0, 2.0]})
    assert ranks.ranking_of(samples, 0.95, "by hand").num_probes_needed == math.inf
