"""Wrong Gauss-Newton matrices, traces from the outputs, logit probes, Gram matrices and control variates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hesstheory import theory
from hesstheory.curvature import ggn, hessian, residual
from hesstheory.estimators import BlockSeparatedTrace, Estimate, LayerwiseTrace, Probe, Rademacher
from hesstheory.logit_space import (
    Linearised,
    LogitProbeTrace,
    NotPiecewiseLinear,
    exact_traces,
    linearised,
    rules_that_hold,
)
from hesstheory.loss_root import loss_root
from hesstheory.problem import Batch, Problem

if TYPE_CHECKING:
    import pandas as pd

# --- matrices -------------------------------------------------------------------------------------------------------


def output_jacobian(problem: Problem, outputs: Tensor) -> Tensor:
    """Derivatives of every output of every sample in all parameters, samples × outputs × params."""
    eye = torch.eye(outputs.numel(), dtype=outputs.dtype).reshape(-1, *outputs.shape)
    params = list(problem.params.values())
    rows = torch.autograd.grad(
        outputs, params, eye, retain_graph=True, is_grads_batched=True, allow_unused=True, materialize_grads=True
    )
    J = torch.cat([row.reshape(len(eye), -1) for row in rows], dim=1)
    return J.reshape(len(outputs), -1, problem.num_params)


def _of_outputs(problem: Problem, root: Callable[[Tensor, Tensor, Batch], Tensor]) -> Tensor:
    """Σ_n J_nᵀ W_n W_nᵀ J_n for a root W that is made from the right one, the outputs and the batch."""
    total = torch.zeros(problem.num_params, problem.num_params, dtype=torch.float64)
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        outputs = problem.outputs(batch)
        W = root(loss_root(problem, outputs, batch), outputs, batch)
        B = (W.mT @ output_jacobian(problem, outputs)).flatten(0, 1)
        total += weight * B.mT @ B
    return total


def empirical_fisher(problem: Problem) -> Tensor:
    """Averages the outer products of the gradients at the labels (the empirical Fisher matrix)."""

    def at_labels(S: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        leaf = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.loss_of(leaf, batch), leaf)
        root: Tensor = len(outputs) ** 0.5 * slope.flatten(1)[:, :, None]
        return root

    return _of_outputs(problem, at_labels)


def ggn_of_independent_outputs(problem: Problem) -> Tensor:
    """Keeps only the diagonal of the loss Hessian in the outputs."""
    return _of_outputs(problem, lambda S, outputs, batch: S.square().sum(2).sqrt().diag_embed())


def ggn_unweighted(problem: Problem) -> Tensor:
    """Averages batches without weighting them by their size."""
    return torch.stack([ggn(problem.with_batches([batch])).to_dense() for batch in problem.batches]).mean(0)


def ggn_of_last_batch(problem: Problem) -> Tensor:
    """Takes the last batch for the data set."""
    return ggn(problem.with_batches(problem.batches[-1:])).to_dense()


def hessian_for_ggn(problem: Problem) -> Tensor:
    """Takes the Hessian itself for the Gauss-Newton matrix."""
    return hessian(problem).to_dense()


def ggn_just_outside_rounding(problem: Problem) -> Tensor:
    """Is off by one part in 10⁹."""
    return ggn(problem).to_dense() * (1 + 2**-30)


# --- traces from the outputs ----------------------------------------------------------------------------------------


def _of_diagonal(problem: Problem, diagonal: Tensor) -> pd.Series[float]:
    import pandas as pd

    return pd.Series({block: float(diagonal[index].sum()) for block, index in problem.index.items()})


def _of_columns(
    problem: Problem, root: Callable[[Tensor], Tensor], squares: Callable[[Linearised, Tensor], Mapping[str, Tensor]]
) -> pd.Series[float]:
    """Sums the squares that every column of a root gives, by block."""
    import pandas as pd

    of_tensor, trusted = dict.fromkeys(problem.params, 0.0), rules_that_hold(problem)
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        line = linearised(problem, batch, trusted)
        for column in root(loss_root(problem, line.outputs, batch)).unbind(2):
            for name, found in squares(line, column.reshape(line.outputs.shape)).items():
                of_tensor[name] += weight * float(found.sum())
    blocks = problem.partition.blocks.items()
    return pd.Series({block: sum(of_tensor[name] for name in names) for block, names in blocks})


def traces_at_labels(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Sums the squared gradients at the labels (the empirical Fisher matrix)."""
    return _of_diagonal(problem, empirical_fisher(problem).diagonal())


