"""Hessians to order, at the cost of a few vector operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hesstheory.conformance.problems.numbers import ends_of, grid
from hesstheory.problem.risk import Problem
from hesstheory.zoo.prescribed import Block, mean_output


class Springs(nn.Module):
    """Per sample ½ Σ_i d_i θ_i² + Σ_s Σ_i e_si θ_i θ_{i+s}, i + s modulo P.

    H = diag(d) + springs of every reach s. Inputs are n×(1+S)×P: d, then the springs of each reach.
    `quartic` · Σ_i (θ_i − rest_i)⁴ has Hessian zero where the problem is posed. It shows
    differences of gradients that are taken with coarse steps.
    """

    def __init__(
        self, theta: Tensor, sizes: Mapping[str, int], reaches: Sequence[int], quartic: float = 0.0
    ) -> None:
        super().__init__()
        self.reaches = tuple(reaches)
        self.quartic = quartic
        self.rest = theta.clone()
        for name, part in zip(sizes, torch.split(theta, list(sizes.values())), strict=True):
            self.add_module(name, Block(part))

    def forward(self, springs: Tensor) -> Tensor:
        theta = torch.cat([block.theta for block in self.children() if isinstance(block, Block)])
        energy = 0.5 * (springs[:, 0] @ (theta * theta))
        for number, reach in enumerate(self.reaches, 1):
            energy = energy + springs[:, number] @ (theta * theta.roll(-reach))
        return energy + self.quartic * (theta - self.rest).pow(4).sum() if self.quartic else energy


def spring_hessian(problem: Problem) -> Tensor:
    """H of a problem of springs, entry by entry.

    Raises
    ------
    TypeError
        The model of the problem is not `Springs`.
    """
    model = problem.model
    if not isinstance(model, Springs):
        raise TypeError(f"the model is a {type(model).__name__}: pass a problem of Springs")
    springs = torch.cat([inputs for inputs, _ in problem.batches]).double().mean(0)
    P = springs.shape[1]
    H = torch.diag(springs[0])
    i = torch.arange(P)
    for number, reach in enumerate(model.reaches, 1):
        j = (i + reach) % P
        H.index_put_((i, j), springs[number], accumulate=True)
        H.index_put_((j, i), springs[number], accumulate=True)
    return H


def _springs(
    sizes: Mapping[str, int],
    diagonal: Tensor,
    springs: Tensor,
    reaches: Sequence[int],
    batch_sizes: Sequence[int],
    dtype: torch.dtype = torch.float64,
    quartic: float = 0.0,
) -> Problem:
    """A problem of n samples: `diagonal` is n×P, `springs` n×S×P."""
    inputs = torch.cat([diagonal[:, None], springs], 1).to(dtype)
    theta = grid([sum(sizes.values())], 7).to(dtype)
    targets = torch.zeros(sum(batch_sizes), dtype=dtype)
    spans = [slice(end - size, end) for end, size in ends_of(batch_sizes)]
    batches = [(inputs[span], targets[span]) for span in spans]
    return Problem(Springs(theta, sizes, reaches, quartic), mean_output, batches)


def _level(sizes: Mapping[str, int], means: Sequence[float]) -> Tensor:
    """The mean curvature of every parameter, constant in each block."""
    parts = zip(sizes.values(), means, strict=True)
    return torch.cat([torch.full((size,), mean, dtype=torch.float64) for size, mean in parts])


def flat(dtype: torch.dtype = torch.float64) -> Problem:
    """Three blocks of 256 parameters whose curvatures are nearly equal.

    The standard error of one probe is 9 % of a trace.
    """
    sizes = {"first": 256, "second": 256, "third": 256}
    diagonal = _level(sizes, (2.0, 3.0, 4.0)) + grid([4, 768], 11, most=4)
    springs = grid([4, 2, 768], 12, most=4, step=1 / 32)
    # The quartic moves central differences over steps of 0.05 by 4·64·0.05² = 0.64, far beyond 1 %.
    return _springs(sizes, diagonal, springs, (1, 256), (2, 2), dtype, quartic=64.0)


def flat_in_single_precision() -> Problem:
    """The same in float32."""
    return flat(torch.float32)


def ragged() -> Problem:
    """33 samples as 32 + 1, the last one of three times the curvature and the other sign."""
    sizes = {"left": 96, "right": 96}
    level = torch.full((33, 192), 2.0, dtype=torch.float64)
    level[32] = -6.0
    diagonal = level + grid([33, 192], 21, most=4)
    return _springs(sizes, diagonal, grid([33, 1, 192], 22, most=2), (1,), (32, 1))


def negative() -> Problem:
    """One block of negative trace and one of positive trace that together are negative."""
    sizes = {"hill": 96, "valley": 48}
    diagonal = _level(sizes, (-3.0, 2.0)) + grid([6, 144], 31, most=4)
    return _springs(sizes, diagonal, grid([6, 1, 144], 32, most=4), (1,), (4, 2))


def unequal() -> Problem:
    """Blocks of 1, 3, 40 and 160 parameters with mean curvatures 16, −8, 2 and 1.

    One name begins another.
    """
    sizes = {"scalar": 1, "small": 3, "smaller": 40, "large": 160}
    diagonal = _level(sizes, (16.0, -8.0, 2.0, 1.0)) + grid([4, 204], 41, most=2)
    return _springs(sizes, diagonal, grid([4, 1, 204], 42, most=1), (1,), (3, 1))


def coupled() -> Problem:
    """Two blocks whose cross block outweighs their own.

    Entry i of one is tied to entry i of the other.
    """
    sizes = {"upper": 64, "lower": 64}
    springs = torch.stack([grid([4, 128], 51, most=2), 0.75 + grid([4, 128], 52, most=2)], 1)
    diagonal = _level(sizes, (2.0, 3.0)) + grid([4, 128], 53, most=4)
    return _springs(sizes, diagonal, springs, (1, 64), (2, 2))
