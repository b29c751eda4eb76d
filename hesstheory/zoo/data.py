"""Real data: the digits of scikit-learn as vectors, rows and images, CIFAR in its binary version, folders of images."""

from __future__ import annotations

import hashlib
import math
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F


class Data(NamedTuple):
    """Inputs and targets, samples along axis 0."""

    inputs: Tensor
    targets: Tensor


# --- digits, for small networks ---------------------------------------------------------------------------------------


def digits(
    num_features: int | None = None,
    num_classes: int = 10,
    num_samples: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """The handwritten digits of scikit-learn as vectors (N×64), or their first principal components (N×num_features).

    Pixels are centred and divided by one common standard deviation; every component has variance one. Both are taken
    over all images of the first `num_classes` classes, of which the first `num_samples` are returned in file order.
    """
    if num_features is None:
        return _data(_pixels(num_classes), num_classes, num_samples, dtype)
    scores = _principal_components(num_classes)
    if not 1 <= num_features <= scores.shape[1]:
        raise ValueError(
            f"num_features is {num_features}: the digits have 1 to {scores.shape[1]} components"
        )
    return _data(scores[:, :num_features], num_classes, num_samples, dtype)


def digit_images(
    num_classes: int = 10, num_samples: int | None = None, dtype: torch.dtype = torch.float64
) -> Data:
    """The digits as images of one channel, N×1×8×8."""
    return _data(_pixels(num_classes).reshape(-1, 1, 8, 8), num_classes, num_samples, dtype)


def digit_rows(
    num_classes: int = 10, num_samples: int | None = None, dtype: torch.dtype = torch.float64
) -> Data:
    """The digits as sequences of eight rows, N×8×8: axis 1 is the step or token."""
    return _data(_pixels(num_classes).reshape(-1, 8, 8), num_classes, num_samples, dtype)


def digits_to_reconstruct(
    num_features: int,
    num_classes: int,
    num_samples: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """The first principal components of the digits, as inputs and as targets."""
    inputs, _ = digits(num_features, num_classes, num_samples, dtype)
    return Data(inputs, inputs.clone())


def _data(inputs: ndarray, num_classes: int, num_samples: int | None, dtype: torch.dtype) -> Data:
    if num_samples is not None and not 1 <= num_samples <= len(inputs):
        raise ValueError(
            f"num_samples is {num_samples}: the first {num_classes} digits have 1 to {len(inputs)} images"
        )
    targets = _load_digits(num_classes)[1]
    return Data(
        torch.tensor(inputs[:num_samples], dtype=dtype), torch.tensor(targets[:num_samples])
    )


@lru_cache
def _load_digits(
    num_classes: int,
) -> tuple[Float64[ndarray, "images 64"], Int64[ndarray, " images"]]:
    from sklearn.datasets import load_digits  # takes a second to import

    if not 2 <= num_classes <= 10:
        raise ValueError(f"num_classes is {num_classes}: the digits have 2 to 10 classes")
    pixels, labels = load_digits(n_class=num_classes, return_X_y=True)
    return np.asarray(pixels, dtype=np.float64), np.asarray(labels, dtype=np.int64)


@lru_cache
def _pixels(num_classes: int) -> Float64[ndarray, "images 64"]:
    pixels, _ = _load_digits(num_classes)
    centred = pixels - pixels.mean(axis=0)
    scaled: ndarray = centred / centred.std()
    return scaled


@lru_cache
def _principal_components(num_classes: int) -> Float64[ndarray, "images components"]:
    """Scores of unit variance; the largest entry of every direction is positive. Constant directions are left out."""
    U, s, Vt = np.linalg.svd(_pixels(num_classes), full_matrices=False)
    largest = np.take_along_axis(Vt, np.abs(Vt).argmax(axis=1, keepdims=True), axis=1)
    rank = int((s > s[0] * len(U) * np.finfo(s.dtype).eps).sum())
    scores: ndarray = (U * np.sign(largest[:, 0]))[:, :rank] * math.sqrt(len(U))
    return scores


# --- images, for full-scale networks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pictures:
    """Images as they are stored, with the mean and deviation that standardise them, one for all channels or each."""

    pixels: Tensor
    labels: Int64[Tensor, " images"]
    num_classes: int
    mean: Tensor
    std: Tensor


def images(
    source: str | Path,
    *,
    num_samples: int | None = None,
    train: bool = True,
    label_noise: float = 0.0,
    dtype: torch.dtype = torch.float32,
    root: str | Path | None = None,
    generator: torch.Generator | None = None,
) -> Data:
    """The first images of a data set, N×3×32×32 and standardised, with their classes; all of them by default.

    `source` is one of
    - `"digits"`: the 1797 digits of scikit-learn, enlarged by bilinear interpolation, the same in all channels;
    - `"cifar10"`, `"cifar100"` (100 fine classes): the binary version as published, read from `root`, by default the
      environment variable HESSTHEORY_DATA or else ~/.cache/hesstheory. It holds the folder cifar-10-batches-bin or
      cifar-100-binary (size and SHA-1 of each file that is read are verified) or else the archive
      cifar-10-binary.tar.gz or cifar-100-binary.tar.gz (its MD5 is verified; it is not unpacked on disk);
    - a `pathlib.Path`: a folder with one subfolder of images for each class, as in `torchvision.datasets.ImageFolder`;
      classes are numbered by name and take turns, and images of other sizes are resized. torchvision's own CIFAR
      folder (cifar-10-batches-py) holds pickle files, which are not read.
    `train=False` reads the test images of CIFAR; the others have one part only.

    Of N returned labels exactly round(`label_noise`·N), drawn from `generator`, are replaced by one of the other
    classes, each as likely. Raises FileNotFoundError that says which files to put where, ValueError for a damaged one.
    """
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise is {label_noise}: pass the fraction of wrong labels, 0 to 1")
    if label_noise > 0 and generator is None:
        raise ValueError(
            "label_noise needs a generator: pass generator=torch.Generator().manual_seed(...)"
        )
    found = _pictures(source, train, root)
    if num_samples is not None and not 1 <= num_samples <= len(found.labels):
        raise ValueError(
            f"num_samples is {num_samples}: {source} has 1 to {len(found.labels)} images"
        )
    inputs = (found.pixels[:num_samples].to(dtype) - found.mean.to(dtype)).div_(found.std.to(dtype))
    targets = found.labels[:num_samples].clone()
    if generator is not None and label_noise > 0:
        _replace_labels(targets, round(label_noise * len(targets)), found.num_classes, generator)
    return Data(inputs.expand(-1, 3, -1, -1).contiguous(), targets)


def _replace_labels(
    targets: Int64[Tensor, " samples"], count: int, num_classes: int, generator: torch.Generator
) -> None:
    wrong = torch.randperm(len(targets), generator=generator)[:count]
    shift = torch.randint(1, num_classes, (count,), generator=generator)
    targets[wrong] = (targets[wrong] + shift) % num_classes


def _pictures(source: str | Path, train: bool, root: str | Path | None) -> _Pictures:
    if isinstance(source, str) and source in _CIFAR:
        return _cifar(_CIFAR[source], train, _data_root(root))
    if isinstance(source, str) and source != "digits":
        known = ", ".join(map(repr, ["digits", *_CIFAR]))
        raise KeyError(
            f"no images {source!r}: pass {known}, or the pathlib.Path of a folder of class folders"
        )
    if not train:
        raise ValueError(f"{source} has no test part: split images({source!r}) into two")
    return _folder(source) if isinstance(source, Path) else _large_digits()


def _data_root(root: str | Path | None) -> Path:
    return Path(root or os.environ.get("HESSTHEORY_DATA") or "~/.cache/hesstheory").expanduser()


@lru_cache
def _large_digits() -> _Pictures:
    vectors, labels = _load_digits(10)
    small = torch.tensor(vectors).view(-1, 1, 8, 8)
    pixels = F.interpolate(small, size=32, mode="bilinear")
    return _Pictures(pixels, torch.tensor(labels), 10, pixels.mean(), pixels.std(correction=0))


# --- CIFAR ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cifar:
    """Where a data set lies, what its files hash to, and the mean and deviation of its training pixels in [0, 1].

    A record is `num_labels` bytes, of which the last is the class, and 3·32·32 bytes of pixels.
    """

    archive: str
    archive_md5: str
    folder: str
    train_sha1: Mapping[str, str]
    test_sha1: Mapping[str, str]
    num_labels: int
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_images: tuple[int, int] = (50_000, 10_000)  # to train, to test

    @property
    def record(self) -> int:
        return self.num_labels + 3 * 32 * 32

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


# MD5 of the archives: https://www.cs.toronto.edu/~kriz/cifar.html. SHA-1 of the files in them: mxnet.gluon.data.vision.
_CIFAR = {
    "cifar10": _Cifar(
        archive="cifar-10-binary.tar.gz",
        archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train_sha1={
            "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
            "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
            "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
            "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
            "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
        },
        test_sha1={"test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c"},
        num_labels=1,
        num_classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Cifar(
        archive="cifar-100-binary.tar.gz",
        archive_md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train_sha1={"train.bin": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e"},
        test_sha1={"test.bin": "8fb6623e830365ff53cf14adec797474f5478006"},
        num_labels=2,
        num_classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


def _cifar(known: _Cifar, train: bool, root: Path) -> _Pictures:
    sha1, num_images = (
        (known.train_sha1, known.num_images[0]) if train else (known.test_sha1, known.num_images[1])
    )
    size = num_images // len(sha1) * known.record
    folder, archive = root / known.folder, root / known.archive
    if folder.is_dir():
        contents = [
            _from_folder(folder / name, size, digest, known) for name, digest in sha1.items()
        ]
    elif archive.is_file():
        contents = _from_archive(archive, list(sha1), known)
    else:
        raise FileNotFoundError(
            f"neither {folder} nor {archive} is there: {_what_to_put(known, root)}"
        )
    return _decoded(b"".join(contents), known)


def _what_to_put(known: _Cifar, root: Path) -> str:
    files = ", ".join([*known.train_sha1, *known.test_sha1])
    return (
        f"get {known.url} and put it into {root}, as it is or unpacked (a folder {known.folder} with {files}); or name "
        "the place where it lies by root= (--root) or HESSTHEORY_DATA. torchvision's pickle files "
        "(cifar-10-batches-py, cifar-100-python) are not read"
    )


def _from_folder(file: Path, size: int, sha1: str, known: _Cifar) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: {_what_to_put(known, file.parents[1])}")
    if (found := file.stat().st_size) != size:
        raise ValueError(
            f"{file} is damaged: it has {found} bytes, expected {size}; get {known.url} again"
        )
    content = file.read_bytes()
    _check_digest(
        file, "SHA-1", sha1, hashlib.sha1(content, usedforsecurity=False).hexdigest(), known
    )
    return content


def _from_archive(archive: Path, names: list[str], known: _Cifar) -> list[bytes]:
    with archive.open("rb") as packed:
        md5 = hashlib.file_digest(packed, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    _check_digest(archive, "MD5", known.archive_md5, md5, known)
    found = {}
    with tarfile.open(archive) as members:
        for (
            member
        ) in members:  # in the order of the file: going back would unpack it again from the start
            name = member.name.removeprefix(f"{known.folder}/")
            if name in names and (content := members.extractfile(member)):
                found[name] = content.read()
    return [found[name] for name in names]


def _check_digest(file: Path, kind: str, expected: str, found: str, known: _Cifar) -> None:
    if found != expected:
        raise ValueError(
            f"{file} is damaged: its {kind} is {found}, expected {expected}; get {known.url} again"
        )


def _decoded(content: bytes, known: _Cifar) -> _Pictures:
    records = np.frombuffer(content, np.uint8).reshape(-1, known.record)
    labels = records[:, known.num_labels - 1].astype(np.int64)
    if (found := int(labels.max())) >= known.num_classes:
        raise ValueError(
            f"{known.folder} has the label {found}, expected 0 to {known.num_classes - 1}"
        )
    pixels = torch.from_numpy(records[:, known.num_labels :].copy()).view(-1, 3, 32, 32)
    mean, std = (
        255 * torch.tensor(value, dtype=torch.float64).view(3, 1, 1)
        for value in (known.mean, known.std)
    )
    return _Pictures(pixels, torch.from_numpy(labels), known.num_classes, mean, std)


# --- folders of images ------------------------------------------------------------------------------------------------

_IMAGE_FILES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


def _folder(path: Path) -> _Pictures:
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is no folder: pass one with a subfolder of images for each class"
        )
    classes = sorted(child for child in path.iterdir() if child.is_dir())
    if len(classes) < 2:
        raise ValueError(
            f"{path} has {len(classes)} subfolders: it needs one of images for each of two or more classes"
        )
    files = [
        sorted(f for f in child.rglob("*") if f.suffix.lower() in _IMAGE_FILES) for child in classes
    ]
    if empty := [child.name for child, found in zip(classes, files, strict=True) if not found]:
        raise FileNotFoundError(
            f"no images in {', '.join(empty)} of {path}: fill or remove these subfolders"
        )
    # Classes take turns, so that the first images are not all of one class.
    turns = sorted((turn, label) for label, found in enumerate(files) for turn in range(len(found)))
    pixels = torch.from_numpy(np.stack([_picture(files[label][turn]) for turn, label in turns]))
    mean, std = pixels.double().mean((0, 2, 3)), pixels.double().std((0, 2, 3), correction=0)
    std = torch.where(std > 0, std, 1.0)  # a channel that is the same everywhere becomes zero
    labels = torch.tensor([label for _, label in turns])
    return _Pictures(pixels, labels, len(classes), mean.view(3, 1, 1), std.view(3, 1, 1))


def _picture(file: Path) -> UInt8[ndarray, "3 32 32"]:
    from PIL import Image  # comes with matplotlib

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise ValueError(
            f"{file} is damaged or no image ({error}): replace or remove it"
        ) from error
    if image.size != (32, 32):
        image = image.resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)
