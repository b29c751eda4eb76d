"""Problems of the registry have the samples and batches that were asked for."""

from __future__ import annotations

import pytest
import torch
from builders import stream

from hesstheory import zoo


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({}, (20, 13)),
        ({"num_samples": 1}, (1,)),
        ({"num_samples": 2}, (2,)),
        ({"num_samples": 7}, (5, 2)),
        ({"batch_sizes": (3, 1, 4)}, (3, 1, 4)),
        ({"num_samples": 8, "batch_sizes": [7, 1]}, (7, 1)),
    ],
)
def test_batches_are_consecutive_samples(arguments, sizes):
    problem = zoo.problem("tiny_mlp", stream(), **arguments)
    data = zoo.network("tiny_mlp").data(num_samples=sum(sizes))
    assert problem.batch_sizes == sizes
    assert torch.equal(torch.cat([inputs for inputs, _ in problem.batches]), data.inputs)
    assert torch.equal(torch.cat([targets for _, targets in problem.batches]), data.targets)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: zoo.network("resnet"), KeyError, "tiny_mlp, .*dropout_mlp"),
        (lambda: zoo.problem("resnet", stream()), KeyError, "no network 'resnet'"),
        (lambda: zoo.problem("tiny_mlp", stream(), steps=-1), ValueError, "steps is -1"),
        (
            lambda: zoo.problem("tiny_mlp", stream(), num_samples=5, batch_sizes=(2, 2)),
            ValueError,
            "add up to the 5",
        ),
        (
            lambda: zoo.problem("tiny_mlp", stream(), batch_sizes=(2, 0)),
            ValueError,
            "must be positive",
        ),
        (
            lambda: zoo.problem("tiny_mlp", stream(), num_samples=1000),
            ValueError,
            "1 to 360 images",
        ),
        (lambda: zoo.problem("tiny_mlp", stream(), num_samples=0), ValueError, "num_samples is 0"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
