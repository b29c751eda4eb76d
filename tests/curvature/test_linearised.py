"""One batch, linearised: what has no curvature, what has no Gauss-Newton matrix."""

from __future__ import annotations

import pytest
import torch
from builders import relative_error, stream
from routes import OPERATORS, TOLERANCE
from torch import nn
from torch.nn import functional as F

from hesstheory import (
    Problem,
    ggn,
    hessian,
)


def test_a_model_that_is_linear_in_its_parameters_has_no_residual(build):
    inputs, targets = torch.randn(6, 3, generator=stream()), torch.randn(6, 2, generator=stream(1))
    problem = Problem(build(lambda: nn.Linear(3, 2)), F.mse_loss, [(inputs, targets)])
    assert relative_error(hessian(problem).to_dense(), ggn(problem).to_dense()) <= TOLERANCE


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
    with pytest.raises(
        TypeError, match="returns tuple: wrap the model so that it returns its logits"
    ):
        ggn(problem).to_dense()
