"""Wrong logit probes and Gram matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.estimators.from_outputs import LogitProbeTrace
from hesstheory.estimators.probes import Probe, Rademacher
from hesstheory.outputs.loss_root import loss_root
from hesstheory.outputs.per_sample import Linearised, linearised, rules_that_hold
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate
from hesstheory.theory.matrices import Matrix, Scalar

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class WrongLogitProbes:
    """Wrong logit probes: the right ones, with one step spoilt."""

    num_probes: int = 10
    per_sample: bool = True
    probe: Probe = field(default_factory=Rademacher)

    def __call__(self, problem: Problem, generator: torch.Generator) -> Estimate:
        import pandas as pd

        names = list(problem.params)
        trusted = rules_that_hold(problem) if self.per_sample else frozenset[str]()
        of_tensor = torch.zeros(self.num_probes, len(names), dtype=torch.float64)
        for weight, batch in zip(self.weights(problem), problem.batches, strict=True):
            line = linearised(problem, batch, trusted)
            S = loss_root(problem, line.outputs, batch)
            for k in range(self.num_probes):
                signs = self.spoilt_signs(self.probe.sample(S.shape[2], len(S), generator).mT)
                u = (S @ signs[:, :, None]).reshape(line.outputs.shape)
                for name, square in self.squares(line, u).items():
                    of_tensor[k, names.index(name)] += weight * float(square.sum())
        blocks = {
            block: of_tensor[:, [names.index(name) for name in tensors]].sum(1).numpy()
            for block, tensors in problem.partition.blocks.items()
        }
        return Estimate(pd.DataFrame(blocks), num_matvecs=self.num_probes)

    def weights(self, problem: Problem) -> tuple[float, ...]:
        """Weights of the batches."""
        return problem.weights

    def spoilt_signs(self, signs: Tensor) -> Tensor:
        """What is put for ε, samples × columns."""
        return signs

    def squares(self, line: Linearised, u: Tensor) -> dict[str, Tensor]:
        """Squares by tensor from the cotangents."""
        return line.squared_norms(u) if self.per_sample else line.squared_norm_of_sum(u)


class LogitProbesUnweighted(WrongLogitProbes):
    """Averages batches without weighting them by their size."""

    def weights(self, problem: Problem) -> tuple[float, ...]:
        return (1 / len(problem.batches),) * len(problem.batches)


class OneLogitProbeForAllSamples(WrongLogitProbes):
    """Gives all samples of a batch the signs of the first one."""

    def spoilt_signs(self, signs: Tensor) -> Tensor:
        return signs[:1].expand_as(signs)


class OneSignPerSample(WrongLogitProbes):
    """Draws one sign for each sample, so that the columns of its root are added up."""

    def spoilt_signs(self, signs: Tensor) -> Tensor:
        return signs[:, :1].expand_as(signs)


class OtherNorms(WrongLogitProbes):
    """Sums over the batch where per-sample squares are promised, and the other way round."""

    def squares(self, line: Linearised, u: Tensor) -> dict[str, Tensor]:
        return line.squared_norm_of_sum(u) if self.per_sample else line.squared_norms(u)


class LogitProbesJustOutsideRounding(WrongLogitProbes):
    """Reports every trace off by one part in 10¹¹, just outside what rounding explains."""

    def __call__(self, problem: Problem, generator: torch.Generator) -> Estimate:
        right = LogitProbeTrace(self.num_probes, self.per_sample, self.probe)(problem, generator)
        return replace(right, samples=right.samples * (1 + 1e-11))


class DemeanedSamples(WrongLogitProbes):
    """Takes the mean gradient of the batch out before squaring, as a covariance would."""

    def squares(self, line: Linearised, u: Tensor) -> dict[str, Tensor]:
        alone = line.squared_norms(u)
        summed = line.squared_norm_of_sum(u)
        return {name: alone[name].sum() - summed[name].sum() / len(u) for name in alone}


class AccumulatedOverBatches(WrongLogitProbes):
    """Adds up the gradients of all batches before squaring, as repeated calls of backward() do."""

    def __call__(self, problem: Problem, generator: torch.Generator) -> Estimate:
        import pandas as pd

        params = list(problem.params.values())
        total = torch.zeros(self.num_probes, problem.num_params, dtype=torch.float64)
        for weight, batch in zip(problem.weights, problem.batches, strict=True):
            outputs = problem.outputs(batch)
            S = loss_root(problem, outputs, batch)
            for k in range(self.num_probes):
                signs = self.probe.sample(S.shape[2], len(S), generator).mT
                u = weight**0.5 * (S @ signs[:, :, None]).reshape(outputs.shape)
                rows = torch.autograd.grad(outputs, params, u, retain_graph=True)
                total[k] += torch.cat([row.flatten() for row in rows])
        blocks = {
            block: total[:, index].square().sum(1).numpy() for block, index in problem.index.items()
        }
        return Estimate(pd.DataFrame(blocks), num_matvecs=self.num_probes)


def logit_variance_with_diagonal(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Uses the normal fourth moment whatever the probe."""
    return theory.logit_probe_variance(grams, 3)


def logit_variance_of_one_sample(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Divides by N instead of N²."""
    grams = list(grams)
    return len(grams) * theory.logit_probe_variance(grams, kurtosis)


def logit_variance_of_the_mean(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Takes the Gram matrix of the mean sample for that of every sample."""
    grams = list(grams)
    return theory.probe_variance(sum(grams[1:], grams[0]) / len(grams), (), kurtosis) / len(grams)


def logit_variance_of_shared_probes(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Gives the variance of one probe for all samples."""
    grams = list(grams)
    return theory.probe_variance(sum(grams[1:], grams[0]) / len(grams), (), kurtosis)


def logit_variance_just_outside_rounding(grams: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.logit_probe_variance(grams, kurtosis) * (1 + 2**-30)


def ggn_norm_of_both_blocks(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Counts G_lm and G_ml."""
    return 2 * theory.ggn_squared_norm(M_l, M_m)


def ggn_norm_of_traces(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Multiplies the traces of the Gram matrices, as if each had rank one along the same
    direction."""
    return M_l.trace() * M_m.trace()


def ggn_norm_of_own_entries(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Forgets the kernel between different samples and outputs."""
    return sum(M_l[i, i] * M_m[i, i] for i in range(M_l.shape[0]))


def ggn_norm_just_outside_rounding(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.ggn_squared_norm(M_l, M_m) * (1 + 2**-30)


def coupling_unsquared(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Takes the cosine for the square of the squared coupling."""
    return theory.ggn_coupling(M_l, M_m) ** 0.5


def coupling_centred(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Centres the Gram matrices first, as centred kernel alignment does."""
    C = torch.eye(len(M_l), dtype=M_l.dtype) - 1 / len(M_l)
    return theory.ggn_coupling(C @ M_l @ C, C @ M_m @ C)


def coupling_by_traces(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Divides by the traces instead of the norms."""
    return theory.ggn_squared_norm(M_l, M_m) / (M_l.trace() * M_m.trace())


def coupling_just_outside_rounding(M_l: Matrix, M_m: Matrix) -> Scalar:
    """Is off by one part in 10⁹."""
    return theory.ggn_coupling(M_l, M_m) * (1 + 2**-30)
