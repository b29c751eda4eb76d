"""Full-scale networks with few channels, and inputs of theirs."""

from __future__ import annotations

import torch
from builders import stream

from hesstheory import zoo

NUM_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
HEADS = {"resnet18": "fc", "resnet34": "fc", "vgg11": "classifier"}


def noise(*shape, seed=9, dtype=torch.float64):
    """Standard normal inputs, the same at every call."""
    return torch.randn(shape, generator=stream(seed), dtype=dtype)


def narrow(name, *, width=2, **options):
    """A full-scale network with few channels."""
    return zoo.FULL_SCALE[name](width=width, dtype=torch.float64, generator=stream(), **options)
