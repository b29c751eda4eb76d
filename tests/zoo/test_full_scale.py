"""Full-scale networks have the promised sizes and names, narrow ones the promised curvature; images are verified."""

from __future__ import annotations

import hashlib
import math
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesstheory import NotPiecewiseLinear, exact_traces, ggn, hessian, zoo
from hesstheory.zoo import cifar, data

NUM_PARAMS = {
    ("resnet18", 10): 11_173_962,
    ("resnet18", 100): 11_220_132,
    ("resnet34", 10): 21_282_122,
    ("resnet34", 100): 21_328_292,
    ("vgg11", 10): 9_231_114,
    ("vgg11", 100): 9_277_284,
}
NUM_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
NUM_ACTIVATIONS = {"resnet18": 17, "resnet34": 33, "vgg11": 8}
HEADS = {"resnet18": "fc", "resnet34": "fc", "vgg11": "classifier"}


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=9, dtype=torch.float64):
    return torch.randn(shape, generator=stream(seed), dtype=dtype)


def narrow(name, *, width=2, **options):
    return zoo.FULL_SCALE[name](width=width, dtype=torch.float64, generator=stream(), **options)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "num_classes"), NUM_PARAMS)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU])
def test_number_of_parameters(name, num_classes, activation):
    with torch.device("meta"):
        model = zoo.FULL_SCALE[name].build(num_classes, activation, 64, 3)
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMS[name, num_classes]


def vgg11_size(width, num_classes, in_channels):
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
    """Drawn as weights of the right scale, single precision by default, with outputs of the order of one."""
    model = zoo.FULL_SCALE[name](generator=stream())
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    assert sum(p.numel() for p in parameters.values()) == NUM_PARAMS[name, 10]
    for p in parameters.values():
        assert p.dtype == torch.float32
        assert p.device.type == "cpu"
        if p.ndim > 1:
            # The mean square of n normal numbers is within six of its standard errors √(2/n).
            assert abs(float(p.square().mean()) * p[0].numel() / 2 - 1) < 6 * math.sqrt(
                2 / p.numel()
            )
        else:
            assert p.unique().tolist() in ([0.0], [1.0])
    with torch.no_grad():
        outputs = model(noise(2, 3, 32, 32).float())
    assert outputs.shape == (2, 10)
    assert 0.1 < float(outputs.std()) < 10


def names_of(*modules, biased=False):
    return [
        f"{module}.{tensor}"
        for module in modules
        for tensor in (("weight", "bias") if biased else ("weight",))
    ]


def norms_of(*modules):
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
    model, calls = narrow(name, activation=activation), []
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
    model, shapes = narrow(name), {}
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


# --- their curvature --------------------------------------------------------------------------------------------------


def narrow_problem(name, activation=nn.ReLU, dtype=torch.float64):
    data = zoo.images("digits", num_samples=3, dtype=dtype)
    return zoo.full_scale_problem(
        name, data, batch_size=2, width=2, activation=activation, generator=stream()
    )


def trace_of_the_head(problem, name):
    """tr G of a linear layer under cross-entropy: the mean of (‖h_n‖² + 1)(1 − ‖p_n‖²), h_n its input."""
    inputs, seen = torch.cat([inputs for inputs, _ in problem.batches]), []
    handle = problem.model.get_submodule(HEADS[name]).register_forward_hook(
        lambda _, args, out: seen.append(args[0])
    )
    with torch.no_grad():
        p = problem.model(inputs).softmax(1)
    handle.remove()
    return float(((seen[0].square().sum(1) + 1) * (1 - p.square().sum(1))).mean())


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
def test_rectified_networks_have_exact_traces(name):
    problem = narrow_problem(name)
    traces = exact_traces(problem).value
    assert list(traces.index) == list(problem.partition.blocks)
    assert traces.name == "tr H"
    assert np.isfinite(traces).all()
    assert (traces >= 0).all()
    assert traces[HEADS[name]] == pytest.approx(trace_of_the_head(problem, name), rel=1e-12)


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU])
def test_smooth_networks_are_not_piecewise_linear(name, activation):
    problem = narrow_problem(name, activation)
    first = "act1" if name in NUM_BLOCKS else "features.2"
    with pytest.raises(NotPiecewiseLinear, match=rf"module '{first}' \({activation.__name__}\)"):
        exact_traces(problem)
    traces = exact_traces(problem, matrix=ggn)
    assert traces[HEADS[name]] == pytest.approx(trace_of_the_head(problem, name), rel=1e-12)


