"""Full-scale networks have the sizes, names and statistics of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from builders import stream
from narrow_networks import NUM_BLOCKS, narrow, noise
from torch import nn
from torch.nn import functional as F

from hesstheory import zoo

NUM_PARAMS = {
    ("resnet18", 10): 11_173_962,
    ("resnet18", 100): 11_220_132,
    ("resnet34", 10): 21_282_122,
    ("resnet34", 100): 21_328_292,
    ("vgg11", 10): 9_231_114,
    ("vgg11", 100): 9_277_284,
}
NUM_ACTIVATIONS = {"resnet18": 17, "resnet34": 33, "vgg11": 8}


@pytest.mark.parametrize(("name", "num_classes"), NUM_PARAMS)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU])
def test_number_of_parameters(name, num_classes, activation):
    with torch.device("meta"):
        model = zoo.FULL_SCALE[name].build(num_classes, activation, 64, 3)
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMS[name, num_classes]


def vgg11_size(width, num_classes, in_channels):
    """Its number of parameters, by hand."""
    widths = [width * multiple for multiple in (1, 2, 4, 4, 8, 8, 8, 8)]
    layers = zip([in_channels, *widths], widths, strict=False)
    return (
        sum(9 * before * after + 3 * after for before, after in layers)
        + (widths[-1] + 1) * num_classes
    )


@pytest.mark.parametrize(
    ("width", "num_classes", "in_channels"), [(64, 10, 3), (2, 7, 1), (5, 100, 4)]
)
def test_vgg_has_the_size_of_its_formula(width, num_classes, in_channels):
    model = zoo.vgg11(num_classes, width=width, in_channels=in_channels, generator=stream())
    assert sum(p.numel() for p in model.parameters()) == vgg11_size(width, num_classes, in_channels)


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
def test_full_width(name):
    """Weights of the right scale in single precision, and outputs of the order of one."""
    model = zoo.FULL_SCALE[name](generator=stream())
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    assert sum(p.numel() for p in parameters.values()) == NUM_PARAMS[name, 10]
    for p in parameters.values():
        assert p.dtype == torch.float32
        assert p.device.type == "cpu"
        if p.ndim > 1:
            # The mean square of n normal numbers is within six of its standard errors √(2/n).
            ratio = float(p.square().mean()) * p[0].numel() / 2
            assert abs(ratio - 1) < 6 * math.sqrt(2 / p.numel())
        else:
            assert p.unique().tolist() in ([0.0], [1.0])
    with torch.no_grad():
        outputs = model(noise(2, 3, 32, 32).float())
    assert outputs.shape == (2, 10)
    assert 0.1 < float(outputs.std()) < 10


def names_of(*modules, biased=False):
    """Names of the parameters of modules."""
    return [
        f"{module}.{tensor}"
        for module in modules
        for tensor in (("weight", "bias") if biased else ("weight",))
    ]


def norms_of(*modules):
    """Names of the parameters of norms."""
    return names_of(*modules, biased=True)


@pytest.mark.parametrize("name", NUM_BLOCKS)
def test_residual_networks_name_their_parameters_as_torchvision(name):
    expected = names_of("conv1") + norms_of("bn1") + names_of("fc", biased=True)
    for stage, blocks in enumerate(NUM_BLOCKS[name], start=1):
        for block in (f"layer{stage}.{number}" for number in range(blocks)):
            expected += names_of(f"{block}.conv1", f"{block}.conv2") + norms_of(
                f"{block}.bn1", f"{block}.bn2"
            )
        if stage > 1:
            expected += names_of(f"layer{stage}.0.downsample.0") + norms_of(
                f"layer{stage}.0.downsample.1"
            )
    assert sorted(dict(narrow(name).named_parameters())) == sorted(expected)


def test_vgg_names_its_parameters_as_torchvision():
    model = narrow("vgg11")
    convolutions = [i for i, module in enumerate(model.features) if isinstance(module, nn.Conv2d)]
    assert convolutions == [0, 4, 8, 11, 15, 18, 22, 25]
    expected = norms_of(
        *(f"features.{i + shift}" for i in convolutions for shift in (0, 1)), "classifier"
    )
    assert list(dict(model.named_parameters())) == expected


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_every_activation_is_a_module_of_its_own(name, activation):
    model = narrow(name, activation=activation)
    calls = []
    found = [m for m in model.modules() if isinstance(m, activation)]
    for module in found:
        module.register_forward_hook(lambda module, inputs, outputs: calls.append(module))
        assert not module.inplace
    model(noise(2, 3, 32, 32))
    assert len(found) == NUM_ACTIVATIONS[name]
    assert len(calls) == len(found) == len({id(module) for module in calls})


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
@pytest.mark.parametrize(
    ("num_classes", "in_channels", "size"), [(10, 3, 32), (3, 1, 32), (100, 3, 64)]
)
def test_shape_of_outputs(name, num_classes, in_channels, size):
    model = narrow(name, num_classes=num_classes, in_channels=in_channels)
    assert model(noise(2, in_channels, size, size)).shape == (2, num_classes)


@pytest.mark.parametrize("name", NUM_BLOCKS)
def test_stages_halve_the_image_and_double_the_channels(name):
    model = narrow(name)
    shapes = {}
    for stage in range(1, 5):
        module = model.get_submodule(f"layer{stage}")
        module.register_forward_hook(
            lambda _, __, out, stage=stage: shapes.update({stage: tuple(out.shape[1:])})
        )
    model(noise(1, 3, 32, 32))
    assert shapes == {1: (2, 32, 32), 2: (4, 16, 16), 3: (8, 8, 8), 4: (16, 4, 4)}


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
def test_generator_alone_decides(name):
    first, again, other = (
        zoo.FULL_SCALE[name](width=2, generator=stream(s)).state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_weights_do_not_depend_on_inputs_or_precision():
    with_inputs = narrow("resnet18", inputs=noise(5, 3, 32, 32)).state_dict()
    single = zoo.resnet18(width=2, generator=stream()).state_dict()
    for name, p in narrow("resnet18").named_parameters():
        assert torch.equal(p, with_inputs[name])
        assert torch.equal(p.float(), single[name])


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
def test_models_are_in_eval_mode_with_statistics_of_their_inputs(name):
    inputs = noise(5, 3, 32, 32)
    model = narrow(name, inputs=inputs)
    assert not any(m.training for m in model.modules())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 and int(norm.num_batches_tracked) == 1 for norm in norms)
    first = model.conv1 if name in NUM_BLOCKS else model.features[0]
    hidden = first(inputs).detach()
    torch.testing.assert_close(norms[0].running_mean, hidden.mean((0, 2, 3)))
    torch.testing.assert_close(norms[0].running_var, hidden.transpose(0, 1).flatten(1).var(1))


def test_problem_has_layers_as_blocks_and_all_samples():
    data = zoo.images("digits", num_samples=5)
    problem = zoo.full_scale_problem(
        "resnet18", data, num_classes=12, batch_size=2, width=2, generator=stream()
    )
    assert problem.batch_sizes == (2, 2, 1)
    assert problem.dtype == torch.float32
    assert torch.equal(torch.cat([targets for _, targets in problem.batches]), data.targets)
    assert {"conv1", "bn1", "layer2.0.downsample.0", "layer4.1.bn2", "fc"} <= set(
        problem.partition.blocks
    )
    assert len(problem.partition.blocks) == 41
    assert problem.model(data.inputs).shape == (5, 12)
    assert problem.loss_fn is F.cross_entropy


def a_problem(name="vgg11", **options):
    """A narrow problem on twelve digits, whose targets go up to nine."""
    return zoo.full_scale_problem(
        name, zoo.images("digits", num_samples=12), width=1, generator=stream(), **options
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"name": "resnet50"},
            KeyError,
            "no full-scale network 'resnet50': .* resnet18, resnet34, vgg11",
        ),
        (
            {"num_classes": 9},
            ValueError,
            "targets go up to 9: pass num_classes=10 or more, not 9",
        ),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": 2.5}, ValueError, r"batch_size is 2\.5: pass a whole number"),
    ],
)
def test_wrong_problems_are_named(options, error, message):
    with pytest.raises(error, match=message):
        a_problem(**options)


@pytest.mark.parametrize(
    ("draw", "options", "message"),
    [
        (zoo.vgg11, {"num_classes": 0}, "num_classes is 0"),
        (zoo.resnet18, {"width": 0}, "width 0"),
        (zoo.resnet34, {"in_channels": -1}, "in_channels -1"),
    ],
)
def test_wrong_sizes_are_named(draw, options, message):
    with pytest.raises(ValueError, match=message):
        draw(generator=stream(), **options)
