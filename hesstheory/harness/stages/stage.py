"""What a stage is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesstheory.evidence.checks import Check
from hesstheory.harness.subject import Subject

# What a finished stage left behind, as its JSON file holds it.
Found = dict[str, Any]
ByLayer = dict[str, float]


@dataclass
class Stage:
    """What a stage found: numbers by name and layer, checks, seconds, and whatever else."""

    layers: dict[str, ByLayer] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    found: Found = field(default_factory=dict)


# A stage; the mapping holds the stages before it by name.
Measurement = Callable[[Subject, Mapping[str, Found]], Stage]


def by_layer(subject: Subject, values: Tensor) -> ByLayer:
    """Numbers of all layers, by their names."""
    blocks = subject.problem.partition.blocks
    return {block: float(x) for block, x in zip(blocks, values, strict=True)}


def vector(of_layer: Mapping[str, float]) -> Tensor:
    """Numbers of all layers, in their order."""
    return torch.tensor(list(of_layer.values()), dtype=torch.float64)


def samples_of(before: Mapping[str, Found], stage: str) -> Tensor:
    """The table of a stage before: a row for each probe or image, a column for each layer."""
    return torch.tensor(before[stage]["found"]["samples"], dtype=torch.float64)
