"""Where tr H may not be tr G, the graph or a second derivative tells."""

from __future__ import annotations

import pytest
import torch
from builders import Shaped, close, drawn
from torch.nn import functional as F

import hesstheory.outputs.fit
import hesstheory.outputs.premise
from hesstheory import (
    NotPiecewiseLinear,
    Problem,
    exact_traces,
    hessian,
    residual,
)


class Hidden(torch.autograd.Function):
    """Piecewise linear by its name alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slope


Hidden.__name__ = Hidden.__qualname__ = "Abs"


def _in_place_on_a_part(h):
    h = h.clone()
    h[:, 0].exp_()
    return h


@pytest.mark.filterwarnings("ignore:the loss does not reach")
@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (Hidden.apply, r"does not show what Hidden|of your own.*pass matrix=ggn"),
        (_in_place_on_a_part, r"in place on a view.*write it out of place.*pass matrix=ggn"),
    ],
)
def test_a_bend_under_another_name_is_refused(bend, reason, generator):
    with torch.device("meta"):
        model = Shaped(lambda m, x: m.b(bend(m.a(x)).relu()))
    model = model.to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    data = torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator)
    with pytest.raises(NotPiecewiseLinear, match=reason):
        exact_traces(Problem(model, F.cross_entropy, [data]))


def _bent_behind(generator, monkeypatch, bend):
    """A linear layer whose weight passes through a function, which the graph does not show."""
    monkeypatch.setattr(hesstheory.outputs.premise, "obstacle", lambda outputs: None)
    with torch.device("meta"):
        model = Shaped(lambda m, x: F.linear(x, bend(m.a.weight)).mean(1))
    for name in ("b", "c"):
        delattr(model, name)
    model = drawn(model, generator)
    model.a.bias = None
    return Problem(
        model, F.cross_entropy, [(torch.randn(6, 6, 5, generator=generator), torch.arange(6) % 3)]
    )


def test_a_bend_of_rounding_is_none(generator, monkeypatch):
    """log exp w has a second derivative of rounding alone, and nothing else stands in its row."""
    problem = _bent_behind(generator, monkeypatch, lambda w: w.exp().log())
    rows = residual(problem).to_dense()
    assert 0 < rows.abs().max() < 1e-15
    assert exact_traces(problem).name == "tr H"


@pytest.mark.parametrize("bend", [torch.exp, lambda w: w + 1e-6 * w**2])
def test_a_bend_that_the_graph_hides_is_found(bend, generator, monkeypatch):
    problem = _bent_behind(generator, monkeypatch, bend)
    with pytest.raises(
        NotPiecewiseLinear,
        match=r"although the graph looks piecewise linear: in parameter .*matrix=ggn",
    ):
        exact_traces(problem)


@pytest.mark.parametrize(
    "linear",
    [
        lambda h: h.cumsum(1),
        lambda h: F.pixel_shuffle(h.reshape(-1, 4, 1, 1), 2).flatten(1),
        lambda h: F.pixel_unshuffle(h.reshape(-1, 1, 2, 2), 2).flatten(1),
    ],
)
def test_linear_operations_are_let_through(linear, generator):
    with torch.device("meta"):
        model = Shaped(lambda m, x: m.b(linear(m.a(x)).relu()))
    model = drawn(model, generator)
    del model.c
    problem = Problem(
        model, F.cross_entropy, [(torch.randn(6, 5, generator=generator), torch.arange(6) % 3)]
    )
    close(exact_traces(problem), hessian(problem).trace_by_block())
