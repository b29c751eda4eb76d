"""Traces with the dominant part of the matrix taken exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.autograd.graph import differentiating
from hesstheory.curvature.limits import check_fits
from hesstheory.curvature.matrix import MatrixOf, hessian
from hesstheory.estimators.inputs import (
    check_choices,
    check_num_probes,
    check_samples_fit,
    chosen_number,
    sampler,
)
from hesstheory.estimators.probes import Gaussian, Probe, Rademacher
from hesstheory.estimators.products import labelled
from hesstheory.estimators.protocol import VarianceLaw
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

# Tables of P × rank numbers that are held at most: the probes, their products, the bases of both,
# and what the next product needs.
_BASIS_COPIES = 7


@dataclass(frozen=True)
class HutchPP:
    """Traces by block, the dominant part of the matrix taken exactly (Hutch++).

    Q is an orthonormal basis of the products with `rank` probes, Π = QQᵀ. Of
    H = ΠH + HΠ − ΠHΠ + B with B = (I−Π)H(I−Π), everything but tr B_ll is read off block by block.
    tr B_ll is estimated as by `LayerwiseTrace`. The estimate is unbiased. Its standard error is
    that given Q, with the variance T2 of B. Source: Meyer, Musco, Musco and Woodruff (2021).

    It claims no variance law, which would need the norms of B. It takes no given probes: those of
    the basis and those of B play different parts.

    Parameters
    ----------
    num_probes
        Probes of B, a product each.
    rank
        Probes of the basis, two products each. P × rank numbers are held twice.
    probe
        The distribution of both.
    matrix
        `hessian`, `ggn`, or another function that makes a `Curvature` of a problem.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import HutchPP, zoo
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> HutchPP(num_probes=5, rank=3)(problem, torch.Generator().manual_seed(1)).num_matvecs
    11
    """

    num_probes: int = 10
    rank: int = 10
    probe: Probe = field(default_factory=Rademacher)
    matrix: MatrixOf = hessian

    variance_law: ClassVar[VarianceLaw | None] = None
    is_exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_num_probes(self.rank, "rank")
        check_choices(self.probe, self.matrix)

    @differentiating()
    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
    ) -> Estimate:
        """Estimates with drawn probes, those of the basis first."""
        _check_has_bases(problem)
        number = chosen_number(self.num_probes, num_probes)
        rank = min(self.rank, problem.num_params)
        H = self.matrix(problem)
        sample = sampler(self.probe, problem, generator)
        check_samples_fit(problem, number, len(problem.partition.blocks))
        check_fits(problem, rank, _BASIS_COPIES * problem.dtype.itemsize, "of rank")
        Q = torch.linalg.qr(H @ sample(rank))[0].contiguous()
        HQ = H @ Q
        forms = []
        # No more probes at once than the basis has columns: it sets the memory.
        for start in range(0, number, self.rank):
            Z = sample(min(self.rank, number - start))
            inside = Z - Q @ (Q.mT @ Z)
            forms.append(_by_block(problem, Z * _projected(H @ inside, Q)))
        samples = torch.cat(forms) + _by_block(problem, _taken_exactly(Q, HQ)[:, None])
        return Estimate(
            labelled(samples, problem), num_matvecs=2 * Q.shape[1] + number, name=problem.named()
        )


def _check_has_bases(problem: Problem) -> None:
    """Raises TypeError for a dtype in which no basis is orthonormal."""
    if torch.finfo(problem.dtype).eps > torch.finfo(torch.float32).eps:
        raise TypeError(
            f"the parameters are {problem.dtype}, in which no basis of products is orthonormal: "
            "convert the model with .float(), or use LayerwiseTrace"
        )


def _taken_exactly(Q: Tensor, HQ: Tensor) -> Float[Tensor, " params"]:
    """The diagonal of ΠH + HΠ − ΠHΠ, in float64."""
    T = Q.mT @ HQ
    twice = 2 * (Q * HQ).sum(1, dtype=torch.float64)
    both = ((Q @ T) * Q).sum(1, dtype=torch.float64)
    return twice - both


def _projected(Y: Tensor, Q: Tensor) -> Tensor:
    """(I − QQᵀ) Y."""
    return Y - Q @ (Q.mT @ Y)


@dataclass(frozen=True)
class XTrace:
    """Traces by block, each probe deflated by the products with all others (XTrace).

    As `HutchPP`, with the basis Q_(i) of the products with the probes other than z_i for the part
    of z_i: every probe serves twice, at two products each. The estimate is unbiased. Source:
    Epperly, Tropp and Webber (2024).

    The parts share probes, and their spread was measured to understate the error. Hence the mean
    comes as one sample without a standard error. Repeat it for one. It claims no variance law and
    takes no given probes.

    Parameters
    ----------
    num_probes
        Probes, two products each. P × num_probes numbers are held three times.
    probe
        Their distribution.
    matrix
        `hessian`, `ggn`, or another function that makes a `Curvature` of a problem.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import XTrace, zoo
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> estimate = XTrace(5)(problem, torch.Generator().manual_seed(1))
    >>> len(estimate.samples), estimate.num_matvecs
    (1, 10)
    """

    num_probes: int = 10
    probe: Probe = field(default_factory=Gaussian)
    matrix: MatrixOf = hessian

    variance_law: ClassVar[VarianceLaw | None] = None
    is_exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe, self.matrix)

    @differentiating()
    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
    ) -> Estimate:
        """Estimates with drawn probes."""
        _check_has_bases(problem)
        number = chosen_number(self.num_probes, num_probes)
        H = self.matrix(problem)
        sample = sampler(self.probe, problem, generator)
        check_fits(problem, number, _BASIS_COPIES * problem.dtype.itemsize, "of num_probes")
        Z = sample(number)
        Y = H @ Z
        Q, R = torch.linalg.qr(Y)
        Q = Q.contiguous()
        parts = _left_out_in_turn(problem, Z, Y, Q, R, H @ Q)
        mean = torch.stack(parts).mean(0, keepdim=True)
        return Estimate(
            labelled(mean, problem), num_matvecs=number + Q.shape[1], name=problem.named()
        )


def _left_out_in_turn(
    problem: Problem, Z: Tensor, Y: Tensor, Q: Tensor, R: Tensor, HQ: Tensor
) -> list[Float[Tensor, " blocks"]]:
    """By probe the estimate from its own form and a basis of the products Y = QR of the others."""
    QZ = Q.mT @ Z
    T = Q.mT @ HQ
    # By block: Q_lᵀQ_l and Q_lᵀ(HQ)_l. Every part takes of them what lies in the span of the
    # other products, which the projector M has in the coordinates of Q.
    grams = [(Q[i].mT @ Q[i], Q[i].mT @ HQ[i]) for i in problem.index.values()]
    parts = []
    for k in range(Z.shape[1]):
        M = _projector(torch.cat([R[:, :k], R[:, k + 1 :]], dim=1))
        outside = [2 * (M * W).sum() - (M @ T @ M * G).sum() for G, W in grams]
        bent = Y[:, k] - HQ @ (M @ QZ[:, k])
        form = _by_block(problem, (Z[:, k] * (bent - Q @ (M @ (Q.mT @ bent))))[:, None])
        parts.append(form[0] + torch.stack(outside).to(form))
    return parts


def _projector(A: Float[Tensor, "n m"]) -> Float[Tensor, "n n"]:
    """The orthogonal projector on the range of a small matrix, whatever its rank."""
    U, values, _ = torch.linalg.svd(A, full_matrices=False)
    if not values.numel():
        return A.new_zeros(len(A), len(A))
    # The usual bound on the rounding of singular values (Golub and Van Loan 2013, section 5.4).
    rounding = max(A.shape) * torch.finfo(A.dtype).eps * values[0]
    basis: Tensor = U[:, values > rounding]
    return basis @ basis.mT


def _by_block(
    problem: Problem, products: Float[Tensor, "params columns"]
) -> Float[Tensor, "columns blocks"]:
    """Sums over the parameters of every block, in float64."""
    return torch.stack(
        [products[i].sum(0, dtype=torch.float64) for i in problem.index.values()], dim=1
    )