@pytest.mark.parametrize("name", zoo.FULL_SCALE)
def test_smooth_networks_have_the_hessian_of_their_risk(name):
    """dᵀHd against a central difference of the slope along d."""
    problem = narrow_problem(name, nn.SiLU)
    d = noise(problem.num_params, 1) / math.sqrt(problem.num_params)
    curvature = float((d * (hessian(problem) @ d)).sum())
    parameters = list(problem.params.values())
    directions = [
        part.view_as(p)
        for p, part in zip(parameters, d.split([p.numel() for p in parameters]), strict=True)
    ]

    def slope(step):
        moved = narrow_problem(name, nn.SiLU)
        with torch.no_grad():
            for p, direction in zip(moved.params.values(), directions, strict=True):
                p.add_(step * direction)
        risk = sum(
            w * moved.loss(batch) for w, batch in zip(moved.weights, moved.batches, strict=True)
        )
        gradients = torch.autograd.grad(risk, list(moved.params.values()))
        return sum(
            float((g * direction).sum()) for g, direction in zip(gradients, directions, strict=True)
        )

    # ε^(1/3), where rounding and the third derivative are of the same order ε^(2/3); a maximum may switch in VGG.
    step = torch.finfo(torch.float64).eps ** (1 / 3)
    assert (slope(step) - slope(-step)) / (2 * step) == pytest.approx(curvature, rel=1e-6)


# --- problems ---------------------------------------------------------------------------------------------------------


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
    return zoo.full_scale_problem(
        name, zoo.images("digits", num_samples=12), width=1, generator=stream(), **options
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: a_problem("resnet50"), KeyError, "no full-scale network 'resnet50'; .* resnet18, resnet34, vgg11"),
        (lambda: a_problem(num_classes=9), ValueError, "targets go up to 9: pass num_classes=10 or more, not 9"),
        (lambda: a_problem(batch_size=0), ValueError, "batch_size is 0"),
        (lambda: a_problem(batch_size=2.5), ValueError, r"batch_size is 2\.5: pass a whole number"),
        (lambda: zoo.vgg11(0, generator=stream()), ValueError, "num_classes is 0"),
        (lambda: zoo.resnet18(width=0, generator=stream()), ValueError, "width 0"),
        (lambda: zoo.resnet34(in_channels=-1, generator=stream()), ValueError, "in_channels -1"),
        (lambda: zoo.images("mnist"), KeyError, "no images 'mnist': pass 'digits', 'cifar10', 'cifar100'"),
        (lambda: zoo.images("digits", train=False), ValueError, "digits has no test part"),
        (lambda: zoo.images("digits", num_samples=1798), ValueError, "num_samples is 1798: digits has 1 to 1797"),
        (lambda: zoo.images("digits", num_samples=0), ValueError, "num_samples is 0"),
        (lambda: zoo.images("digits", label_noise=-0.1, generator=stream()), ValueError, "label_noise is -0.1"),
        (lambda: zoo.images("digits", label_noise=1.1, generator=stream()), ValueError, "label_noise is 1.1"),
        (lambda: zoo.images("digits", label_noise=math.nan, generator=stream()), ValueError, "label_noise is nan"),
        (lambda: zoo.images("digits", label_noise=0.1), ValueError, "label_noise needs a generator"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- digits and label noise -------------------------------------------------------------------------------------------


def test_digits_are_standardised_images():
    inputs, targets = zoo.images("digits", dtype=torch.float64)
    assert inputs.shape == (1797, 3, 32, 32)
    assert torch.equal(targets, zoo.digits().targets)
    assert torch.equal(inputs[:, 0], inputs[:, 1])
    assert torch.equal(inputs[:, 0], inputs[:, 2])
    torch.testing.assert_close(inputs.mean(), torch.tensor(0.0))
    torch.testing.assert_close(inputs.square().mean(), torch.tensor(1.0))
    first = zoo.images("digits", num_samples=7)
    assert first.inputs.dtype == torch.float32
    torch.testing.assert_close(first.inputs, inputs[:7].float())


def test_enlarged_digits_are_the_digits():
    """Means over 4×4 pixels blur with known weights: bilinear interpolation leaves constant images as they are."""
    inputs, _ = zoo.images("digits", num_samples=50, dtype=torch.float64)
    small = F.avg_pool2d(inputs[:, :1], 4).flatten(1)
    plain = data.stored_digits(10)[0][:50]
    for large, digit in zip(small.numpy(), plain, strict=True):
        assert np.corrcoef(large, digit)[0, 1] > 0.95


def test_changing_images_in_place_does_not_change_the_next_copy():
    data = zoo.images("digits", num_samples=3, dtype=torch.float64)
    data.inputs.zero_()
    data.targets.fill_(7)
    again = zoo.images("digits", num_samples=3, dtype=torch.float64)
    assert float(again.inputs.norm()) > 1
    assert again.targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("fraction", "num_samples", "expected"),
    [
        (0.0, 100, 0),
        (0.1, 100, 10),
        (0.333, 100, 33),
        (1.0, 100, 100),
        (1e-9, 100, 0),
        (0.5, 1, 0),
        (0.6, 1, 1),
    ],
)
def test_exactly_the_promised_number_of_labels_is_wrong(fraction, num_samples, expected):
    clean = zoo.images("digits", num_samples=num_samples)
    noisy = zoo.images("digits", num_samples=num_samples, label_noise=fraction, generator=stream())
    assert int((noisy.targets != clean.targets).sum()) == expected
    assert torch.equal(noisy.inputs, clean.inputs)
    assert 0 <= int(noisy.targets.min()) <= int(noisy.targets.max()) <= 9


