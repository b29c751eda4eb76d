"""Distributions of probes with E z zᵀ = I."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from hesstheory import theory


@runtime_checkable
class Probe(Protocol):
    """A distribution of z ∈ R^P with E z zᵀ = I.

    Two optional attributes, true where absent: `independent_entries` says whether the entries of
    one probe are independent, `independent_probes` whether the probes of one draw are. The variance
    T2 of one probe needs the first, the standard error of a mean needs the second.
    """

    def kurtosis(self, num_params: int) -> float:
        """Fourth moment κ = E z_i⁴ of one entry."""
        ...

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        """Draws K probes in float64 on the generator's device."""
        ...


def independent_entries(probe: Probe) -> bool:
    """Whether the entries of one probe are independent of one another."""
    return bool(getattr(probe, "independent_entries", True))


def independent_probes(probe: Probe) -> bool:
    """Whether the probes of one draw are independent of one another."""
    return bool(getattr(probe, "independent_probes", True))


@dataclass(frozen=True)
class Rademacher:
    """Independent fair signs, κ = 1 (Hutchinson 1990).

    Examples
    --------
    >>> import torch
    >>> from hesstheory import Rademacher
    >>> Z = Rademacher().sample(5, 3, torch.Generator().manual_seed(0))
    >>> tuple(Z.shape), Z.abs().unique().tolist()
    ((5, 3), [1.0])
    """

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
        # Eight signs from every random byte, by table. Drawn one by one they would cost as much
        # as a product.
        size = (num_probes, -(-num_params // 8))
        octets = torch.randint(
            256, size, generator=generator, device=generator.device, dtype=torch.int32
        )
        table = walsh(torch.arange(256), 2 ** torch.arange(8))
        # Eight int8 signs are read and copied as one int64.
        eight = table.to(generator.device, torch.int8).view(torch.int64)
        packed = eight.flatten().index_select(0, octets.flatten()).reshape(size)
        return packed.view(torch.int8)[:, :num_params].mT


@dataclass(frozen=True)
class Gaussian:
    """Independent standard normals, κ = 3.

    Examples
    --------
    >>> from hesstheory import Gaussian
    >>> Gaussian().kurtosis(num_params=10)
    3.0
    """

    def kurtosis(self, num_params: int) -> float:
        return 3.0

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        return _normal(num_probes, num_params, generator).mT


@dataclass(frozen=True)
class Uniform:
    """Independent uniform entries on [−√3, √3], κ = 9/5.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import Uniform
    >>> Z = Uniform().sample(5, 3, torch.Generator().manual_seed(0))
    >>> bool((Z.abs() <= 3**0.5).all())
    True
    """

    def kurtosis(self, num_params: int) -> float:
        return 9 / 5

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        unit = _unit(num_probes, num_params, generator)
        return (math.sqrt(3) * (2 * unit - 1)).mT


@dataclass(frozen=True)
class Sphere:
    """Uniform on the sphere of radius √P; entries are uncorrelated but dependent, κ = 3P/(P+2).

    Its variance is claim T5.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import Sphere
    >>> z = Sphere().sample(9, 1, torch.Generator().manual_seed(0))
    >>> round(float(z.norm()), 6)
    3.0
    """

    independent_entries: ClassVar[bool] = False

    def kurtosis(self, num_params: int) -> float:
        return 3 * num_params / (num_params + 2)

    def variance_from_norms(
        self, squared_norm: float, trace: float, cross_squares: float, num_params: int
    ) -> float:
        """Variance of one probe on block l from ‖H_ll‖², tr H_ll, Σ_{m≠l}‖H_lm‖² and P (T5)."""
        law = theory.sphere_variance_from_norms(squared_norm, trace, cross_squares, num_params)
        return float(law)

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        g = _normal(num_probes, num_params, generator)
        return torch.nn.functional.normalize(g, dim=1).mul(math.sqrt(num_params)).mT


@dataclass(frozen=True)
class SparseSigns:
    """Independent entries: ±1/√s with probability s/2 each, else 0 (Achlioptas 2003).

    Parameters
    ----------
    density
        The share s of non-zero entries, in (0, 1]; κ = 1/s.

    Examples
    --------
    >>> from hesstheory import SparseSigns
    >>> SparseSigns(density=0.25).kurtosis(num_params=10)
    4.0
    """

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
        unit = _unit(num_probes, num_params, generator)
        signs = torch.where(unit < self.density / 2, -1.0, 1.0)
        return torch.where(unit < self.density, signs.double() / math.sqrt(self.density), 0.0).mT


@dataclass(frozen=True)
class HadamardColumns:
    """Columns of a Hadamard matrix without replacement, rows flipped by random signs.

    Each column by itself is Rademacher. All of them together average zzᵀ to the identity exactly.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import HadamardColumns
    >>> Z = HadamardColumns().sample(3, 4, torch.Generator().manual_seed(0))
    >>> (Z @ Z.mT / 4).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    independent_probes: ClassVar[bool] = False

    def kurtosis(self, num_params: int) -> float:
        return 1.0

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        order = power_of_two(num_params)
        if num_probes > order:
            raise ValueError(
                f"{num_probes} probes, but the Hadamard matrix has {order} columns: ask for at "
                f"most {order}"
            )
        columns = torch.randperm(order, generator=generator, device=generator.device)[:num_probes]
        rows = torch.arange(num_params, device=generator.device)
        flips = Rademacher().sample(num_params, 1, generator)
        return flips * walsh(rows, columns)


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Standard normals in float64 on the generator's device."""
    return torch.randn(
        rows, columns, generator=generator, device=generator.device, dtype=torch.float64
    )


def _unit(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), in float64 on the generator's device."""
    return torch.rand(
        rows, columns, generator=generator, device=generator.device, dtype=torch.float64
    )


def power_of_two(minimum: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << max(minimum - 1, 0).bit_length()


def walsh(rows: Tensor, columns: Tensor) -> Float[Tensor, "rows columns"]:
    """Entries (−1)^⟨row, column⟩ of the Sylvester-Hadamard matrix, numbers read as bit vectors."""
    parity = rows[:, None] & columns[None, :]
    # Folding 64 bits in half six times leaves the parity of all of them in the last one.
    for shift in (32, 16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return 1.0 - 2.0 * (parity & 1).double()
