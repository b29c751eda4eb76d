"""Initial values come from the generator alone, running statistics from the data."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from builders import stream
from torch import nn

from hesstheory import zoo
from hesstheory.zoo.initial import blank

NETWORKS = [*zoo.SMALL, *zoo.MEDIUM, *zoo.TRAIN_MODE]
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def norms_of(model):
    """Its batch norms."""
    return [module for module in model.modules() if isinstance(module, BATCH_NORM)]


NORMALISED = [name for name in NETWORKS if norms_of(zoo.network(name).build())]


def test_some_networks_have_batch_norm():
    assert {"cnn", "digits_cnn", "batchnorm_train"} <= set(NORMALISED)


@pytest.mark.parametrize("name", NETWORKS)
def test_generator_alone_decides(name):
    first, again, other = (zoo.trained(name, stream(seed), 3).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NETWORKS)
def test_mode_is_eval_unless_the_claim_is_about_train_mode(name):
    for steps in (0, 2):
        model = zoo.trained(name, stream(), steps)
        assert {m.training for m in model.modules()} == {name in zoo.TRAIN_MODE}


@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.parametrize("steps", [0, 5])
def test_batch_norm_is_generic(name, steps):
    norms = norms_of(zoo.trained(name, stream(), steps))
    assert norms
    for norm in norms:
        assert norm.momentum == 0.1
        assert int(norm.num_batches_tracked) == 1 + steps
        for values, neutral in (
            (norm.weight, 1),
            (norm.bias, 0),
            (norm.running_mean, 0),
            (norm.running_var, 1),
        ):
            assert bool((values != neutral).all())
        assert bool((norm.running_var > 0).all())


def test_running_statistics_of_an_untrained_network_are_those_of_its_data():
    model = zoo.trained("cnn", stream(), 0)
    data = zoo.network("cnn").data()
    with torch.no_grad():
        hidden = model.conv1(data.inputs)
    torch.testing.assert_close(model.norm1.running_mean, hidden.mean((0, 2, 3)))
    torch.testing.assert_close(model.norm1.running_var, hidden.transpose(0, 1).flatten(1).var(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_single_precision_is_the_same_network(name):
    single, double = (
        zoo.trained(name, stream(), 0, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    for coarse, fine in zip(single.parameters(), double.parameters(), strict=True):
        assert coarse.dtype == torch.float32
        assert torch.equal(coarse, fine.float())
    assert zoo.problem(name, stream(), dtype=torch.float32).dtype == torch.float32


def test_blank_is_the_network_but_for_its_numbers():
    """Names, shapes, dtypes, what is learnt and what is saved."""

    def build():
        layers = [nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2), nn.LSTM(2, 2).double()]
        layers[0].weight.requires_grad_(False)
        layers[1].register_buffer("mask", torch.zeros(2, dtype=torch.bool), persistent=False)
        return nn.ModuleList([*layers, layers[0]])  # the first module twice

    def seen(model):
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return [
            [(name, tensor.shape, tensor.dtype, tensor.requires_grad, tensor.device.type)
             for name, tensor in tensors],
            list(model.state_dict()),
        ]  # fmt: skip

    with torch.device("meta"):
        expected = seen(build().to_empty(device="cpu"))
    found = blank(build)
    assert seen(found) == expected
    assert found[0] is found[3]
    assert found[2](torch.zeros(1, 2, dtype=torch.float64))[0].shape == (1, 2)


def test_building_does_not_import_the_compiler():
    """It takes seconds in every process."""
    code = (
        "import sys, torch; from hesstheory import zoo;"
        "zoo.problem('cnn', torch.Generator().manual_seed(0));"
        "print([name for name in ('torch._dynamo', 'torch.fx.experimental.symbolic_shapes')"
        " if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
