"""Batches: what is no batch is refused, and loaders are read once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import data, mlp
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hesstheory import Problem, hessian


def with_hole(value):
    inputs, targets = data()
    inputs[5, 1] = value
    return [(inputs, targets)]


BATCHES = {
    "empty list": ([], "pass at least one"),
    "empty batch": ([tuple(part[:0] for part in data())], "drop it"),
    "second batch empty": (
        [data(), tuple(part[:0] for part in data())],
        "batch 1 has no samples: drop it",
    ),
    "lengths differ": (
        [(data()[0], data()[1][:5])],
        "8 inputs but 5 targets: give one target per input",
    ),
    "no pair": ([data()[0]], r"pass \(inputs, targets\)"),
    "three parts": ([(*data(), data()[1])], r"pass \(inputs, targets\)"),
    "scalars": ([(torch.tensor(1.0), torch.tensor(1.0))], "samples along axis 0"),
    "NaN among the inputs": (with_hole(torch.nan), "look for NaN"),
    "NaN among the inputs of batch 1": ([data(), *with_hole(torch.nan)], "look for NaN"),
}


@pytest.mark.parametrize(("batches", "cure"), BATCHES.values(), ids=BATCHES)
def test_bad_batches_are_refused(batches, cure, build, unchecked):
    with pytest.raises(ValueError, match=cure):
        Problem(build(mlp), F.mse_loss, batches)


def test_a_data_loader_is_read_once_and_leaves_the_global_stream(build):
    loader = DataLoader(TensorDataset(*data()), batch_size=3, shuffle=True)
    model = build(mlp)
    problem = Problem(model, F.mse_loss, loader)
    assert problem.batch_sizes == (3, 3, 2)
    whole = hessian(Problem(model, F.mse_loss, [data()])).to_dense()
    for seen in (problem, problem.with_batches(loader)):
        torch.testing.assert_close(hessian(seen).to_dense(), whole, rtol=1e-12, atol=1e-14)


def test_targets_may_be_absent(build):
    problem = Problem(
        build(mlp), lambda outputs, targets: outputs.square().mean(), [(data()[0], None)]
    )
    assert problem.num_samples == 8


def test_arrays_are_no_tensors(build):
    network = build(lambda: torch.nn.Linear(2, 3))
    batch = (np.zeros((4, 2)), np.zeros(4, dtype=int))
    with pytest.raises(TypeError, match=r"inputs of batch 0 are ndarray: pass tensors"):
        Problem(network, torch.nn.functional.cross_entropy, [batch])
