"""Blocks are as promised: by layer, module, tensor or label, tied tensors once."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from builders import data, mlp, stream
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from hesstheory import Partition, Problem, hessian, zoo


@pytest.mark.parametrize("label", [None, "", 3])
def test_bad_labels_are_refused(label, build, unchecked):
    with pytest.raises(ValueError, match="return a non-empty string"):
        Partition.by(build(mlp), lambda name: label)


def test_bad_depth_is_refused(build):
    with pytest.raises(ValueError, match="pass depth >= 1"):
        Partition.by_module(build(mlp), depth=0)


def test_tied_tensors_are_listed_once_under_their_owners():
    problem = zoo.problem("autoencoder", stream())
    assert list(problem.params) == ["up.weight", "up.bias", "down.bias"]
    assert dict(problem.partition.blocks) == {
        "up+down": ("up.weight",),
        "up": ("up.bias",),
        "down": ("down.bias",),
    }
    by_tensor = Partition.by_tensor(problem.model).blocks
    assert dict(by_tensor) == {
        "up.weight+down.weight": ("up.weight",),
        "up.bias": ("up.bias",),
        "down.bias": ("down.bias",),
    }


def tied_within_a_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    model[0].extra = model[0].weight
    return model


def test_a_tie_within_a_layer_stays_in_the_layer(build):
    problem = Problem(build(tied_within_a_layer), F.mse_loss, [data()])
    assert list(problem.partition.blocks) == ["0", "2"]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.stem = nn.Linear(3, 4)
        self.stage = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2)))

    def forward(self, x):
        return self.scale * self.stage(self.stem(x))


NESTED = {
    "layer": (Partition.by_layer, {"scale": 1, "stem": 16, "stage.0": 20, "stage.1.1": 10}),
    "module": (Partition.by_module, {"scale": 1, "stem": 16, "stage": 30}),
    "module at depth 2": (
        partial(Partition.by_module, depth=2),
        {"scale": 1, "stem": 16, "stage.0": 20, "stage.1": 10},
    ),
    "kind": (
        lambda model: Partition.by(model, lambda name: name.rpartition(".")[2]),
        {"scale": 1, "weight": 36, "bias": 10},
    ),
    "tensor": (
        Partition.by_tensor,
        {
            "scale": 1, "stem.weight": 12, "stem.bias": 4, "stage.0.weight": 16, "stage.0.bias": 4,
            "stage.1.1.weight": 8, "stage.1.1.bias": 2,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("cut", "sizes"), NESTED.values(), ids=NESTED)
def test_blocks_of_a_partition(cut, sizes, build):
    model = build(Nested)
    problem = Problem(model, F.mse_loss, [data()], cut(model))
    assert {block: len(index) for block, index in problem.index.items()} == sizes
    assert sorted(torch.cat(list(problem.index.values())).tolist()) == list(
        range(problem.num_params)
    )
    H = hessian(problem).to_dense()
    first, *_, last = sizes
    expected = H[problem.index[first]][:, problem.index[last]]
    torch.testing.assert_close(
        hessian(problem).block(first, last), expected, rtol=1e-12, atol=1e-14
    )
    flat = torch.cat([p.detach().flatten() for p in problem.params.values()])
    for block, names in problem.partition.blocks.items():
        named = torch.cat([problem.params[name].detach().flatten() for name in names])
        assert torch.equal(flat[problem.index[block]], named)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrized():
    model = mlp()
    parametrize.register_parametrization(model[0], "weight", Halved())
    return nn.Sequential(model, nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))


def test_parametrized_weights_belong_to_the_layer_that_owns_them(build):
    problem = Problem(build(parametrized), F.mse_loss, [data()])
    assert {block: len(index) for block, index in problem.index.items()} == {
        "0.0": 16,
        "0.2": 10,
        "1": 8,
    }
    stages = Partition.by_module(problem.model)
    assert list(stages.blocks) == ["0", "1"]
