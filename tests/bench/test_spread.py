"""The variance of one probe of every way."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesstheory import Problem, hessian
from hesstheory.bench import spread
from hesstheory.bench.problems import SETTINGS
from hesstheory.bench.ways import WAYS, Way


@pytest.fixture
def problem(build, generator):
    model = build(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    inputs = torch.randn(12, 6, generator=generator)
    targets = torch.randint(3, (12,), generator=generator)
    return Problem(model, F.cross_entropy, [(inputs, targets)])


def norms(problem, block):
    H = hessian(problem).block(block, block)
    return float(H.square().sum()), float(H.diagonal().square().sum())


def test_norms_need_no_product_by_block(problem, generator):
    squares, diagonals = spread.block_norms(problem, 2000, generator)
    for block in problem.partition.blocks:
        square, diagonal = norms(problem, block)
        assert squares[block] == pytest.approx(square, rel=0.15)
        assert 2 * (squares[block] - diagonals[block]) == pytest.approx(
            2 * (square - diagonal), rel=0.15
        )


SETTING = replace(SETTINGS["mlp"], ways=("curvlinops",))


def test_a_way_apart_has_the_variance_that_the_law_of_its_like_predicts(problem):
    traces = pd.Series(dict.fromkeys(problem.partition.blocks, 2.0))
    ways = {"curvlinops": WAYS["curvlinops"]}
    said = []
    found = spread.measure_spreads(SETTING, problem, ways, traces, 500, said.append)["curvlinops"]
    for block in problem.partition.blocks:
        square, diagonal = norms(problem, block)
        expected = (2 * (square - diagonal)) ** 0.5 / 2.0
        assert found.relative[block] == pytest.approx(expected, rel=0.15)
    assert said == [], "nothing was drawn from it"


def test_a_way_apart_whose_like_is_drawn_here_has_its_samples(problem):
    traces = pd.Series(dict.fromkeys(problem.partition.blocks, 2.0))
    setting = replace(SETTING, ways=("BlockSeparatedTrace", "curvlinops"))
    ways = {"curvlinops": WAYS["curvlinops"]}
    found = spread.measure_spreads(setting, problem, ways, traces, 30, lambda line: None)
    assert found["curvlinops"].found == "30 draws of BlockSeparatedTrace, the same estimator"


class Exact:
    """An estimator that claims exactness; nobody may draw from it."""

    is_exact = True

    def __call__(self, problem, *, num_probes, generator):
        raise AssertionError("it was drawn from")


def test_what_claims_exactness_has_no_spread(problem):
    """Whatever its class is called."""
    traces = pd.Series(dict.fromkeys(problem.partition.blocks, 2.0))
    found = spread.measure_spreads(SETTING, problem, {"new": Way(Exact())}, traces, 9, print)
    assert found == {}
    assert [name for name, way in WAYS.items() if way.is_exact] == ["exact_traces"]
