"""Traces from products with full-vector probes, or with probes of one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.curvature.limits import check_fits
from hesstheory.curvature.matrix import Curvature, hessian
from hesstheory.estimators.probes import Probe, Rademacher, check_choices, check_num_probes, sampler
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd


_GROUP_ELEMENTS = (
    2**28
)  # entries of the probes held at once: a machine-independent choice, so that draws do not move


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
        groups = [
            curvature.quadratic_forms(Z) for Z in _probe_groups(self, problem, generator, probes)
        ]
        samples = torch.cat(groups)
        return Estimate(labelled(samples, problem), num_matvecs=len(samples))


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
        forms = torch.cat(
            [curvature.separated_forms(Z) for Z in _probe_groups(self, problem, generator, probes)]
        )
        return Estimate(labelled(forms, problem), num_matvecs=forms.numel())


def _probe_groups(
    estimator: LayerwiseTrace | BlockSeparatedTrace,
    problem: Problem,
    generator: torch.Generator | None,
    probes: Tensor | None,
) -> Iterator[Tensor]:
    """The probes in the model's dtype, or as int8 where they are signs, in groups small enough to hold."""
    if probes is not None:
        if not isinstance(probes, Tensor):
            raise TypeError(
                f"probes is a {type(probes).__name__}: pass a tensor, torch.as_tensor(probes)"
            )
        if probes.is_complex():
            raise TypeError(
                f"probes is {probes.dtype}: pass real numbers, probes.real and probes.imag one by one"
            )
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
    counts = [
        min(most, estimator.num_probes - start) for start in range(0, estimator.num_probes, most)
    ]
    # Signs take an eighth of the memory and an eighth of the time.
    signs = estimator.probe.signs if type(estimator.probe) is Rademacher else None
    check_fits(problem, counts[0], 2 if signs else 16 + problem.dtype.itemsize, "probes at a time")
    if signs and isinstance(generator, torch.Generator):
        yield from (signs(problem.num_params, n, generator).to(problem.device) for n in counts)
    else:
        yield from map(sampler(estimator.probe, problem, generator), counts)


def labelled(samples: Tensor, problem: Problem) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(samples.cpu().numpy(), columns=list(problem.partition.blocks))
