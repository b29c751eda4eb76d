"""How the trace is measured: probe distributions that carry their fourth moment, and layer-wise estimators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from hesstheory.curvature import Curvature, check_fits, hessian
from hesstheory.problem import Problem

if TYPE_CHECKING:
    import pandas as pd

_BASIS_COPIES = 7  # of P × rank numbers that Hutch++ and XTrace hold at most: probes, products, their bases, a product
_GROUP_ELEMENTS = 2**28  # entries of the probes held at once: a machine-independent choice, so that draws do not move


# --- probes ---------------------------------------------------------------------------------------------------------


@runtime_checkable
class Probe(Protocol):
    """A distribution of z ∈ R^P with E z zᵀ = I."""

    def kurtosis(self, num_params: int) -> float:
        """Fourth moment κ = E z_i⁴ of one entry."""
        ...

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Float[Tensor, "params probes"]:
        """Draws K probes in float64 on the generator's device."""
        ...


@dataclass(frozen=True)
class Rademacher:
    """Independent fair signs, κ = 1 (Hutchinson 1990)."""

    def kurtosis(self, num_params: int) -> float:
        return 1.0

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Float[Tensor, "params probes"]:
        return self.signs(num_params, num_probes, generator).double()

    def signs(self, num_params: int, num_probes: int, generator: torch.Generator) -> Int8[Tensor, "params probes"]:
        """The same draws in an eighth of the memory."""
        # Eight signs from every random byte, by table: drawing one by one would cost as much as a product.
        size = (num_probes, -(-num_params // 8))
        octets = torch.randint(256, size, generator=generator, device=generator.device, dtype=torch.int32)
        eight = _walsh(torch.arange(256), 2 ** torch.arange(8)).to(generator.device, torch.int8).view(torch.int64)
        packed = eight.flatten().index_select(0, octets.flatten()).reshape(size)
        return packed.view(torch.int8)[:, :num_params].mT


@dataclass(frozen=True)
class Gaussian:
    """Independent standard normals, κ = 3."""

    def kurtosis(self, num_params: int) -> float:
        return 3.0

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Float[Tensor, "params probes"]:
        return _normal(num_probes, num_params, generator).mT


@dataclass(frozen=True)
class Uniform:
    """Independent uniform entries on [−√3, √3], κ = 9/5."""

    def kurtosis(self, num_params: int) -> float:
        return 9 / 5

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Float[Tensor, "params probes"]:
        unit = torch.rand(num_probes, num_params, generator=generator, device=generator.device, dtype=torch.float64)
        return (math.sqrt(3) * (2 * unit - 1)).mT


@dataclass(frozen=True)
class Sphere:
    """Uniform on the sphere of radius √P; entries are uncorrelated but dependent, κ = 3P/(P+2)."""

    def kurtosis(self, num_params: int) -> float:
        return 3 * num_params / (num_params + 2)

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Float[Tensor, "params probes"]:
        g = _normal(num_probes, num_params, generator)
        return torch.nn.functional.normalize(g, dim=1).mul(math.sqrt(num_params)).mT


@dataclass(frozen=True)
class SparseSigns:
    """Independent entries, ±1/√s with probability s/2 each and 0 else; κ = 1/s for density s (Achlioptas 2003)."""

    density: float

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}: pass the share of non-zero entries, in (0, 1]")

    def kurtosis(self, num_params: int) -> float:
        return 1 / self.density

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Float[Tensor, "params probes"]:
        unit = torch.rand(num_probes, num_params, generator=generator, device=generator.device, dtype=torch.float64)
        signs = torch.where(unit < self.density / 2, -1.0, 1.0)
        return torch.where(unit < self.density, signs.double() / math.sqrt(self.density), 0.0).mT


@dataclass(frozen=True)
class HadamardColumns:
    """Columns of a Hadamard matrix drawn without replacement, rows flipped by random signs; each column is Rademacher.

    All of them together average zzᵀ to the identity exactly.
    """

    def kurtosis(self, num_params: int) -> float:
        return 1.0

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Float[Tensor, "params probes"]:
        order = _power_of_two(num_params)
        if num_probes > order:
            raise ValueError(
                f"{num_probes} probes, but the Hadamard matrix has {order} columns: ask for at most {order}"
            )
        columns = torch.randperm(order, generator=generator, device=generator.device)[:num_probes]
        rows = torch.arange(num_params, device=generator.device)
        flips = Rademacher().sample(num_params, 1, generator)
        return flips * _walsh(rows, columns)


def hadamard_columns(num_params: int) -> Float[Tensor, "params probes"]:
    """All columns of the Sylvester-Hadamard matrix cut to P rows: the mean of zzᵀ is I, that of q_l tr H_ll."""
    order = _power_of_two(num_params)
    return _walsh(torch.arange(num_params), torch.arange(order))


def all_signs(num_params: int) -> Float[Tensor, "params probes"]:
    """All 2^P sign vectors, P ≤ 16: every moment of the Rademacher distribution, exactly."""
    if num_params > 16:
        raise ValueError(f"2^{num_params} sign vectors are too many: use strength_four_signs, which need about P²")
    return _walsh(2 ** torch.arange(num_params), torch.arange(2**num_params))


def strength_four_signs(num_params: int) -> Float[Tensor, "params probes"]:
    """4^m sign vectors, P < 2^m, any four entries of which are independent: exact Rademacher mean AND variance.

    Row x of the array is the linear function c ↦ ⟨(x, x³), c⟩ over GF(2): the columns (x, x³), x ∈ GF(2^m)∖{0}, are the
    parity checks of the double-error-correcting BCH code of distance 5, so any four are linearly independent (Bose and
    Ray-Chaudhuri 1960; orthogonal array of strength 4).
    """
    m = num_params.bit_length()
    if m > 10:
        raise ValueError(f"{num_params} parameters need 4^{m} sign vectors: enumerate problems below 1024 parameters")
    rows = torch.tensor([(x << m) | _cube(x, m) for x in range(1, num_params + 1)])
    return _walsh(rows, torch.arange(4**m))


def three_point_grid(
    num_params: int, kurtosis: float
) -> tuple[Float[Tensor, "params probes"], Float[Tensor, " probes"]]:
    """All 3^P vectors over {−√κ, 0, √κ} with their probabilities: exact moments up to order five for any κ ≥ 1.

    One entry is ±√κ with probability 1/(2κ) each, so its mean is 0, its variance 1 and its fourth moment κ. P ≤ 10.
    """
    if num_params > 10:
        raise ValueError(f"3^{num_params} vectors are too many: enumerate problems of at most 10 parameters")
    if kurtosis < 1:
        raise ValueError(f"kurtosis is {kurtosis}: no variable of unit variance has a fourth moment below 1")
    levels = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=num_params)), dtype=torch.float64)
    nonzero = levels.abs().sum(1)
    weights = (1 / (2 * kurtosis)) ** nonzero * (1 - 1 / kurtosis) ** (num_params - nonzero)
    return (math.sqrt(kurtosis) * levels).mT, weights


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, device=generator.device, dtype=torch.float64)


