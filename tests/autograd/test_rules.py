"""Which operation of a graph may bend the outputs in a single parameter."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

from hesstheory.autograd.rules import obstacle


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


def in_place_on_a_view(w, v):
    out = w * 1.0
    out[0] = v[0]
    return out


def normed_in_train_mode(w, v):
    return F.batch_norm(w @ v, torch.zeros(3), torch.ones(3), training=True)


AFFINE = {
    "a sum": lambda w, v: w + 2 * v,
    "a product of two": lambda w, v: w @ v,
    "piecewise linear": lambda w, v: (w.relu() @ v).abs(),
    "divided by a number": lambda w, v: w / 3,
    "divided by a constant": lambda w, v: w / torch.full((3, 3), 2.0),
    "a curve of constants": lambda w, v: w * torch.ones(3).exp(),
}
BENT = {
    "a curve": (lambda w, v: (w @ v).tanh(), "Tanh is not known to be piecewise linear"),
    "a square": (lambda w, v: w * w, "Mul multiplies two values that depend on the same"),
    "a tie in series": (lambda w, v: w @ v @ w, "Mm multiplies .*a tie in series"),
    "divided by a parameter": (lambda w, v: w / v, "Div by a value that depends on parameters"),
    "a function of the user": (lambda w, v: Doubled.apply(w), "a torch.autograd.Function of your"),
    "in place on a view": (in_place_on_a_view, "CopySlices, .*write it out of place"),
    "batch norm in train mode": (normed_in_train_mode, "is in train mode and divides by"),
}


def parameters():
    start = torch.linspace(0.5, 2, 9).reshape(3, 3)
    return start.clone().requires_grad_(), start.flip(0).requires_grad_()


@pytest.mark.parametrize("outputs", AFFINE.values(), ids=AFFINE)
def test_operations_that_bend_in_no_parameter(outputs):
    assert obstacle(outputs(*parameters())) is None


@pytest.mark.parametrize(("outputs", "reason"), BENT.values(), ids=BENT)
def test_operations_that_may_bend_are_named(outputs, reason):
    found = obstacle(outputs(*parameters()))
    assert found is not None
    node, words = found
    assert re.search(reason, words)
    assert node.name()
