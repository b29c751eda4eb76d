"""Narrow full-scale networks have the promised curvature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders import stream
from narrow_networks import HEADS, NUM_BLOCKS, noise
from torch import nn

from hesstheory import NotPiecewiseLinear, exact_traces, ggn, hessian, zoo


def narrow_problem(name, activation=nn.ReLU, dtype=torch.float64):
    """Three digits in two batches."""
    data = zoo.images("digits", num_samples=3, dtype=dtype)
    return zoo.full_scale_problem(
        name, data, batch_size=2, width=2, activation=activation, generator=stream()
    )


def trace_of_the_head(problem, name):
    """tr G of a linear layer under cross-entropy.

    It is the mean of (‖h_n‖² + 1)(1 − ‖p_n‖²), h_n the input of the layer.
    """
    inputs = torch.cat([inputs for inputs, _ in problem.batches])
    head = problem.model.get_submodule(HEADS[name])
    seen = []
    handle = head.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        p = problem.model(inputs).softmax(1)
    handle.remove()
    return float(((seen[0].square().sum(1) + 1) * (1 - p.square().sum(1))).mean())


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
def test_rectified_networks_have_exact_traces(name):
    problem = narrow_problem(name)
    traces = exact_traces(problem).value
    assert list(traces.index) == list(problem.partition.blocks)
    assert traces.name == "tr H"
    assert np.isfinite(traces).all()
    assert (traces >= 0).all()
    assert traces[HEADS[name]] == pytest.approx(trace_of_the_head(problem, name), rel=1e-12)


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU])
def test_smooth_networks_are_not_piecewise_linear(name, activation):
    problem = narrow_problem(name, activation)
    first = "act1" if name in NUM_BLOCKS else "features.2"
    with pytest.raises(NotPiecewiseLinear, match=rf"module '{first}' \({activation.__name__}\)"):
        exact_traces(problem)
    traces = exact_traces(problem, matrix=ggn)
    assert traces[HEADS[name]] == pytest.approx(trace_of_the_head(problem, name), rel=1e-12)


def slope(name, step, d):
    """The derivative of the risk along d, at a distance from the point of the problem."""
    moved = narrow_problem(name, nn.SiLU)
    parameters = list(moved.params.values())
    parts = d.split([p.numel() for p in parameters])
    directions = [part.view_as(p) for p, part in zip(parameters, parts, strict=True)]
    with torch.no_grad():
        for p, direction in zip(parameters, directions, strict=True):
            p.add_(step * direction)
    losses = [moved.loss(batch) for batch in moved.batches]
    risk = sum(w * loss for w, loss in zip(moved.weights, losses, strict=True))
    gradients = torch.autograd.grad(risk, parameters)
    return sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True))


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
def test_smooth_networks_have_the_hessian_of_their_risk(name):
    """dᵀHd against a central difference of the slope along d."""
    problem = narrow_problem(name, nn.SiLU)
    d = noise(problem.num_params, 1) / math.sqrt(problem.num_params)
    curvature = float((d * (hessian(problem) @ d)).sum())
    # ε^(1/3), where rounding and the third derivative are of the same order ε^(2/3).
    # A maximum may switch in VGG.
    step = torch.finfo(torch.float64).eps ** (1 / 3)
    difference = slope(name, step, d) - slope(name, -step, d)
    assert difference / (2 * step) == pytest.approx(curvature, rel=1e-6)
