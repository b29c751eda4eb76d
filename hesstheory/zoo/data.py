"""Real data for small networks: the digits of scikit-learn as vectors, rows and images."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor


class Data(NamedTuple):
    """Inputs and targets, samples along axis 0."""

    inputs: Tensor
    targets: Tensor


def digits(
    num_features: int | None = None,
    num_classes: int = 10,
    num_samples: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """The handwritten digits of scikit-learn as vectors.

    Pixels are centred and divided by one common standard deviation.
    Each principal component has variance one.
    Both are taken over all images of the first `num_classes` classes.

    Parameters
    ----------
    num_features
        How many principal components to return, from the first; all 64 pixels by default.
    num_classes
        Digits below this number are returned, 2 to 10.
    num_samples
        How many images to return, in the order of the file; all by default.
    dtype
        Of the inputs.

    Returns
    -------
    Data
        Inputs (N × 64 or N × num_features), and the digits as targets (N).

    Raises
    ------
    ValueError
        There are not so many components, classes or images.

    Examples
    --------
    >>> from hesstheory import zoo
    >>> inputs, targets = zoo.digits(num_features=4, num_classes=3, num_samples=5)
    >>> inputs.shape, targets.tolist()
    (torch.Size([5, 4]), [0, 1, 2, 0, 1])
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
    """The pixels of `digits` as images of one channel, N × 1 × 8 × 8.

    Examples
    --------
    >>> from hesstheory import zoo
    >>> zoo.digit_images(num_samples=5).inputs.shape
    torch.Size([5, 1, 8, 8])
    """
    return _data(_pixels(num_classes).reshape(-1, 1, 8, 8), num_classes, num_samples, dtype)


def digit_rows(
    num_classes: int = 10, num_samples: int | None = None, dtype: torch.dtype = torch.float64
) -> Data:
    """The pixels of `digits` as sequences of eight rows, N × 8 × 8; axis 1 is the step or token.

    Examples
    --------
    >>> from hesstheory import zoo
    >>> zoo.digit_rows(num_samples=5).inputs.shape
    torch.Size([5, 8, 8])
    """
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


@lru_cache
def stored_digits(
    num_classes: int,
) -> tuple[Float64[ndarray, "images 64"], Int64[ndarray, " images"]]:
    """Pixels from 0 to 16 and classes of the first digits, as scikit-learn stores them.

    The arrays are shared by all callers: do not change them.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    if not 2 <= num_classes <= 10:
        raise ValueError(f"num_classes is {num_classes}: the digits have 2 to 10 classes")
    pixels, labels = load_digits(n_class=num_classes, return_X_y=True)
    return np.asarray(pixels, dtype=np.float64), np.asarray(labels, dtype=np.int64)


def _data(inputs: ndarray, num_classes: int, num_samples: int | None, dtype: torch.dtype) -> Data:
    """The first samples as fresh tensors, with their labels."""
    if num_samples is not None and not 1 <= num_samples <= len(inputs):
        raise ValueError(
            f"num_samples is {num_samples}: "
            f"the first {num_classes} digits have 1 to {len(inputs)} images"
        )
    _, labels = stored_digits(num_classes)
    return Data(torch.tensor(inputs[:num_samples], dtype=dtype), torch.tensor(labels[:num_samples]))


@lru_cache
def _pixels(num_classes: int) -> Float64[ndarray, "images 64"]:
    """Centred pixels over their common standard deviation."""
    pixels, _ = stored_digits(num_classes)
    centred = pixels - pixels.mean(axis=0)
    scaled: ndarray = centred / centred.std()
    return scaled


@lru_cache
def _principal_components(num_classes: int) -> Float64[ndarray, "images components"]:
    """Scores of unit variance; constant directions are left out."""
    U, s, Vt = np.linalg.svd(_pixels(num_classes), full_matrices=False)
    # The sign of a singular vector is free: make the largest entry of every direction positive.
    largest = np.take_along_axis(Vt, np.abs(Vt).argmax(axis=1, keepdims=True), axis=1)
    # NumPy's own threshold in `matrix_rank`.
    rank = int((s > s[0] * len(U) * np.finfo(s.dtype).eps).sum())
    scores: ndarray = (U * np.sign(largest[:, 0]))[:, :rank] * math.sqrt(len(U))
    return scores
