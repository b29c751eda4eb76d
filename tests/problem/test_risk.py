"""What a problem is: parameters, names, matrices of one problem."""

from __future__ import annotations

import pytest
import torch
from builders import data, halves, mlp, stream
from torch.nn import functional as F

from hesstheory import Partition, Problem, ggn, hessian, unrolled_hessian, zoo


def test_frozen_parameters_are_left_out(build):
    model = build(mlp)
    full = Problem(model, F.mse_loss, [data()])
    kept = full.index["2"]
    H = hessian(full).to_dense()
    model[0].requires_grad_(False)
    problem = Problem(model, F.mse_loss, [data()])
    assert list(problem.params) == ["2.weight", "2.bias"]
    assert list(problem.partition.blocks) == ["2"]
    torch.testing.assert_close(
        hessian(problem).to_dense(), H[kept][:, kept], rtol=1e-12, atol=1e-14
    )


def test_a_compiled_model_is_taken_as_it_was_before(build):
    """PyTorch differentiates no compiled function twice: the model itself is taken."""
    model = build(mlp)
    batches = [data()]
    plain, compiled = (
        Problem(m, F.mse_loss, batches) for m in (model, torch.compile(model, backend="aot_eager"))
    )
    assert compiled.model is model
    assert list(compiled.params) == list(plain.params)
    assert torch.equal(hessian(compiled).to_dense(), hessian(plain).to_dense())
    partition = Partition.by_tensor(torch.compile(model, backend="aot_eager"))
    assert list(plain.with_partition(partition).partition.blocks) == list(plain.params)


def test_repr_says_what_is_differentiated(build):
    assert repr(Problem(build(mlp), F.mse_loss, halves(*data()))) == (
        "Problem(Sequential, 26 parameters in 2 blocks, 8 samples in 2 batches, torch.float64)"
    )


UNKNOWN = {
    "block": (
        lambda problem: hessian(problem).block("0", "fc1"),
        "no block 'fc1': choose one of 0, 2",
    ),
    "tensor": (
        lambda problem: unrolled_hessian(problem, "w"),
        "no parameter 'w'; the parameters are '0.weight'",
    ),
    "network": (
        lambda problem: zoo.problem("resnet1000", stream()),
        "no network 'resnet1000': choose one of",
    ),
}


@pytest.mark.parametrize(("ask", "cure"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_names_are_answered_with_the_known_ones(ask, cure, build):
    with pytest.raises(KeyError, match=cure):
        ask(Problem(build(mlp), F.mse_loss, [data()]))


def test_numbers_of_the_model_must_be_tensors(build, unchecked):
    problem = Problem(build(mlp), F.mse_loss, [data()])
    with pytest.raises(
        ValueError, match="the two matrices belong to different problems: build both from the same"
    ):
        hessian(problem) - ggn(problem.with_batches(problem.batches))
