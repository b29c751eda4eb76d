"""Images as they are stored, and folders of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray
from torch import Tensor

SIDE = 32  # pixels, of the images of CIFAR, and so of all images here

# As in torchvision's ImageFolder.
_IMAGE_FILES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Pictures:
    """Stored images, with the mean and deviation of all channels or of each."""

    pixels: Tensor
    labels: Int64[Tensor, " images"]
    num_classes: int
    mean: Tensor
    std: Tensor


def read_folder(path: Path) -> Pictures:
    """All images of a folder of class folders, resized to 32 × 32 pixels; classes take turns."""
    classes = _class_folders(path)
    files = [_images_in(child) for child in classes]
    if empty := [child.name for child, found in zip(classes, files, strict=True) if not found]:
        raise FileNotFoundError(
            f"no images in {', '.join(empty)} of {path}: fill or remove these subfolders"
        )
    # Classes take turns, so that the first images are not all of one class.
    turns = sorted((turn, label) for label, found in enumerate(files) for turn in range(len(found)))
    pixels = torch.from_numpy(np.stack([_picture(files[label][turn]) for turn, label in turns]))
    mean = pixels.double().mean((0, 2, 3))
    std = pixels.double().std((0, 2, 3), correction=0)
    std = torch.where(std > 0, std, 1.0)  # a channel that is the same everywhere becomes zero
    labels = torch.tensor([label for _, label in turns])
    return Pictures(pixels, labels, len(classes), mean.view(3, 1, 1), std.view(3, 1, 1))


def _class_folders(path: Path) -> list[Path]:
    """The subfolders by name; raises unless there are two."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is no folder: pass one with a subfolder of images for each class"
        )
    classes = sorted(child for child in path.iterdir() if child.is_dir())
    if len(classes) < 2:
        raise ValueError(
            f"{path} has {len(classes)} subfolders: "
            "it needs one of images for each of two or more classes"
        )
    return classes


def _images_in(folder: Path) -> list[Path]:
    """All image files below a folder, by name."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGE_FILES)


def _picture(file: Path) -> UInt8[ndarray, "3 32 32"]:
    """One image, in three channels of 32 × 32 pixels."""
    from PIL import Image  # comes with matplotlib

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise ValueError(
            f"{file} is damaged or no image ({error}): replace or remove it"
        ) from error
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)
