"""Distributions of probes with E z zᵀ = I."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from hesstheory.curvature.matrix import Curvature, hessian
from hesstheory.problem.risk import Problem


@runtime_checkable
class Probe(Protocol):
    """A distribution of z ∈ R^P with E z zᵀ = I."""

    def kurtosis(self, num_params: int) -> float:
        """Fourth moment κ = E z_i⁴ of one entry."""
        ...

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        """Draws K probes in float64 on the generator's device."""
        ...


@dataclass(frozen=True)
class Rademacher:
    """Independent fair signs, κ = 1 (Hutchinson 1990)."""

    def kurtosis(self, num_params: int) -> float:
        return 1.0

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        return self.signs(num_params, num_probes, generator).double()

    def signs(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Int8[Tensor, "params probes"]:
        """The same draws in an eighth of the memory."""
        # Eight signs from every random byte, by table: drawing one by one would cost as much as a product.
        size = (num_probes, -(-num_params // 8))
        octets = torch.randint(
            256, size, generator=generator, device=generator.device, dtype=torch.int32
        )
        eight = (
            walsh(torch.arange(256), 2 ** torch.arange(8))
            .to(generator.device, torch.int8)
            .view(torch.int64)
        )
        packed = eight.flatten().index_select(0, octets.flatten()).reshape(size)
        return packed.view(torch.int8)[:, :num_params].mT


@dataclass(frozen=True)
class Gaussian:
    """Independent standard normals, κ = 3."""

    def kurtosis(self, num_params: int) -> float:
        return 3.0

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        return _normal(num_probes, num_params, generator).mT


@dataclass(frozen=True)
class Uniform:
    """Independent uniform entries on [−√3, √3], κ = 9/5."""

    def kurtosis(self, num_params: int) -> float:
        return 9 / 5

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        unit = torch.rand(
            num_probes,
            num_params,
            generator=generator,
            device=generator.device,
            dtype=torch.float64,
        )
        return (math.sqrt(3) * (2 * unit - 1)).mT


@dataclass(frozen=True)
class Sphere:
    """Uniform on the sphere of radius √P; entries are uncorrelated but dependent, κ = 3P/(P+2)."""

    def kurtosis(self, num_params: int) -> float:
        return 3 * num_params / (num_params + 2)

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        g = _normal(num_probes, num_params, generator)
        return torch.nn.functional.normalize(g, dim=1).mul(math.sqrt(num_params)).mT


@dataclass(frozen=True)
class SparseSigns:
    """Independent entries, ±1/√s with probability s/2 each and 0 else; κ = 1/s for density s (Achlioptas 2003)."""

    density: float

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(
                f"density is {self.density}: pass the share of non-zero entries, in (0, 1]"
            )

    def kurtosis(self, num_params: int) -> float:
        return 1 / self.density

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        unit = torch.rand(
            num_probes,
            num_params,
            generator=generator,
            device=generator.device,
            dtype=torch.float64,
        )
        signs = torch.where(unit < self.density / 2, -1.0, 1.0)
        return torch.where(unit < self.density, signs.double() / math.sqrt(self.density), 0.0).mT


@dataclass(frozen=True)
class HadamardColumns:
    """Columns of a Hadamard matrix drawn without replacement, rows flipped by random signs; each column is Rademacher.

    All of them together average zzᵀ to the identity exactly.
    """

    def kurtosis(self, num_params: int) -> float:
        return 1.0

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        order = power_of_two(num_params)
        if num_probes > order:
            raise ValueError(
                f"{num_probes} probes, but the Hadamard matrix has {order} columns: ask for at most {order}"
            )
        columns = torch.randperm(order, generator=generator, device=generator.device)[:num_probes]
        rows = torch.arange(num_params, device=generator.device)
        flips = Rademacher().sample(num_params, 1, generator)
        return flips * walsh(rows, columns)


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(
        rows, columns, generator=generator, device=generator.device, dtype=torch.float64
    )


def power_of_two(minimum: int) -> int:
    return 1 << max(minimum - 1, 0).bit_length()


def walsh(rows: Tensor, columns: Tensor) -> Float[Tensor, "rows columns"]:
    """Entries (−1)^⟨row, column⟩ of the Sylvester-Hadamard matrix, the numbers read as bit vectors."""
    parity = rows[:, None] & columns[None, :]
    for shift in (32, 16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return 1.0 - 2.0 * (parity & 1).double()


def sampler(
    probe: Probe, problem: Problem, generator: torch.Generator | None
) -> Callable[[int], Tensor]:
    """Draws probes on the device and in the dtype of the model."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            "pass a torch.Generator (torch.Generator().manual_seed(...)), or probes= where an estimator takes them: no "
            "global randomness"
        )
    return lambda count: (
        probe.sample(problem.num_params, count, generator).to(problem.dtype).to(problem.device)
    )


def check_num_probes(num_probes: int, name: str = "num_probes") -> None:
    """Raises ValueError unless it is a whole number of at least 1."""
    if (
        isinstance(num_probes, bool)
        or not isinstance(num_probes, int | np.integer)
        or num_probes < 1
    ):
        raise ValueError(f"{name} is {num_probes!r}: pass a whole number of at least 1")


def check_choices(probe: Any, matrix: Any = hessian) -> None:
    """Raises TypeError unless they are a probe, not its class, and a function that makes a matrix of a problem."""
    if isinstance(probe, type):
        raise TypeError(
            f"probe is the class {probe.__name__}: pass an instance, {probe.__name__}()"
        )
    if not isinstance(probe, Probe):
        raise TypeError(
            f"probe is a {type(probe).__name__}: pass one with kurtosis and sample, such as Rademacher()"
        )
    if isinstance(matrix, Curvature) or not callable(matrix):
        raise TypeError(
            f"matrix is {matrix!r}: pass a function of a problem, hesstheory.hessian or hesstheory.ggn"
        )
