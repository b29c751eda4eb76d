"""Traces from products with full-vector probes, or with probes of one block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.autograd.graph import differentiating
from hesstheory.curvature.matrix import MatrixOf, hessian
from hesstheory.estimators.inputs import (
    check_choices,
    check_num_probes,
    check_samples_fit,
    checked_probes,
    chosen_number,
    drawn_groups,
)
from hesstheory.estimators.probes import Probe, Rademacher
from hesstheory.estimators.protocol import VarianceLaw, law_of_probe
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LayerwiseTrace:
    """Traces of all diagonal blocks from ONE full product per probe, q_l = z_lᵀ(Hz)_l.

    It is unbiased for every block (claim T1). The variance of one probe is
    2‖H_ll‖² + (κ−3) Σ H_ii² + Σ_{m≠l}‖H_lm‖² (claim T2): the last term comes from the other
    blocks.

    Parameters
    ----------
    num_probes
        How many probes a call draws; each costs one product with the P×P matrix.
    probe
        Their distribution.
    matrix
        `hessian`, `ggn`, or another function that makes a `Curvature` of a problem.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import LayerwiseTrace, zoo
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> estimate = LayerwiseTrace(100)(problem, torch.Generator().manual_seed(1))
    >>> list(estimate) == list(problem.partition.blocks)
    True
    >>> estimate.num_matvecs
    100
    """

    num_probes: int = 10
    probe: Probe = field(default_factory=Rademacher)
    matrix: MatrixOf = hessian

    is_exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe, self.matrix)

    @property
    def variance_law(self) -> VarianceLaw | None:
        """T2 where the distribution declares independent entries."""
        return law_of_probe(self.probe)

    @differentiating()
    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
        probes: Float[Tensor, "params probes"] | None = None,
    ) -> Estimate:
        """Estimates with drawn probes, or with the given P×K probes."""
        curvature = self.matrix(problem)
        groups = _groups(self, problem, generator, num_probes, probes)
        samples = torch.cat([curvature.quadratic_forms(Z) for Z in groups])
        return Estimate(labelled(samples, problem), num_matvecs=len(samples), name=problem.named())


@dataclass(frozen=True)
class BlockSeparatedTrace:
    """Traces from probes supported on one block at a time, q_l = z_lᵀ H_ll z_l (claim T6).

    The variance of one probe is 2‖H_ll‖² + (κ−3) Σ H_ii²: other blocks add nothing. A sweep over
    all L blocks costs L products.

    Parameters
    ----------
    num_probes
        How many sweeps a call makes.
    probe
        The distribution, drawn for all parameters and cut to one block at a time.
    matrix
        `hessian`, `ggn`, or another function that makes a `Curvature` of a problem.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import BlockSeparatedTrace, zoo
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> estimate = BlockSeparatedTrace(100)(problem, torch.Generator().manual_seed(1))
    >>> estimate.num_matvecs == 100 * len(problem.partition.blocks)
    True
    """

    num_probes: int = 10
    probe: Probe = field(default_factory=Rademacher)
    matrix: MatrixOf = hessian

    is_exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe, self.matrix)

    @property
    def variance_law(self) -> VarianceLaw | None:
        """T2 without cross blocks where the distribution declares independent entries."""
        of_full_probe = law_of_probe(self.probe)
        if of_full_probe is None:
            return None
        return lambda squared_norm, diagonal_squares, cross_squares: of_full_probe(
            squared_norm, diagonal_squares, 0.0
        )

    @differentiating()
    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
        probes: Float[Tensor, "params probes"] | None = None,
    ) -> Estimate:
        """Estimates with drawn probes, or with the given P×K probes, cut to one block at a time."""
        curvature = self.matrix(problem)
        groups = _groups(self, problem, generator, num_probes, probes)
        samples = torch.cat([curvature.separated_forms(Z) for Z in groups])
        return Estimate(
            labelled(samples, problem), num_matvecs=samples.numel(), name=problem.named()
        )


def _groups(
    estimator: LayerwiseTrace | BlockSeparatedTrace,
    problem: Problem,
    generator: torch.Generator | None,
    num_probes: int | None,
    probes: Tensor | None,
) -> Iterator[Tensor]:
    """The probes of one call: the given ones, or drawn ones in groups."""
    number = chosen_number(estimator.num_probes, num_probes)
    if probes is None:
        check_samples_fit(problem, number, len(problem.partition.blocks))
        yield from drawn_groups(estimator.probe, problem, generator, number)
    else:
        yield checked_probes(problem, probes, num_probes)


def labelled(samples: Float[Tensor, "probes blocks"], problem: Problem) -> pd.DataFrame:
    """A row per probe, a column per block."""
    import pandas as pd

    return pd.DataFrame(samples.cpu().numpy(), columns=list(problem.partition.blocks))
