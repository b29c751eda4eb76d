"""CIFAR-10 and CIFAR-100 in their binary version, verified before they are read."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hesstheory.zoo.pictures import SIDE, Pictures


@dataclass(frozen=True)
class Cifar:
    """Where a data set lies, what its files hash to, and what standardises it.

    A record is `num_labels` bytes, of which the last is the class, and 3 · 32 · 32 bytes of pixels.
    `mean` and `std` are those of the training pixels in [0, 1].
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
        """Bytes of one image with its labels."""
        return self.num_labels + 3 * SIDE * SIDE

    @property
    def url(self) -> str:
        """Where the archive is published."""
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


# MD5 of the archives: https://www.cs.toronto.edu/~kriz/cifar.html.
# SHA-1 of the files in them: mxnet.gluon.data.vision.
CIFAR = {
    "cifar10": Cifar(
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
    "cifar100": Cifar(
        archive="cifar-100-binary.tar.gz",
        archive_md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train_sha1={"train.bin": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e"},
        test_sha1={"test.bin": "8fb6623e830365ff53cf14adec797474f5478006"},
        num_labels=2,  # coarse, fine
        num_classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


def read_cifar(name: str, train: bool, root: Path) -> Pictures:
    """The training or test images, from the folder in `root` or else from the archive there."""
    known = CIFAR[name]
    sha1 = known.train_sha1 if train else known.test_sha1
    folder = root / known.folder
    archive = root / known.archive
    if folder.is_dir():
        size = known.num_images[0 if train else 1] // len(sha1) * known.record
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


def _what_to_put(known: Cifar, root: Path) -> str:
    """The cure of a missing file, as part of a message."""
    files = ", ".join([*known.train_sha1, *known.test_sha1])
    return (
        f"get {known.url} and put it into {root}, as it is or unpacked "
        f"(a folder {known.folder} with {files}); "
        "or name the place where it lies by root= (--root) or HESSTHEORY_DATA. "
        "torchvision's pickle files (cifar-10-batches-py, cifar-100-python) are not read"
    )


def _from_folder(file: Path, size: int, sha1: str, known: Cifar) -> bytes:
    """Content of a file of the expected size and digest."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: {_what_to_put(known, file.parents[1])}")
    if (found := file.stat().st_size) != size:
        raise ValueError(
            f"{file} is damaged: it has {found} bytes, expected {size}; get {known.url} again"
        )
    content = file.read_bytes()
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    _check_digest(file, "SHA-1", sha1, digest, known)
    return content


def _from_archive(archive: Path, names: list[str], known: Cifar) -> list[bytes]:
    """Contents of files in an archive of the expected digest."""
    with archive.open("rb") as packed:
        md5 = hashlib.file_digest(packed, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    _check_digest(archive, "MD5", known.archive_md5, md5, known)
    found = {}
    with tarfile.open(archive) as members:
        # In the order of the archive: going back would unpack it again from the start.
        for member in members:
            name = member.name.removeprefix(f"{known.folder}/")
            if name in names and (content := members.extractfile(member)):
                found[name] = content.read()
    return [found[name] for name in names]


def _check_digest(file: Path, kind: str, expected: str, found: str, known: Cifar) -> None:
    """Raises ValueError unless the digests are the same."""
    if found != expected:
        raise ValueError(
            f"{file} is damaged: its {kind} is {found}, expected {expected}; get {known.url} again"
        )


def _decoded(content: bytes, known: Cifar) -> Pictures:
    """Pixels and classes of a sequence of records."""
    records = np.frombuffer(content, np.uint8).reshape(-1, known.record)
    labels = records[:, known.num_labels - 1].astype(np.int64)
    if (found := int(labels.max())) >= known.num_classes:
        raise ValueError(
            f"{known.folder} has the label {found}, expected 0 to {known.num_classes - 1}"
        )
    pixels = torch.from_numpy(records[:, known.num_labels :].copy()).view(-1, 3, SIDE, SIDE)
    # The constants are for pixels in [0, 1]; stored are 0 to 255.
    mean, std = (
        255 * torch.tensor(value, dtype=torch.float64).view(3, 1, 1)
        for value in (known.mean, known.std)
    )
    return Pictures(pixels, torch.from_numpy(labels), known.num_classes, mean, std)
