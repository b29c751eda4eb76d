"""Products of many columns at once, in chunks of any size, or one by one."""

from __future__ import annotations

import pytest
import torch
from builders import Calls, columns, problem_of, relative_error, stream
from routes import TOLERANCE
from torch import nn
from torch.nn import functional as F

from hesstheory import Problem, hessian
from hesstheory.autograd import products


@pytest.mark.parametrize(
    ("elements", "expected"), [(0, 1024), (1250, 1024), (12_800, 100), (640_001, 1), (10**9, 1)]
)
def test_a_chunk_is_what_the_caches_hold(elements, expected):
    assert products.columns_at_once(elements) == expected
    parts = list(products.chunks(2500, elements))
    assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert max(part.stop - part.start for part in parts) == expected
    assert (parts[0].start, parts[-1].stop) == (0, 2500)


@pytest.mark.parametrize("chunk_elements", [1, 83 * 5, 83 * 64])
def test_the_size_of_a_chunk_does_not_matter(chunk_elements, monkeypatch):
    problem = problem_of("tanh_mlp")
    V = columns(problem_of("tanh_mlp"), 13)
    H = hessian(problem)
    expected = hessian(problem).to_dense()
    forms = hessian(problem).quadratic_forms(V)
    monkeypatch.setattr(products, "CHUNK_ELEMENTS", chunk_elements)
    monkeypatch.setattr(products, "MAX_CHUNK", 60)  # below P: the symmetric route
    assert relative_error(H.to_dense(), expected) <= TOLERANCE
    assert relative_error(H @ V, expected @ V) <= TOLERANCE
    assert relative_error(H.quadratic_forms(V), forms) <= TOLERANCE


class Tanh(torch.autograd.Function):
    """Differentiable twice, but its backward has a step that cannot be batched."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return Slope.apply(slope, x)


class Slope(torch.autograd.Function):
    """slope · (1 − tanh² x), both derivatives by hand; reads a number, which vmap refuses."""

    calls = 0

    @staticmethod
    def forward(ctx, slope, x):
        ctx.save_for_backward(slope, x)
        return slope * (1 - x.tanh() ** 2)

    @staticmethod
    def backward(ctx, cotangent):
        slope, x = ctx.saved_tensors
        assert cotangent.abs().sum().item() >= 0  # no batching rule for item
        Slope.calls += 1
        tanh = x.tanh()
        return cotangent * (1 - tanh**2), cotangent * slope * -2 * tanh * (1 - tanh**2)


def test_an_operation_that_cannot_be_batched_is_done_one_by_one(build):
    inputs = torch.randn(6, 3, generator=stream())
    targets = torch.randn(6, 2, generator=stream(1))
    by_hand, plain = (
        hessian(
            Problem(
                build(lambda act=act: nn.Sequential(nn.Linear(3, 4), Calls(act), nn.Linear(4, 2))),
                F.mse_loss,
                [(inputs, targets)],
            )
        )
        for act in (Tanh.apply, torch.tanh)
    )
    Slope.calls = 0
    assert relative_error(by_hand.to_dense(), plain.to_dense()) <= TOLERANCE
    assert Slope.calls >= 26, "the columns were not done one by one"
    V = columns(plain.problem, 3)
    assert relative_error(by_hand @ V, plain @ V) <= TOLERANCE