def test_label_noise_is_uniform_over_the_other_classes_and_drawn_from_the_generator():
    clean = zoo.images("digits").targets
    noisy, again, other = (
        zoo.images("digits", label_noise=1.0, generator=stream(s)).targets for s in (0, 0, 1)
    )
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    shifts = ((noisy - clean) % 10).bincount(minlength=10).tolist()
    assert shifts[0] == 0
    mean = 1797 / 9
    assert all(abs(count - mean) < 6 * math.sqrt(mean) for count in shifts[1:])


def test_without_label_noise_the_generator_is_left_alone():
    generator = stream()
    before = generator.get_state()
    zoo.images("digits", num_samples=2, generator=generator)
    assert torch.equal(generator.get_state(), before)


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def records(known, num_images, seed):
    """Random records of the binary layout, and the pixels and classes in them."""
    rng = np.random.default_rng(seed)
    content = rng.integers(0, 256, (num_images, known.record), dtype=np.uint8)
    content[:, : known.num_labels] = rng.integers(
        0, known.num_classes, (num_images, known.num_labels)
    )
    return content


def write(root, known, contents):
    (root / known.folder).mkdir(parents=True)
    for name, content in contents.items():
        (root / known.folder / name).write_bytes(content.tobytes())


def pack(root, known, contents):
    """The archive, with its files in another order and one more, as published."""
    write(
        root / "unpacked",
        known,
        {"readme.html": np.zeros(5, np.uint8), **dict(reversed(contents.items()))},
    )
    with tarfile.open(root / known.archive, "w:gz") as archive:
        archive.add(root / "unpacked" / known.folder, known.folder)


@pytest.fixture(params=["cifar10", "cifar100"])
def small_cifar(request, monkeypatch, tmp_path):
    """A data set of the published layout and names with 20 training and 10 test images: (source, known, contents)."""
    known = replace(cifar.CIFAR[request.param], num_images=(20, 10))
    share = 20 // len(known.train_sha1)
    sizes = dict.fromkeys(known.train_sha1, share) | dict.fromkeys(known.test_sha1, 10)
    contents = {name: records(known, size, seed) for seed, (name, size) in enumerate(sizes.items())}
    digests = {
        name: hashlib.sha1(content.tobytes()).hexdigest() for name, content in contents.items()
    }
    pack(tmp_path / "packed", known, contents)
    known = replace(
        known,
        train_sha1={name: digests[name] for name in known.train_sha1},
        test_sha1={name: digests[name] for name in known.test_sha1},
        archive_md5=hashlib.md5((tmp_path / "packed" / known.archive).read_bytes()).hexdigest(),
    )
    write(tmp_path / "folder", known, contents)
    monkeypatch.setitem(cifar.CIFAR, request.param, known)
    return request.param, known, contents


