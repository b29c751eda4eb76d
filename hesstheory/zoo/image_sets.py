"""Data sets of images for full-scale networks, by name or as a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from hesstheory.zoo.cifar import CIFAR, read_cifar
from hesstheory.zoo.data import Data, stored_digits
from hesstheory.zoo.pictures import SIDE, Pictures, read_folder


class ImageSet(NamedTuple):
    """How many classes and how many images to train on a data set has."""

    num_classes: int
    num_images: int


# What `images` knows by name.
IMAGE_SETS: Mapping[str, ImageSet] = {
    "digits": ImageSet(10, 1797),
    **{name: ImageSet(known.num_classes, known.num_images[0]) for name, known in CIFAR.items()},
}


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
    """The first images of a data set, standardised, with their classes.

    Parameters
    ----------
    source
        What to read:

        - `"digits"`: the 1797 digits of scikit-learn, enlarged by bilinear interpolation. All
          channels are the same.
        - `"cifar10"` or `"cifar100"` (100 fine classes): the binary version as published.
        - a `pathlib.Path`: a folder with one subfolder of images for each class, as in
          `torchvision.datasets.ImageFolder`. Classes are numbered by name and take turns. Images
          of other sizes are resized.
    num_samples
        How many images to return; all by default.
    train
        `False` reads the test images of CIFAR. The other sources have one part only.
    label_noise
        Fraction of wrong labels, exactly round(label_noise · N) of N. Each is drawn from the other
        classes with equal probability.
    dtype
        Of the inputs.
    root
        Where CIFAR lies: by default the environment variable HESSTHEORY_DATA, or else
        ~/.cache/hesstheory. Either of two forms will do:

        - the folder cifar-10-batches-bin or cifar-100-binary. Size and SHA-1 of each file that is
          read are verified.
        - the archive cifar-10-binary.tar.gz or cifar-100-binary.tar.gz. Its MD5 is verified, and it
          is not unpacked on disk.

        torchvision's own folder (cifar-10-batches-py) holds pickle files, which are not read.
    generator
        Of the wrong labels; needed only for these.

    Returns
    -------
    Data
        Inputs (N × 3 × 32 × 32) and classes (N).

    Raises
    ------
    FileNotFoundError
        Files are missing; the message says which to put where.
    KeyError
        No data set has this name.
    ValueError
        A file is damaged, or an argument is out of range.

    Examples
    --------
    >>> from hesstheory import zoo
    >>> inputs, targets = zoo.images("digits", num_samples=3)
    >>> inputs.shape, targets.tolist()
    (torch.Size([3, 3, 32, 32]), [0, 1, 2])
    """
    _check_noise(label_noise, generator)
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


def _check_noise(label_noise: float, generator: torch.Generator | None) -> None:
    """Raises ValueError unless the fraction is one and can be drawn."""
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise is {label_noise}: pass the fraction of wrong labels, 0 to 1")
    if label_noise > 0 and generator is None:
        raise ValueError(
            "label_noise needs a generator: pass generator=torch.Generator().manual_seed(...)"
        )


def _replace_labels(
    targets: Int64[Tensor, " samples"], count: int, num_classes: int, generator: torch.Generator
) -> None:
    """Wrong labels for `count` random samples, in place."""
    wrong = torch.randperm(len(targets), generator=generator)[:count]
    shift = torch.randint(1, num_classes, (count,), generator=generator)
    targets[wrong] = (targets[wrong] + shift) % num_classes


def _pictures(source: str | Path, train: bool, root: str | Path | None) -> Pictures:
    """All images of a data set or a folder, as they are stored."""
    if isinstance(source, str) and source in CIFAR:
        return read_cifar(source, train, _data_root(root))
    if isinstance(source, str) and source not in IMAGE_SETS:
        known = ", ".join(map(repr, IMAGE_SETS))
        raise KeyError(
            f"no images {source!r}: pass {known}, or the pathlib.Path of a folder of class folders"
        )
    if not train:
        raise ValueError(f"{source} has no test part: split images({source!r}) into two")
    return read_folder(source) if isinstance(source, Path) else _enlarged_digits()


def _data_root(root: str | Path | None) -> Path:
    """The folder of the data sets: the argument, the environment's, or the user's cache."""
    return Path(root or os.environ.get("HESSTHEORY_DATA") or "~/.cache/hesstheory").expanduser()


@lru_cache
def _enlarged_digits() -> Pictures:
    """The digits, enlarged from 8 × 8 pixels; they stay from 0 to 16."""
    vectors, labels = stored_digits(10)
    small = torch.tensor(vectors).view(-1, 1, 8, 8)
    pixels = F.interpolate(small, size=SIDE, mode="bilinear")
    return Pictures(pixels, torch.tensor(labels), 10, pixels.mean(), pixels.std(correction=0))
