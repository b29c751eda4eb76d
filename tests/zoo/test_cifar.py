"""CIFAR is read from its binary version, and damage is named."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import stream

from hesstheory import zoo
from hesstheory.zoo.cifar import CIFAR


def records(known, num_images, seed):
    """Random records of the binary layout, and the pixels and classes in them."""
    rng = np.random.default_rng(seed)
    content = rng.integers(0, 256, (num_images, known.record), dtype=np.uint8)
    content[:, : known.num_labels] = rng.integers(
        0, known.num_classes, (num_images, known.num_labels)
    )
    return content


def write(root, known, contents):
    """The folder of a data set."""
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
    """Its name, facts and contents: the published layout with 20 training and 10 test images."""
    known = replace(CIFAR[request.param], num_images=(20, 10))
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
    monkeypatch.setitem(CIFAR, request.param, known)
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
    """Balanced classes, and pixels that the mean and deviation standardise."""
    try:
        inputs, targets = zoo.images(source, train=train)
    except FileNotFoundError as error:
        pytest.skip(str(error).partition(":")[0])
    num_classes = CIFAR[source].num_classes
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
    """Damage that leaves the size."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate(file: Path):
    """Damage that the size shows."""
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
    root = tmp_path / "folder"
    name, sha1 = list(known.train_sha1.items())[-1]
    size = contents[name].size
    file = root / known.folder / name
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
    monkeypatch.setitem(CIFAR, source, replace(known, test_sha1=sha1))
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
    known = CIFAR[source]
    size = {"cifar10": 30_730_000, "cifar100": 30_740_000}[source]
    folder = tmp_path / known.folder
    folder.mkdir()
    with (folder / name).open("wb") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match=f"its SHA-1 is .*, expected {known.test_sha1[name]}"):
        zoo.images(source, train=False, root=tmp_path)


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_missing_data_are_asked_for(source, tmp_path):
    known = CIFAR[source]
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
