"""Traces from random combinations of the outputs, and control variates by them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.autograd.graph import differentiating
from hesstheory.curvature.matrix import ggn, residual
from hesstheory.estimators.inputs import (
    check_choices,
    check_num_probes,
    check_samples_fit,
    checked_generator,
    chosen_number,
)
from hesstheory.estimators.probes import Probe, Rademacher, independent_probes
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.estimators.protocol import VarianceLaw
from hesstheory.outputs.fit import fitted
from hesstheory.outputs.loss_root import loss_root
from hesstheory.outputs.per_sample import Linearised, first_samples, linearised
from hesstheory.outputs.separable import separable_root
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate
from hesstheory.run.precision import full_precision


@dataclass(frozen=True)
class LogitProbeTrace:
    """Traces tr G_ll from random combinations u_n = S_n ε_n of the columns of S (claim G5).

    Each costs one backward pass, and the estimate is unbiased. It claims no variance law: the
    variance is that of the output space. It takes no given probes, since ε has one entry per
    column of S, not per parameter.

    Parameters
    ----------
    num_probes
        Backward passes through all batches.
    per_sample
        Sums ‖J_nᵀu_n‖² over the samples. Else it is ‖Σ_n J_nᵀu_n‖², which needs no per-sample
        gradients and is noisier (claim G7).
    probe
        The distribution of ε, drawn for every sample by itself.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import LogitProbeTrace, zoo
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> estimate = LogitProbeTrace(20)(problem, torch.Generator().manual_seed(1))
    >>> estimate.num_matvecs, bool((estimate.value >= 0).all())
    (20, True)
    """

    num_probes: int = 10
    per_sample: bool = True
    probe: Probe = field(default_factory=Rademacher)

    variance_law: ClassVar[VarianceLaw | None] = None
    is_exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe)
        if not independent_probes(self.probe):
            raise ValueError(
                "every sample needs an ε of its own, and the probes of one draw of "
                f"{self.probe!r} depend on one another: pass Rademacher()"
            )

    @full_precision()
    @differentiating()
    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
    ) -> Estimate:
        """Estimates with ε drawn from the generator."""
        import pandas as pd

        number = chosen_number(self.num_probes, num_probes)
        given = checked_generator(generator)
        few = first_samples(problem)
        order = {name: j for j, name in enumerate(problem.params)}
        check_samples_fit(problem, number, len(order))
        of_tensor = torch.zeros(number, len(order), dtype=torch.float64)
        for k, weight, squares in self._draws(problem, few, given, number):
            for name, square in squares.items():
                of_tensor[k, order[name]] += weight * float(square.sum(dtype=torch.float64))
        blocks = {
            block: of_tensor[:, [order[name] for name in names]].sum(1).numpy()
            for block, names in problem.partition.blocks.items()
        }
        return Estimate(pd.DataFrame(blocks), num_matvecs=number, name=problem.named())

    def _draws(
        self, problem: Problem, few: Linearised, generator: torch.Generator, number: int
    ) -> Iterator[tuple[int, float, dict[str, Tensor]]]:
        """Of every batch and probe its number, the batch's weight, and the squares by tensor."""
        problem = fitted(problem, few)
        trusted = few.trusted() if self.per_sample else frozenset[str]()
        for weight, batch in zip(problem.weights, problem.batches, strict=True):
            line = linearised(problem, batch, trusted)
            for k, u in enumerate(self._combinations(line, generator, number)):
                squares = line.squared_norms(u) if self.per_sample else line.squared_norm_of_sum(u)
                yield k, weight, squares

    def _combinations(
        self, line: Linearised, generator: torch.Generator, number: int
    ) -> Iterator[Tensor]:
        """S_n ε_n of one batch, probe by probe."""
        root = separable_root(line.problem, line.outputs, line.batch)
        if root is not None:
            for _ in range(number):
                signs = self.probe.sample(root.num_signs, len(line.outputs), generator).mT
                yield root.combination(signs.to(torch.float64))
            return
        S = loss_root(line.problem, line.outputs, line.batch)
        # Without columns of S the matrix G is 0, and so are all samples.
        for _ in range(number if S.shape[2] else 0):
            signs = self.probe.sample(S.shape[2], len(S), generator).mT.to(S)
            yield (S @ signs[:, :, None]).reshape(line.outputs.shape)


@dataclass(frozen=True)
class ControlVariateTrace:
    """Traces tr H_ll = tr G_ll + tr R_ll of any network, with probes on R = H − G alone (claim G8).

    The estimate is unbiased. The variance of one probe is T2 with R for H, far less where the loss
    is small. It claims no variance law, which would be one of H.

    Parameters
    ----------
    num_probes
        Products with R, which `num_matvecs` counts.
    probe
        Their distribution.
    exact
        tr G_ll is exact, for as many backward passes on top as S has columns. Else a logit probe
        of its own goes with every parameter probe; given `probes=` replace the latter alone.
    separated
        Probes R one block at a time, without cross terms.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import ControlVariateTrace, LayerwiseTrace, zoo
    >>> problem = zoo.problem("tiny_mlp", torch.Generator().manual_seed(0), num_samples=8)
    >>> controlled = ControlVariateTrace(50)(problem, torch.Generator().manual_seed(1))
    >>> list(controlled) == list(problem.partition.blocks)
    True
    """

    num_probes: int = 10
    probe: Probe = field(default_factory=Rademacher)
    exact: bool = True
    separated: bool = False

    variance_law: ClassVar[VarianceLaw | None] = None
    is_exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)
        check_choices(self.probe)

    @differentiating()
    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        num_probes: int | None = None,
        probes: Float[Tensor, "params probes"] | None = None,
    ) -> Estimate:
        """Estimates with drawn probes, or with the given P×K probes on R."""
        design = BlockSeparatedTrace if self.separated else LayerwiseTrace
        of_residual = design(self.num_probes, self.probe, residual)(
            problem, generator, num_probes=num_probes, probes=probes
        )
        if self.exact:
            of_ggn = exact_traces(problem, matrix=ggn).value
            return Estimate(
                of_residual.samples + of_ggn, of_residual.num_matvecs, name=problem.named()
            )
        if generator is None:
            raise TypeError("exact=False draws logit probes: pass a torch.Generator beside probes=")
        drawn = LogitProbeTrace(len(of_residual.samples))(problem, generator)
        return Estimate(
            of_residual.samples + drawn.samples, of_residual.num_matvecs, name=problem.named()
        )