def traces_of_independent_outputs(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Takes the standard deviation of every output for a column, as if outputs did not depend on one another."""
    return _of_columns(problem, lambda S: S.square().sum(2).sqrt().diag_embed(), Linearised.squared_norms)


def traces_of_summed_gradients(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Squares the gradient of the batch instead of summing the squares of its samples' gradients."""
    return _of_columns(problem, lambda S: S, Linearised.squared_norm_of_sum)


def traces_with_a_column_per_class(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Takes the symmetric root of the loss Hessian, which has a column more than it needs."""

    def symmetric(S: Tensor) -> Tensor:
        U, values, _ = torch.linalg.svd(S, full_matrices=False)
        root: Tensor = (U * values[:, None]) @ U.mT
        return root

    return _of_columns(problem, symmetric, Linearised.squared_norms)


def traces_unweighted(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Averages batches without weighting them by their size."""
    found = [exact_traces(problem.with_batches([batch]), target) for batch in problem.batches]
    return sum(found[1:], found[0]) / len(found)


def traces_shifted(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Hands every block the trace of its neighbour."""
    right = exact_traces(problem, target)
    return right.set_axis([*right.index[1:], right.index[0]])[right.index]


def traces_just_outside_rounding(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Is off by one part in 10¹¹, just outside what rounding explains."""
    return exact_traces(problem, target) * (1 + 1e-11)


# --- when tr H is not tr G ------------------------------------------------------------------------------------------

_SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU)


def traces_unasked(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Hands out tr G as tr H whatever the network."""
    return exact_traces(problem, "ggn")


def traces_asking_for_activations(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Looks for smooth activation modules and at nothing else."""
    for name, module in problem.model.named_modules():
        if isinstance(module, _SMOOTH):
            raise NotPiecewiseLinear(f"tr H and tr G differ: in module {name!r} ({type(module).__name__})")
    return exact_traces(problem, "ggn")


def traces_tolerating_a_thousandth(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Calls traces equal that differ by less than one part in 10³."""
    H, G = (_of_diagonal(problem, matrix(problem).to_dense().diagonal()) for matrix in (hessian, ggn))
    differs = ((H - G).abs() > 1e-3 * H.abs()).any()
    return exact_traces(problem, target if differs else "ggn")


def traces_always_refused(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Refuses every network, naming the right module where there is one."""
    exact_traces(problem, target)
    raise NotPiecewiseLinear("tr H and tr G may differ")


def traces_blaming_the_first_module(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Refuses rightly, but blames the first module that has parameters."""
    try:
        return exact_traces(problem, target)
    except NotPiecewiseLinear as error:
        owner = next(iter(problem.params)).rpartition(".")[0]
        raise NotPiecewiseLinear(f"in module {owner!r}") from error


# --- logit probes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongLogitProbes:
    """Wrong logit probes: the right ones, with one step spoilt."""

    num_probes: int = 10
    per_sample: bool = True
    probe: Probe = field(default_factory=Rademacher)

    def __call__(self, problem: Problem, generator: torch.Generator) -> Estimate:
        import pandas as pd

        names, trusted = list(problem.params), rules_that_hold(problem) if self.per_sample else frozenset[str]()
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
        alone, summed = line.squared_norms(u), line.squared_norm_of_sum(u)
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
        blocks = {block: total[:, index].square().sum(1).numpy() for block, index in problem.index.items()}
        return Estimate(pd.DataFrame(blocks), num_matvecs=self.num_probes)


def logit_variance_with_diagonal(grams: Iterable[Any], kurtosis: Any) -> Any:
    """Uses the normal fourth moment whatever the probe."""
    return theory.logit_probe_variance(grams, 3)


def logit_variance_of_one_sample(grams: Iterable[Any], kurtosis: Any) -> Any:
    """Divides by N instead of N²."""
    grams = list(grams)
    return len(grams) * theory.logit_probe_variance(grams, kurtosis)


def logit_variance_of_the_mean(grams: Iterable[Any], kurtosis: Any) -> Any:
    """Takes the Gram matrix of the mean sample for that of every sample."""
    grams = list(grams)
    return theory.probe_variance(sum(grams[1:], grams[0]) / len(grams), (), kurtosis) / len(grams)


def logit_variance_of_shared_probes(grams: Iterable[Any], kurtosis: Any) -> Any:
    """Gives the variance of one probe for all samples."""
    grams = list(grams)
    return theory.probe_variance(sum(grams[1:], grams[0]) / len(grams), (), kurtosis)


def logit_variance_just_outside_rounding(grams: Iterable[Any], kurtosis: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.logit_probe_variance(grams, kurtosis) * (1 + 2**-30)


# --- Gram matrices --------------------------------------------------------------------------------------------------


def ggn_norm_of_both_blocks(M_l: Any, M_m: Any) -> Any:
    """Counts G_lm and G_ml."""
    return 2 * theory.ggn_squared_norm(M_l, M_m)


def ggn_norm_of_traces(M_l: Any, M_m: Any) -> Any:
    """Multiplies the traces of the Gram matrices, as if each had rank one along the same direction."""
    return M_l.trace() * M_m.trace()


def ggn_norm_of_own_entries(M_l: Any, M_m: Any) -> Any:
    """Forgets the kernel between different samples and outputs."""
    return sum(M_l[i, i] * M_m[i, i] for i in range(M_l.shape[0]))


def ggn_norm_just_outside_rounding(M_l: Any, M_m: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.ggn_squared_norm(M_l, M_m) * (1 + 2**-30)


def coupling_unsquared(M_l: Any, M_m: Any) -> Any:
    """Takes the cosine for the square of the squared coupling."""
    return theory.ggn_coupling(M_l, M_m) ** 0.5


def coupling_centred(M_l: Any, M_m: Any) -> Any:
    """Centres the Gram matrices first, as centred kernel alignment does."""
    C = torch.eye(len(M_l), dtype=M_l.dtype) - 1 / len(M_l)
    return theory.ggn_coupling(C @ M_l @ C, C @ M_m @ C)


def coupling_by_traces(M_l: Any, M_m: Any) -> Any:
    """Divides by the traces instead of the norms."""
    return theory.ggn_squared_norm(M_l, M_m) / (M_l.trace() * M_m.trace())


def coupling_just_outside_rounding(M_l: Any, M_m: Any) -> Any:
    """Is off by one part in 10⁹."""
    return theory.ggn_coupling(M_l, M_m) * (1 + 2**-30)


# --- control variates -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongControl:
    """A wrong control variate: the right one, with one step spoilt."""

    num_probes: int = 10
    probe: Probe = field(default_factory=Rademacher)

    def __call__(
        self, problem: Problem, generator: torch.Generator | None = None, *, probes: Tensor | None = None
    ) -> Estimate:
        known, rest = self.parts(problem, generator, probes)
        return Estimate(rest.samples + known, rest.num_matvecs)

    def parts(self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None) -> tuple[Any, Estimate]:
        """What is added exactly, and the estimate of the rest."""
        rest = LayerwiseTrace(self.num_probes, self.probe, residual)(problem, generator, probes=probes)
        return exact_traces(problem, "ggn"), rest


class ControlOnTheHessian(WrongControl):
    """Adds tr G to probes on H, so that G is counted twice."""

    def parts(self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None) -> tuple[Any, Estimate]:
        rest = LayerwiseTrace(self.num_probes, self.probe)(problem, generator, probes=probes)
        return exact_traces(problem, "ggn"), rest


class NoControl(WrongControl):
    """Probes H, as if there were no control variate."""

    def parts(self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None) -> tuple[Any, Estimate]:
        return 0.0, LayerwiseTrace(self.num_probes, self.probe)(problem, generator, probes=probes)


class ResidualForgotten(WrongControl):
    """Reports tr G for tr H."""

    def parts(self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None) -> tuple[Any, Estimate]:
        known, rest = super().parts(problem, generator, probes)
        return known, Estimate(0 * rest.samples, rest.num_matvecs)


class ControlBySeparatedProbes(WrongControl):
    """Cuts the probes to one layer at a time, which drops the cross blocks of R at the price of L products."""

    def parts(self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None) -> tuple[Any, Estimate]:
        rest = BlockSeparatedTrace(self.num_probes, self.probe, residual)(problem, generator, probes=probes)
        return exact_traces(problem, "ggn"), rest


class ControlJustOutsideRounding(WrongControl):
    """Adds tr G off by one part in 10¹¹, just outside what rounding explains."""

    def parts(self, problem: Problem, generator: torch.Generator | None, probes: Tensor | None) -> tuple[Any, Estimate]:
        known, rest = super().parts(problem, generator, probes)
        return known * (1 + 1e-11), rest