def _power_of_two(minimum: int) -> int:
    return 1 << max(minimum - 1, 0).bit_length()


def _walsh(rows: Tensor, columns: Tensor) -> Float[Tensor, "rows columns"]:
    """Entries (−1)^⟨row, column⟩ of the Sylvester-Hadamard matrix, the numbers read as bit vectors."""
    parity = rows[:, None] & columns[None, :]
    for shift in (32, 16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return 1.0 - 2.0 * (parity & 1).double()


_PRIMITIVE = {1: 0b11, 2: 0b111, 3: 0b1011, 4: 0b10011, 5: 0b100101, 6: 0b1000011, 7: 0b10000011, 8: 0b100011101,
              9: 0b1000010001, 10: 0b10000001001}  # irreducible polynomials over GF(2), by degree  # fmt: skip


def _cube(x: int, m: int) -> int:
    """x³ in GF(2^m)."""

    def times(a: int, b: int) -> int:
        out = 0
        while b:
            out ^= a if b & 1 else 0
            a, b = a << 1, b >> 1
            a ^= _PRIMITIVE[m] if a >> m else 0
        return out

    return times(x, times(x, x))


# --- results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """Traces by block with what is needed to judge them.

    `samples` holds one row per probe and one column per block; `num_matvecs` counts products with the P×P matrix.
    """

    samples: pd.DataFrame
    num_matvecs: int

    @cached_property
    def value(self) -> pd.Series[float]:
        """Mean over the probes, by block."""
        return self.samples.mean()

    @cached_property
    def stderr(self) -> pd.Series[float]:
        """Standard error of the mean over independent probes, s/√K; NaN for a single probe."""
        return self.samples.std(ddof=1) / math.sqrt(len(self.samples))

    def confidence_interval(self, level: float = 0.95) -> pd.DataFrame:
        """Student intervals of each block's trace, columns `low` and `high`; good where K is not tiny."""
        import pandas as pd
        from scipy.stats import t

        if not 0 < level < 1:
            raise ValueError(f"level is {level}: pass the coverage, such as 0.95")
        if len(self.samples) < 2:
            raise ValueError("one probe has no standard error: use at least two probes")
        half = t.ppf((1 + level) / 2, len(self.samples) - 1) * self.stderr
        return pd.DataFrame({"low": self.value - half, "high": self.value + half})

    def __sub__(self, other: Estimate) -> Estimate:
        """The change of the traces, probe by probe: with the same probes in both (generators in the same state), what
        they have in common cancels, and the standard error is that of the change."""
        if not isinstance(other, Estimate):
            raise TypeError(f"an Estimate minus a {type(other).__name__}: subtract an Estimate, or use .value")
        if self.samples.shape != other.samples.shape or list(self.samples) != list(other.samples):
            raise ValueError(
                f"{len(self.samples)} probes of {self.samples.shape[1]} blocks minus {len(other.samples)} probes of "
                f"{other.samples.shape[1]} blocks: subtract estimates of one network by one estimator"
            )
        return Estimate(self.samples - other.samples, self.num_matvecs + other.num_matvecs)

    def __repr__(self) -> str:
        import pandas as pd

        return f"Estimate({self.num_matvecs} products)\n{pd.DataFrame({'value': self.value, 'stderr': self.stderr})}"


# --- estimators -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerwiseTrace:
    """Traces of all diagonal blocks from ONE full product per probe: q_l = z_lᵀ(Hz)_l (claims T1, T2).

    Unbiased for every block; its variance holds the cross-block term Σ_{m≠l}‖H_lm‖². `matrix` may be `ggn`.
    """

    num_probes: int = 10
    probe: Probe = Rademacher()
    matrix: Callable[[Problem], Curvature] = hessian

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe, self.matrix)

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Float[Tensor, "params probes"] | None = None,
    ) -> Estimate:
        """Estimates with probes drawn from the generator, or with the given P×K probes."""
        curvature = self.matrix(problem)
        groups = [curvature.quadratic_forms(Z) for Z in _probe_groups(self, problem, generator, probes)]
        samples = torch.cat(groups)
        return Estimate(_labelled(samples, problem), num_matvecs=len(samples))