@pytest.mark.parametrize("place", ["folder", "packed"])
@pytest.mark.parametrize("train", [True, False])
def test_cifar_is_read_from_its_binary_version(small_cifar, tmp_path, place, train):
    source, known, contents = small_cifar
    names = known.train_sha1 if train else known.test_sha1
    expected = np.concatenate([contents[name] for name in names])
    inputs, targets = zoo.images(source, train=train, root=tmp_path / place, dtype=torch.float64)
    assert targets.tolist() == expected[:, known.num_labels - 1].tolist()
    planes = expected[:, known.num_labels :].reshape(-1, 3, 32, 32) / 255
    for channel in range(3):
        found = inputs[:, channel].numpy() * known.std[channel] + known.mean[channel]
        np.testing.assert_allclose(found, planes[:, channel], rtol=0, atol=1e-14)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_the_published_files_where_they_are_at_hand(source, train):
    """Balanced classes, and pixels that the mean and deviation standardise; their hashes say that it is they."""
    try:
        inputs, targets = zoo.images(source, train=train)
    except FileNotFoundError as error:
        pytest.skip(str(error).partition(":")[0])
    num_classes = cifar.CIFAR[source].num_classes
    assert inputs.shape == (50_000 if train else 10_000, 3, 32, 32)
    assert targets.bincount().tolist() == [len(targets) // num_classes] * num_classes
    # The constants have four digits; the test images are another sample of the same law.
    assert inputs.mean((0, 2, 3)).abs().max() < (1e-3 if train else 0.05)
    assert (inputs.std((0, 2, 3)) - 1).abs().max() < (1e-3 if train else 0.05)


def test_cifar_gives_the_first_images_with_noise_over_all_its_classes(small_cifar, tmp_path):
    source, known, _ = small_cifar
    clean = zoo.images(source, num_samples=8, root=tmp_path / "folder")
    noisy = zoo.images(
        source, num_samples=8, label_noise=0.5, root=tmp_path / "folder", generator=stream()
    )
    assert clean.inputs.shape == (8, 3, 32, 32)
    assert clean.inputs.dtype == torch.float32
    assert int((noisy.targets != clean.targets).sum()) == 4
    assert int(noisy.targets.max()) < known.num_classes
    with pytest.raises(ValueError, match=f"{source} has 1 to 20 images"):
        zoo.images(source, num_samples=21, root=tmp_path / "folder")


def test_place_of_the_data_is_an_argument_or_the_environment(small_cifar, tmp_path, monkeypatch):
    source, _, _ = small_cifar
    monkeypatch.setenv("HESSTHEORY_DATA", str(tmp_path / "folder"))
    assert len(zoo.images(source).targets) == 20
    monkeypatch.setenv("HESSTHEORY_DATA", str(tmp_path / "nowhere"))
    assert len(zoo.images(source, root=str(tmp_path / "folder")).targets) == 20
    monkeypatch.delenv("HESSTHEORY_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / ".cache" / "hesstheory")):
        zoo.images(source)


def flip_last_byte(file: Path):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate(file: Path):
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            truncate,
            ValueError,
            r"is damaged: it has {less} bytes, expected {size}; get https://.*{archive} again",
        ),
        (
            flip_last_byte,
            ValueError,
            r"is damaged: its SHA-1 is [0-9a-f]{{40}}, expected {sha1}; get https://",
        ),
        (
            Path.unlink,
            FileNotFoundError,
            r"is not there: get https://.*{archive} and put it into {root}, .*{name}",
        ),
    ],
)
def test_damaged_files_are_named(small_cifar, tmp_path, damage, error, message):
    source, known, contents = small_cifar
    root, (name, sha1) = tmp_path / "folder", list(known.train_sha1.items())[-1]
    size, file = contents[name].size, root / known.folder / name
    damage(file)
    facts = {
        "name": name,
        "size": size,
        "less": size - 1,
        "sha1": sha1,
        "root": root,
        "archive": known.archive,
    }
    with pytest.raises(error, match=f"{file} {message.format(**facts)}"):
        zoo.images(source, root=root)
    assert len(zoo.images(source, train=False, root=root).targets) == 10  # the other part is whole


@pytest.mark.parametrize("damage", [truncate, flip_last_byte])
def test_a_damaged_archive_is_named(small_cifar, tmp_path, damage):
    source, known, _ = small_cifar
    archive = tmp_path / "packed" / known.archive
    damage(archive)
    with pytest.raises(
        ValueError, match=rf"{archive} is damaged: its MD5 is .{{32}}, expected {known.archive_md5}"
    ):
        zoo.images(source, root=tmp_path / "packed")


