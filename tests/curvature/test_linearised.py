"""One batch, linearised: what has no curvature, what has no Gauss-Newton matrix."""

from __future__ import annotations

import pytest
import torch
from builders import data, relative_error, stream
from routes import OPERATORS, TOLERANCE
from torch import nn
from torch.nn import functional as F

from hesstheory import Problem, exact_traces, ggn, hessian, residual
from hesstheory.curvature.loss_slope import loss_slope


def test_a_model_that_is_linear_in_its_parameters_has_no_residual(build):
    inputs = torch.randn(6, 3, generator=stream())
    targets = torch.randn(6, 2, generator=stream(1))
    problem = Problem(build(lambda: nn.Linear(3, 2)), F.mse_loss, [(inputs, targets)])
    assert relative_error(hessian(problem).to_dense(), ggn(problem).to_dense()) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:the loss is linear in the outputs")
def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature(build):
    problem = Problem(
        build(lambda: nn.Linear(3, 2)),
        lambda out, _: out.mean(),
        [(torch.ones(4, 3), torch.zeros(4))],
    )
    for matrix in OPERATORS:
        assert matrix(problem).to_dense().count_nonzero() == 0
        assert (matrix(problem) @ torch.ones(8)).count_nonzero() == 0
        assert matrix(problem).trace_by_block().tolist() == [0.0, 0.0]


def squares(outputs, targets):
    return (outputs - targets).square().mean()


def test_the_slope_of_a_loss_is_that_of_autograd(build):
    problem = Problem(build(lambda: nn.Linear(3, 2)), squares, [data()])
    batch = problem.batches[0]
    outputs = problem.outputs(batch)
    leaf, slope = loss_slope(problem, outputs, batch, no_penalty=True)
    assert leaf.is_leaf
    assert torch.equal(leaf, outputs)
    torch.testing.assert_close(slope, 2 * (leaf - batch[1]) / batch[1].numel())
    with torch.enable_grad():
        (bent,) = torch.autograd.grad(slope.sum(), leaf)
    torch.testing.assert_close(bent, torch.full_like(leaf, 2 / leaf.numel()))


def test_the_slope_of_a_loss_that_reads_no_outputs_is_zero(build):
    with pytest.warns(UserWarning, match="does not reach"):
        problem = Problem(build(lambda: nn.Linear(3, 2)), lambda *_: torch.ones(()), [data()])
    batch = problem.batches[0]
    leaf, slope = loss_slope(problem, problem.outputs(batch), batch)
    assert slope.shape == leaf.shape
    assert slope.count_nonzero() == 0
    for matrix in (ggn, residual):
        assert matrix(problem).to_dense().count_nonzero() == 0
    assert all(value == 0 for value in exact_traces(problem).values())


def test_a_penalty_is_refused_where_it_would_be_dropped(build):
    model = build(lambda: nn.Linear(3, 2))
    problem = Problem(model, lambda o, y: squares(o, y) + model.weight.square().sum(), [data()])
    batch = problem.batches[0]
    with pytest.warns(
        UserWarning, match="reads parameters of the model by itself.*leaves the rest"
    ):
        loss_slope(problem, problem.outputs(batch), batch)
    with pytest.raises(ValueError, match="reads parameters of the model by itself"):
        loss_slope(problem, problem.outputs(batch), batch, no_penalty=True)
    with pytest.raises(ValueError, match="let the model return the penalty"):
        residual(problem).to_dense()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x), x


def test_a_gauss_newton_matrix_of_several_outputs_is_refused(build):
    batches = [(torch.ones(4, 3), torch.zeros(4, 2))]
    problem = Problem(build(Pair), lambda out, y: F.mse_loss(out[0], y), batches)
    assert hessian(problem).to_dense().isfinite().all()
    with pytest.raises(TypeError, match=r"returns a tuple, .*outputs=lambda out"):
        ggn(problem).to_dense()
