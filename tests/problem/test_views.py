"""The same problem, seen otherwise."""

from __future__ import annotations

import pytest
import torch
from builders import classes, data, halves, mlp
from torch import nn
from torch.nn import functional as F

from hesstheory import Partition, Problem, hessian, zoo


def test_views_share_what_is_the_same(build):
    problem = Problem(build(mlp), F.mse_loss, halves(*data()))
    tensors = problem.with_partition(Partition.by_tensor(problem.model))
    assert list(tensors.index) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(problem.index) == ["0", "2"]
    assert tensors.batches is problem.batches
    assert problem.double() is problem
    with pytest.raises(ValueError, match="pass at least one"):
        problem.with_batches([])


def test_batches_are_cut_and_the_risk_stays(build):
    problem = Problem(build(mlp), F.mse_loss, halves(*data()))
    parts = problem.rebatched(2)
    assert parts.batch_sizes == (2, 1, 2, 2, 1)
    expected = hessian(problem).to_dense()
    torch.testing.assert_close(hessian(parts).to_dense(), expected, rtol=1e-12, atol=1e-14)
    assert problem.head(2).batch_sizes == (2,)
    assert torch.equal(problem.head(2).batches[0][0], data()[0][:2])
    alone = [sample.batches[0] for sample in problem.samples()]
    assert torch.equal(torch.cat([inputs for inputs, _ in alone]), data()[0])


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "2"])
def test_batches_of_no_size_are_refused(size, build, unchecked):
    problem = Problem(build(mlp), F.mse_loss, [data()])
    with pytest.raises(ValueError, match="pass a whole number of at least 1"):
        problem.rebatched(size)


def test_a_float32_problem_is_doubled_on_a_copy(build):
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 3.0], dtype=torch.float32))
    inputs, targets = data(dtype=torch.float32)
    problem = Problem(build(mlp).float(), weighted, [(inputs, targets.sigmoid())])
    double = problem.double()
    assert (problem.dtype, double.dtype) == (torch.float32, torch.float64)
    assert weighted.pos_weight.dtype is problem.batches[0][0].dtype is torch.float32
    assert double.batches[0][0].dtype is torch.float64
    assert list(double.params) == list(problem.params)
    assert all(torch.equal(double.params[name], p.double()) for name, p in problem.params.items())


def test_a_float32_loss_with_weights_has_an_exact_hessian(build):
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], dtype=torch.float32))
    with pytest.warns(UserWarning, match="as it stands"):
        problem = Problem(
            build(mlp).float(),
            weighted,
            [(data(dtype=torch.float32)[0], classes([0, 1, 0, 0, 1, 1, 0, 1]))],
        )
    assert hessian(problem).to_dense().dtype is torch.float64


def test_a_loss_that_reads_the_model_is_not_copied(build):
    """A closure over float32 parameters would leave them behind in the float64 copy."""
    model = build(lambda: nn.Linear(3, 2)).float()
    inputs = torch.linspace(-1, 1, 12, dtype=torch.float32).reshape(4, 3)

    def penalised(outputs, targets):
        return outputs.square().mean() + sum(p.square().sum() for p in model.parameters())

    problem = Problem(model, penalised, [(inputs, torch.zeros(4, dtype=torch.float32))])
    with pytest.raises(ValueError, match=r"model\.double"):
        problem.double()
    assert torch.isfinite(
        hessian(problem) @ torch.ones(problem.num_params, dtype=torch.float32)
    ).all()


def test_the_largest_batch_alone(generator):
    problem = zoo.problem("tiny_relu", generator, batch_sizes=[2, 4, 4, 1])
    largest = problem.largest()
    assert largest.batch_sizes == (4,)
    assert largest.batches[0] is problem.batches[1], "the first of them"
