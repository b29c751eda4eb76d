"""Numbers that are the same on every machine.

All are small multiples of powers of two from an integer hash. Every machine builds the same
problem, and float32 holds it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

# Of the finaliser of splitmix64: increment, two multipliers and three shifts (Steele, Lea and Flood
# 2014, figure 17). The integers of a grid are the outputs of this generator for the states 1, 2, …
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
# Any odd number sets the streams of different seeds apart. This one is fixed for good, since the
# certified traces depend on it.
_SEED_STRIDE = 0x632BE5AB
# Buffers draw from seeds so far above those of the parameters: no model here has as many of those.
_SEED_OF_BUFFERS = 50


def grid(shape: Sequence[int], seed: int, most: int = 8, step: float = 0.125) -> Tensor:
    """Multiples of `step` from −most to most, spread evenly by a hash of seed and place."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):  # arithmetic modulo 2⁶⁴ is meant
        x = np.arange(1, count + 1, dtype=np.uint64) * _INCREMENT
        x = x + np.uint64(seed * _SEED_STRIDE + 1)
        x = (x ^ (x >> _SHIFTS[0])) * _FIRST_MULTIPLIER
        x = (x ^ (x >> _SHIFTS[1])) * _SECOND_MULTIPLIER
        x = x ^ (x >> _SHIFTS[2])
    whole = (x % np.uint64(2 * most + 1)).astype(np.int64) - most
    return torch.tensor(whole * step, dtype=torch.float64).reshape(tuple(shape))


@torch.no_grad()
def set_parameters(model: nn.Module, seed: int, step: float = 0.125) -> nn.Module:
    """The model in eval mode, its parameters on the grid and its running variances around 1.5."""
    for number, parameter in enumerate(model.parameters()):
        parameter.copy_(grid(parameter.shape, seed + number, step=step))
    for number, (name, buffer) in enumerate(model.named_buffers()):
        drawn = grid(buffer.shape, seed + _SEED_OF_BUFFERS + number)
        if name.endswith("running_var"):
            buffer.copy_(1.5 + drawn)
        elif name.endswith("running_mean"):
            buffer.copy_(drawn)
    return model.eval()


def ends_of(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where each batch of these sizes ends, and its size."""
    return list(zip(accumulate(sizes), sizes, strict=True))
