"""Slopes of the loss at the outputs keep their digits, and say where they are all there is."""

from __future__ import annotations

import warnings

import pytest
import torch
from builders import Calls, mlp
from torch import nn
from torch.nn import functional as F

from hesstheory import NotTwiceDifferentiable, Problem, exact_traces, ggn, residual
from hesstheory.curvature.loss_slope import loss_slope, restored_slope

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def at_outputs(outputs, targets, loss_fn):
    """A problem whose model returns given outputs, scaled by a parameter."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones((), dtype=outputs.dtype))

        def forward(self, x):
            return self.one * x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Problem(Scaled(), loss_fn, [(outputs, targets)])


def sure(gap, dtype):
    """Logits that are sure of their class, by more and more."""
    return torch.tensor([[gap, 0.0, -3.0], [1.0, 2.0 + gap, 0.5]], dtype=dtype)


def relative(found, expected):
    return float(((found.double() - expected) / expected).abs().max())


@DTYPES
@pytest.mark.parametrize("gap", [1.0, 20.0, 60.0])
def test_slopes_of_a_softmax_keep_their_digits(gap, dtype):
    f = sure(gap, dtype)
    y = f.argmax(1)
    problem = at_outputs(f, y, F.cross_entropy)
    _, slope = loss_slope(problem, f, problem.batches[0])
    exact = f.double()
    others = (exact - torch.logsumexp(exact, 1, keepdim=True)).exp()
    others = others.scatter(1, y[:, None], 0.0)
    expected = others.scatter(1, y[:, None], -others.sum(1, keepdim=True)) / len(f)
    eps = torch.finfo(dtype).eps
    assert relative(slope.detach(), expected) <= 64 * eps
    # As autograd has it, nothing is left of 1 − p.
    if gap == 60.0:
        leaf = f.clone().requires_grad_()
        (plain,) = torch.autograd.grad(F.cross_entropy(leaf, y), leaf)
        assert relative(plain, expected) > 0.5


@DTYPES
@pytest.mark.parametrize("gap", [1.0, 20.0, 40.0])
def test_slopes_of_binary_logits_keep_their_digits(gap, dtype):
    f = torch.tensor([[gap, -gap], [-gap, 2 * gap]], dtype=dtype)
    y = (f > 0).to(dtype)
    problem = at_outputs(f, y, F.binary_cross_entropy_with_logits)
    _, slope = loss_slope(problem, f, problem.batches[0])
    sign = 1 - 2 * y.double()
    expected = sign * (sign * f.double()).sigmoid() / f.numel()
    assert relative(slope.detach(), expected) <= 64 * torch.finfo(dtype).eps


def test_a_wrong_class_is_no_small_slope():
    """One sample far off among sure ones: the slope is of order one and stays as it is."""
    f = sure(20.0, torch.float64)
    problem = at_outputs(f, torch.tensor([1, 1]), F.cross_entropy)
    assert restored_slope(problem, f, problem.batches[0]) is None


def test_a_loss_that_is_nearly_a_softmax_is_not_taken_for_one():
    """The identity of the slopes must hold to rounding, not by and large."""
    f = sure(60.0, torch.float64)

    def nearly(outputs, targets):
        return F.cross_entropy(outputs, targets) + 1e-12 * outputs[:, 2].square().mean()

    problem = at_outputs(f, f.argmax(1), nearly)
    leaf = f.clone().requires_grad_()
    (plain,) = torch.autograd.grad(nearly(leaf, f.argmax(1)), leaf)
    _, slope = loss_slope(problem, f, problem.batches[0])
    torch.testing.assert_close(slope.detach(), plain, rtol=1e-10, atol=0.0)


def test_squares_near_zero_stay_squares():
    f = torch.tensor([[1e-20, -3e-20], [2e-20, 1e-21]])
    problem = at_outputs(f, torch.zeros(2, 2), F.mse_loss)
    _, slope = loss_slope(problem, f, problem.batches[0])
    torch.testing.assert_close(slope.detach(), f / 2, rtol=1e-14, atol=0.0)


# --- losses that are linear -----------------------------------------------------------------------


@pytest.mark.parametrize("loss_fn", [F.nll_loss, lambda f, y: -f.gather(1, y[:, None]).mean()])
@DTYPES
def test_log_probabilities_are_seen_through_to_the_logits(loss_fn, dtype, build):
    net = build(mlp).to(dtype)
    x, y = torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3), torch.tensor([0, 1, 1, 0])
    logits = Problem(net, F.cross_entropy, [(x, y)])
    named = Problem(nn.Sequential(*net, nn.LogSoftmax(1)), loss_fn, [(x, y)])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for traces in (lambda p: exact_traces(p, ggn).value, lambda p: ggn(p).trace_by_block()):
        gap = traces(named) / traces(logits) - 1
        assert float(gap.abs().max()) <= tolerance


def test_what_is_left_of_log_probabilities_is_left_of_the_logits(build):
    """H − G, with G that of the logits: it is not the whole Hessian, although S is zero."""
    net = build(mlp)
    x, y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor([0, 1, 1, 0])
    named = residual(Problem(nn.Sequential(*net, nn.LogSoftmax(1)), F.nll_loss, [(x, y)]))
    expected = residual(Problem(net, F.cross_entropy, [(x, y)])).to_dense()
    torch.testing.assert_close(named.to_dense(), expected, rtol=1e-10, atol=1e-14)


LINEAR = {
    "a mean": lambda f, y: f[:, 0].mean(),
    "absolute values": lambda f, y: (f - 5).abs().mean(),
}


@pytest.mark.parametrize("loss_fn", LINEAR.values(), ids=LINEAR)
def test_a_linear_loss_is_named(loss_fn, build):
    x, y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.zeros(4)
    problem = Problem(build(mlp), loss_fn, [(x, y)])
    with pytest.warns(UserWarning, match="zero by definition"):
        assert float(exact_traces(problem, ggn).value.abs().max()) == 0.0


def test_what_underflows_is_not_called_linear():
    f = sure(2000.0, torch.float64)
    problem = at_outputs(f, f.argmax(1), F.cross_entropy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, slope = loss_slope(problem, f, problem.batches[0])
    assert not slope.detach().any()


def test_probabilities_that_are_not_made_by_log_softmax_are_not_seen_through(build):
    net = build(lambda: nn.Sequential(mlp(), Calls(lambda f: f.softmax(1).log())))
    x, y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor([0, 1, 1, 0])
    with pytest.warns(UserWarning, match="let the model return its logits"):
        ggn(Problem(net, F.nll_loss, [(x, y)])).trace_by_block()


# --- losses that read parameters ------------------------------------------------------------------


def test_a_penalty_is_named_or_refused(build):
    net = build(mlp)
    x, y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor([0, 1, 1, 0])

    def penalised(outputs, targets):
        return F.cross_entropy(outputs, targets) + sum(p.square().sum() for p in net.parameters())

    problem = Problem(net, penalised, [(x, y)])
    outputs = problem.outputs(problem.batches[0])
    with pytest.warns(UserWarning, match="leaves the rest out"):
        _, slope = loss_slope(problem, outputs, problem.batches[0])
    plain = Problem(net, F.cross_entropy, [(x, y)])
    torch.testing.assert_close(slope, loss_slope(plain, outputs, plain.batches[0])[1])
    with pytest.raises(ValueError, match="reads parameters"):
        loss_slope(problem, outputs, problem.batches[0], no_penalty=True)


def test_a_loss_without_second_derivative_is_refused():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, slope):
            return 2 * ctx.saved_tensors[0] * slope

    f = sure(1.0, torch.float64)
    problem = at_outputs(f, None, lambda outputs, targets: Once.apply(outputs).mean())
    with pytest.raises(NotTwiceDifferentiable, match="Once"):
        loss_slope(problem, f, problem.batches[0])