def test_labels_out_of_range_are_named(small_cifar, tmp_path, monkeypatch):
    source, known, contents = small_cifar
    (name,) = known.test_sha1
    content = contents[name].copy()
    content[3, known.num_labels - 1] = known.num_classes
    (tmp_path / "folder" / known.folder / name).write_bytes(content.tobytes())
    sha1 = {name: hashlib.sha1(content.tobytes()).hexdigest()}
    monkeypatch.setitem(cifar.CIFAR, source, replace(known, test_sha1=sha1))
    with pytest.raises(
        ValueError, match=f"label {known.num_classes}, expected 0 to {known.num_classes - 1}"
    ):
        zoo.images(source, train=False, root=tmp_path / "folder")


@pytest.mark.parametrize(
    ("source", "name"), [("cifar10", "test_batch.bin"), ("cifar100", "test.bin")]
)
def test_files_of_the_published_size_but_not_of_the_published_content_are_refused(
    source, name, tmp_path
):
    known = cifar.CIFAR[source]
    size = {"cifar10": 30_730_000, "cifar100": 30_740_000}[source]
    folder = tmp_path / known.folder
    folder.mkdir()
    with (folder / name).open("wb") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match=f"its SHA-1 is .*, expected {known.test_sha1[name]}"):
        zoo.images(source, train=False, root=tmp_path)


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_missing_data_are_asked_for(source, tmp_path):
    known = cifar.CIFAR[source]
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        zoo.images(source, root=tmp_path)
    asked = (
        known.url,
        str(tmp_path),
        known.folder,
        *known.train_sha1,
        *known.test_sha1,
        "HESSTHEORY_DATA",
        "not read",
    )
    assert [part for part in asked if part not in str(caught.value)] == []


# --- folders of images ------------------------------------------------------------------------------------------------


def paint(file, colour, size=(32, 32), mode="RGB"):
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)


@pytest.fixture
def pictures(tmp_path):
    """Three cats and one dog of one colour each, of several sizes and modes."""
    root = tmp_path / "pictures"
    paint(root / "cat" / "a.png", (10, 20, 30))
    paint(root / "cat" / "b.PNG", 40, size=(8, 50), mode="L")
    paint(root / "cat" / "more" / "c.bmp", (70, 80, 90), size=(64, 64))
    paint(root / "dog" / "d.png", (110, 120, 130))
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "README").write_text("no class")
    return root


def test_folders_of_images_take_turns(pictures):
    inputs, targets = zoo.images(pictures, dtype=torch.float64)
    assert targets.tolist() == [0, 1, 0, 0]
    plain = torch.tensor(
        [[10, 20, 30], [110, 120, 130], [40, 40, 40], [70, 80, 90]], dtype=torch.float64
    )
    expected = (plain - plain.mean(0)) / plain.std(0, correction=0)
    torch.testing.assert_close(inputs, expected[:, :, None, None].expand(-1, -1, 32, 32))
    assert zoo.images(pictures, num_samples=2).targets.tolist() == [0, 1]
    assert zoo.images(pictures, label_noise=1.0, generator=stream()).targets.tolist() == [
        1,
        0,
        1,
        1,
    ]


def test_a_channel_that_is_the_same_everywhere_is_zero(tmp_path):
    paint(tmp_path / "cat" / "a.png", (10, 0, 5))
    paint(tmp_path / "dog" / "b.png", (30, 0, 5))
    inputs, _ = zoo.images(tmp_path)
    assert inputs[:, :, 0, 0].tolist() == [[-1, 0, 0], [1, 0, 0]]


def test_wrong_folders_are_named(pictures):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder"):
        zoo.images(pictures / "nowhere")
    with pytest.raises(ValueError, match=r"cat has 1 subfolders"):
        zoo.images(pictures / "cat")
    (pictures / "bird").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in bird"):
        zoo.images(pictures)
    (pictures / "bird" / "e.png").write_bytes((pictures / "dog" / "d.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"e\.png is damaged or no image"):
        zoo.images(pictures)
    with pytest.raises(ValueError, match="has no test part"):
        zoo.images(pictures, train=False)