@dataclass(frozen=True)
class BlockSeparatedTrace:
    """Traces from probes supported on one block at a time: no cross-block variance, L products per sweep (claim T6)."""

    num_probes: int = 10
    probe: Probe = Rademacher()
    matrix: Callable[[Problem], Curvature] = hessian

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe, self.matrix)

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Float[Tensor, "params probes"] | None = None,
    ) -> Estimate:
        """Estimates with probes drawn from the generator, or with the given P×K probes, cut to one block at a time."""
        curvature = self.matrix(problem)
        forms = torch.cat([curvature.separated_forms(Z) for Z in _probe_groups(self, problem, generator, probes)])
        return Estimate(_labelled(forms, problem), num_matvecs=forms.numel())


@dataclass(frozen=True)
class HutchPP:
    """Traces by block, the dominant part of the matrix taken exactly (Hutch++, Meyer, Musco et al. 2021).

    Q is an orthonormal basis of the products with `rank` probes. With Π = QQᵀ, H = ΠH + HΠ − ΠHΠ + B, B = (I−Π)H(I−Π),
    is read off block by block but for tr B_ll, which is estimated as by `LayerwiseTrace`. Unbiased; the standard error
    is that given Q, with the variance T2 of B. 2·rank + num_probes products; P × rank numbers are held twice.
    """

    num_probes: int = 10
    rank: int = 10
    probe: Probe = Rademacher()
    matrix: Callable[[Problem], Curvature] = hessian

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_num_probes(self.rank, "rank")
        check_choices(self.probe, self.matrix)

    def __call__(self, problem: Problem, generator: torch.Generator | None = None) -> Estimate:
        """Estimates with probes drawn from the generator, those of the basis first."""
        H, sample = self.matrix(problem), _sampler(self.probe, problem, generator)
        check_fits(problem, min(self.rank, problem.num_params), _BASIS_COPIES * problem.dtype.itemsize, "of rank")
        Q = torch.linalg.qr(H @ sample(min(self.rank, problem.num_params)))[0].contiguous()
        HQ = H @ Q
        T = Q.mT @ HQ
        outside = 2 * (Q * HQ).sum(1, dtype=torch.float64) - ((Q @ T) * Q).sum(1, dtype=torch.float64)
        forms = []
        for start in range(0, self.num_probes, self.rank):
            Z = sample(min(self.rank, self.num_probes - start))
            inside = Z - Q @ (Q.mT @ Z)
            forms.append(_by_block(problem, Z * _projected(H @ inside, Q)))
        samples = torch.cat(forms) + _by_block(problem, outside[:, None])
        return Estimate(_labelled(samples, problem), num_matvecs=2 * Q.shape[1] + self.num_probes)


