"""Traces with the dominant part of the matrix taken exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.curvature.limits import check_fits
from hesstheory.curvature.matrix import Curvature, hessian
from hesstheory.estimators.probes import (
    Gaussian,
    Probe,
    Rademacher,
    check_choices,
    check_num_probes,
    sampler,
)
from hesstheory.estimators.products import labelled
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

_BASIS_COPIES = 7  # of P × rank numbers that Hutch++ and XTrace hold at most: probes, products, their bases, a product


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
        H, sample = self.matrix(problem), sampler(self.probe, problem, generator)
        check_fits(
            problem,
            min(self.rank, problem.num_params),
            _BASIS_COPIES * problem.dtype.itemsize,
            "of rank",
        )
        Q = torch.linalg.qr(H @ sample(min(self.rank, problem.num_params)))[0].contiguous()
        HQ = H @ Q
        T = Q.mT @ HQ
        outside = 2 * (Q * HQ).sum(1, dtype=torch.float64) - ((Q @ T) * Q).sum(
            1, dtype=torch.float64
        )
        forms = []
        for start in range(0, self.num_probes, self.rank):
            Z = sample(min(self.rank, self.num_probes - start))
            inside = Z - Q @ (Q.mT @ Z)
            forms.append(_by_block(problem, Z * _projected(H @ inside, Q)))
        samples = torch.cat(forms) + _by_block(problem, outside[:, None])
        return Estimate(labelled(samples, problem), num_matvecs=2 * Q.shape[1] + self.num_probes)


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
        H, sample = self.matrix(problem), sampler(self.probe, problem, generator)
        check_fits(
            problem, self.num_probes, _BASIS_COPIES * problem.dtype.itemsize, "of num_probes"
        )
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
        return Estimate(labelled(mean, problem), num_matvecs=self.num_probes + Q.shape[1])


def _projector(A: Float[Tensor, "n m"]) -> Float[Tensor, "n n"]:
    """The orthogonal projector on the range of a small matrix, whatever its rank."""
    U, values, _ = torch.linalg.svd(A, full_matrices=False)
    if not values.numel():
        return A.new_zeros(len(A), len(A))
    basis: Tensor = U[:, values > max(A.shape) * torch.finfo(A.dtype).eps * values[0]]
    return basis @ basis.mT


def _by_block(
    problem: Problem, products: Float[Tensor, "params columns"]
) -> Float[Tensor, "columns blocks"]:
    """Sums over the parameters of every block, in float64."""
    return torch.stack(
        [products[i].sum(0, dtype=torch.float64) for i in problem.index.values()], dim=1
    )
