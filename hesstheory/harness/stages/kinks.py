"""Units that rounding switches on or off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory.harness.stages.stage import Found, Stage
from hesstheory.harness.subject import Subject
from hesstheory.problem.risk import Problem


def kinks(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """How many units rounding switches: in float32 beside float64, and in samples taken alone.

    Each of them changes the matrix by its share of its layer, whatever the digits of the dtype.
    """
    single = subject.problem.dtype != torch.float64
    switched = list(_switched(subject)) if single else []
    flipped = sum(wrong for wrong, _ in switched)
    share = max((wrong / units for wrong, units in switched), default=0.0)
    # Half the digits for rounding. Units that flip independently change a product, relatively, by
    # the root of their share; four times that.
    tolerance = torch.finfo(subject.problem.dtype).eps ** 0.5 + 4 * math.sqrt(share)
    units = sum(units for _, units in switched)
    return Stage(found={"units": units, "flipped": flipped, "tolerance": tolerance})


def _switched(subject: Subject) -> Iterator[tuple[int, int]]:
    """Of every layer how many units differ from float64, and how many there are."""
    problem = subject.problem
    reference = subject.halving(_switches, problem.double())
    for way in (problem, problem.rebatched(1)):
        for low, high in zip(subject.halving(_switches, way), reference, strict=True):
            yield int((low != high).sum()), low.numel()


def _switches(problem: Problem) -> list[Tensor]:
    """Which units of every ReLU are on, and which inputs every maximum takes."""
    modules = [m for m in problem.model.modules() if isinstance(m, nn.ReLU | nn.MaxPool2d)]
    found: list[list[Tensor]] = [[] for _ in modules]

    def record(number: int, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, nn.MaxPool2d):
            _, out = F.max_pool2d(args[0], module.kernel_size, module.stride, return_indices=True)
            found[number].append(out.cpu())
        else:
            found[number].append((out > 0).cpu())

    handles = [m.register_forward_hook(partial(record, number)) for number, m in enumerate(modules)]
    try:
        with torch.no_grad():
            for batch in problem.batches:
                problem.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts) for parts in found]