def _projected(Y: Tensor, Q: Tensor) -> Tensor:
    return Y - Q @ (Q.mT @ Y)


@dataclass(frozen=True)
class XTrace:
    """Traces by block, each probe deflated by the products with all others (XTrace, Epperly, Tropp and Webber 2024).

    As `HutchPP`, with the basis Q_(i) of the products with the probes other than z_i for the part of z_i: every probe
    serves twice, at two products each. Unbiased. The parts share probes, and their spread was measured to understate
    the error: the mean comes as one sample, without a standard error; repeat it for one. P × num_probes numbers are
    held three times.
    """

    num_probes: int = 10
    probe: Probe = Gaussian()
    matrix: Callable[[Problem], Curvature] = hessian

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe, self.matrix)

    def __call__(self, problem: Problem, generator: torch.Generator | None = None) -> Estimate:
        """Estimates with probes drawn from the generator."""
        H, sample = self.matrix(problem), _sampler(self.probe, problem, generator)
        check_fits(problem, self.num_probes, _BASIS_COPIES * problem.dtype.itemsize, "of num_probes")
        Z = sample(self.num_probes)
        Y = H @ Z
        Q, R = torch.linalg.qr(Y)
        Q = Q.contiguous()
        HQ, QZ = H @ Q, Q.mT @ Z
        T = Q.mT @ HQ
        # By block: Q_lᵀQ_l and Q_lᵀ(HQ)_l, of which every part takes what lies in the span of the other products.
        grams = [(Q[i].mT @ Q[i], Q[i].mT @ HQ[i]) for i in problem.index.values()]
        parts = []
        for k in range(self.num_probes):
            M = _projector(torch.cat([R[:, :k], R[:, k + 1 :]], dim=1))
            outside = [2 * (M * W).sum() - (M @ T @ M * G).sum() for G, W in grams]
            bent = Y[:, k] - HQ @ (M @ QZ[:, k])
            form = _by_block(problem, (Z[:, k] * (bent - Q @ (M @ (Q.mT @ bent))))[:, None])
            parts.append(form[0] + torch.stack(outside).to(form))
        mean = torch.stack(parts).mean(0, keepdim=True)
        return Estimate(_labelled(mean, problem), num_matvecs=self.num_probes + Q.shape[1])


