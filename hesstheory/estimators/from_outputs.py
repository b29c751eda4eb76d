"""Traces from random combinations of the outputs, and control variates by them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.curvature.matrix import ggn, residual
from hesstheory.estimators.probes import (
    HadamardColumns,
    Probe,
    Rademacher,
    check_choices,
    check_num_probes,
)
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.outputs.fit import fitted
from hesstheory.outputs.loss_root import loss_root
from hesstheory.outputs.per_sample import first_samples, linearised
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate
from hesstheory.run.precision import full_precision

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class LogitProbeTrace:
    """Traces tr G_ll from random combinations u_n = S_n ε_n of the columns of S, one backward pass for each (claim G5).

    Unbiased. `per_sample` sums ‖J_nᵀu_n‖² over the samples; else it is ‖Σ_n J_nᵀu_n‖², which needs no per-sample
    gradients and is noisier (claim G7). `num_matvecs` counts backward passes through all batches.
    """

    num_probes: int = 10
    per_sample: bool = True
    probe: Probe = field(default_factory=Rademacher)

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe)
        if isinstance(self.probe, HadamardColumns):
            raise ValueError(
                "every sample needs an ε of its own, and Hadamard columns depend on one another: pass Rademacher()"
            )

    @full_precision()
    def __call__(self, problem: Problem, generator: torch.Generator | None = None) -> Estimate:
        """Estimates with ε drawn from the generator, for every sample of its own."""
        import pandas as pd

        if not isinstance(generator, torch.Generator):
            raise TypeError(
                "pass a torch.Generator (torch.Generator().manual_seed(...)): no global randomness"
            )
        few = first_samples(problem)
        problem, names = fitted(problem, few), list(problem.params)
        trusted = few.trusted() if self.per_sample else frozenset[str]()
        of_tensor = torch.zeros(self.num_probes, len(names), dtype=torch.float64)
        for weight, batch in zip(problem.weights, problem.batches, strict=True):
            line = linearised(problem, batch, trusted)
            S = loss_root(problem, line.outputs, batch)
            for k in range(self.num_probes if S.shape[2] else 0):
                signs = self.probe.sample(S.shape[2], len(S), generator).mT.to(S)
                u = (S @ signs[:, :, None]).reshape(line.outputs.shape)
                squares = line.squared_norms(u) if self.per_sample else line.squared_norm_of_sum(u)
                for name, square in squares.items():
                    of_tensor[k, names.index(name)] += weight * float(
                        square.sum(dtype=torch.float64)
                    )
        blocks = {
            block: of_tensor[:, [names.index(t) for t in tensors]].sum(1).numpy()
            for block, tensors in problem.partition.blocks.items()
        }
        return Estimate(pd.DataFrame(blocks), num_matvecs=self.num_probes)


@dataclass(frozen=True)
class ControlVariateTrace:
    """Traces tr H_ll = tr G_ll + tr R_ll for any network, probes on the residual R = H − G alone (claim G8).

    tr G_ll is exact, or with `exact=False` a logit probe of its own for every parameter probe. Unbiased; the variance
    is T2 with R for H, far less where the loss is small. `num_matvecs` counts products with R; the traces of G cost
    as many gradients as S has columns on top. `separated` probes R one block at a time, without cross terms.
    """

    num_probes: int = 10
    probe: Probe = field(default_factory=Rademacher)
    exact: bool = True
    separated: bool = False

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe)

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Float[Tensor, "params probes"] | None = None,
    ) -> Estimate:
        """Estimates with probes drawn from the generator, or with the given P×K probes on R."""
        design = BlockSeparatedTrace if self.separated else LayerwiseTrace
        of_residual = design(self.num_probes, self.probe, residual)(
            problem, generator, probes=probes
        )
        if self.exact:
            return Estimate(
                of_residual.samples + exact_traces(problem, matrix=ggn).value, of_residual.num_matvecs
            )
        if generator is None:
            raise TypeError("exact=False draws logit probes: pass a torch.Generator beside probes=")
        of_ggn = LogitProbeTrace(len(of_residual.samples))(problem, generator)
        return Estimate(of_residual.samples + of_ggn.samples, of_residual.num_matvecs)
