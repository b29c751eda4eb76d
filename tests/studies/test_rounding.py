"""Rounding of traces is measured, and scales with the precision."""

from __future__ import annotations

import pytest
import torch

from hesstheory import zoo
from hesstheory.outputs.traces import exact_traces
from hesstheory.studies.rounding import rounding_of_traces


def _traces(problem):
    return torch.tensor(exact_traces(problem).value.to_numpy())


def _problem(dtype, generator):
    data = zoo.images("digits", num_samples=4, dtype=dtype)
    return zoo.full_scale_problem("vgg11", data, width=1, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_some_epsilons(dtype, generator):
    """More than one, and far from a number that would hide other code."""
    found = rounding_of_traces(_problem(dtype, generator), _traces) / torch.finfo(dtype).eps
    assert 1 < found < 1e5


def test_single_precision_is_within_it_of_double_precision(generator):
    """On all samples, measured on a few."""
    problem = _problem(torch.float32, generator)
    double = _traces(problem.double())
    deviation = (_traces(problem) - double).abs().max() / double.abs().max()
    assert deviation < rounding_of_traces(problem, _traces, samples=2)