def _projector(A: Float[Tensor, "n m"]) -> Float[Tensor, "n n"]:
    """The orthogonal projector on the range of a small matrix, whatever its rank."""
    U, values, _ = torch.linalg.svd(A, full_matrices=False)
    if not values.numel():
        return A.new_zeros(len(A), len(A))
    basis: Tensor = U[:, values > max(A.shape) * torch.finfo(A.dtype).eps * values[0]]
    return basis @ basis.mT


def _by_block(problem: Problem, products: Float[Tensor, "params columns"]) -> Float[Tensor, "columns blocks"]:
    """Sums over the parameters of every block, in float64."""
    return torch.stack([products[i].sum(0, dtype=torch.float64) for i in problem.index.values()], dim=1)


def _sampler(probe: Probe, problem: Problem, generator: torch.Generator | None) -> Callable[[int], Tensor]:
    """Draws probes on the device and in the dtype of the model."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            "pass a torch.Generator (torch.Generator().manual_seed(...)), or probes= where an estimator takes them: no "
            "global randomness"
        )
    return lambda count: probe.sample(problem.num_params, count, generator).to(problem.dtype).to(problem.device)


def _probe_groups(
    estimator: LayerwiseTrace | BlockSeparatedTrace,
    problem: Problem,
    generator: torch.Generator | None,
    probes: Tensor | None,
) -> Iterator[Tensor]:
    """The probes in the model's dtype, or as int8 where they are signs, in groups small enough to hold."""
    if probes is not None:
        if not isinstance(probes, Tensor):
            raise TypeError(f"probes is a {type(probes).__name__}: pass a tensor, torch.as_tensor(probes)")
        if probes.is_complex():
            raise TypeError(f"probes is {probes.dtype}: pass real numbers, probes.real and probes.imag one by one")
        if probes.ndim != 2 or len(probes) != problem.num_params or not probes.shape[1]:
            raise ValueError(
                f"probes has shape {tuple(probes.shape)}: pass a P×K tensor, P = {problem.num_params} in the order of "
                "problem.params"
            )
        if not bool(torch.isfinite(probes).all()):
            raise ValueError("probes holds NaN or infinity: every entry must be finite")
        yield probes.to(problem.dtype).to(problem.device)
        return
    most = max(_GROUP_ELEMENTS // problem.num_params, 1)
    counts = [min(most, estimator.num_probes - start) for start in range(0, estimator.num_probes, most)]
    # Signs take an eighth of the memory and an eighth of the time.
    signs = estimator.probe.signs if type(estimator.probe) is Rademacher else None
    check_fits(problem, counts[0], 2 if signs else 16 + problem.dtype.itemsize, "probes at a time")
    if signs and isinstance(generator, torch.Generator):
        yield from (signs(problem.num_params, n, generator).to(problem.device) for n in counts)
    else:
        yield from map(_sampler(estimator.probe, problem, generator), counts)


def check_num_probes(num_probes: int, name: str = "num_probes") -> None:
    """Raises ValueError unless it is a whole number of at least 1."""
    if isinstance(num_probes, bool) or not isinstance(num_probes, int | np.integer) or num_probes < 1:
        raise ValueError(f"{name} is {num_probes!r}: pass a whole number of at least 1")


def check_choices(probe: Any, matrix: Any = hessian) -> None:
    """Raises TypeError unless they are a probe, not its class, and a function that makes a matrix of a problem."""
    if isinstance(probe, type):
        raise TypeError(f"probe is the class {probe.__name__}: pass an instance, {probe.__name__}()")
    if not isinstance(probe, Probe):
        raise TypeError(f"probe is a {type(probe).__name__}: pass one with kurtosis and sample, such as Rademacher()")
    if isinstance(matrix, Curvature) or not callable(matrix):
        raise TypeError(f"matrix is {matrix!r}: pass a function of a problem, hesstheory.hessian or hesstheory.ggn")


def _labelled(samples: Tensor, problem: Problem) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(samples.cpu().numpy(), columns=list(problem.partition.blocks))


def as_mapping(estimate: Estimate) -> Mapping[str, tuple[float, float]]:
    """{block: (trace, stderr)}: the plainest form of an estimate, which the conformance contract also accepts."""
    return {block: (float(estimate.value[block]), float(estimate.stderr[block])) for block in estimate.value.index}
