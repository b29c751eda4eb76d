"""Operations without a second derivative are refused with their cure."""

from __future__ import annotations

import pytest
import torch
from builders import AttentionHead, Calls, attention_by_hand, between_layers, data
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hesstheory import (
    NotTwiceDifferentiable,
    Problem,
    ggn,
    hessian,
    unrolled_hessian,
)


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * (1 - ctx.saved_tensors[0].tanh() ** 2)


class OutOfAutograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(slope.detach().numpy() * (1 - x.detach().tanh().numpy() ** 2))


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        hidden = checkpoint(self.inner, self.first(x).tanh(), use_reentrant=self.use_reentrant)
        return self.last(hidden.tanh())


NOT_TWICE = {
    "once_differentiable": (
        lambda: between_layers(OnceDifferentiable.apply),
        "OnceDifferentiable.*write its backward",
    ),
    "once_differentiable at the end": (
        lambda: nn.Sequential(nn.Linear(3, 2), Calls(OnceDifferentiable.apply)),
        "OnceDifferentiable.*write its backward",
    ),
    "no second derivative": (
        lambda: between_layers(lambda h: torch.cdist(h, h)[:, :4]),
        "replace it",
    ),
}


@pytest.mark.parametrize("look", [hessian, ggn])
@pytest.mark.parametrize(("model", "cure"), NOT_TWICE.values(), ids=NOT_TWICE)
def test_an_operation_without_second_derivative_is_refused(model, cure, look, build):
    matrix = look(Problem(build(model), F.mse_loss, [data(4)]))
    for product in (matrix.to_dense, lambda: matrix @ torch.ones(matrix.shape[0])):
        with pytest.raises(NotTwiceDifferentiable, match=cure):
            product()


def test_a_once_differentiable_function_is_refused_when_unrolled(build):
    problem = Problem(build(NOT_TWICE["once_differentiable"][0]), F.mse_loss, [data()])
    with pytest.raises(NotTwiceDifferentiable, match="write its backward"):
        unrolled_hessian(problem, "0.weight")


def test_reentrant_checkpoints_are_refused_and_others_work(build):
    with pytest.warns(UserWarning, match="use_reentrant=True hides them"):
        problem = Problem(build(lambda: Checkpointed(True)), F.mse_loss, [data()])
    with pytest.raises(NotTwiceDifferentiable, match="checkpoint with use_reentrant=False"):
        hessian(problem).to_dense()
    problem = Problem(build(lambda: Checkpointed(False)), F.mse_loss, [data()])
    plain = Problem(build(lambda: Checkpointed(False)), F.mse_loss, [data()])
    plain.model.forward = lambda x: plain.model.last(
        plain.model.inner(plain.model.first(x).tanh()).tanh()
    )
    torch.testing.assert_close(
        hessian(problem).to_dense(), hessian(plain).to_dense(), rtol=1e-12, atol=1e-14
    )


def test_a_module_compiled_in_place_is_refused(build):
    model = build(lambda: AttentionHead(attention_by_hand))
    model.compile(backend="aot_eager")
    with pytest.raises(NotTwiceDifferentiable, match="pass the model as it was before compilation"):
        hessian(Problem(model, F.mse_loss, [data()])).to_dense()
