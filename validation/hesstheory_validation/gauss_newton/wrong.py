"""Wrong Gauss-Newton matrices and exact traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hesstheory.curvature.matrix import MatrixOf, ggn, hessian
from hesstheory.outputs.loss_root import loss_root
from hesstheory.outputs.per_sample import Linearised, linearised, rules_that_hold
from hesstheory.outputs.premise import NotPiecewiseLinear
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd


def output_jacobian(problem: Problem, outputs: Tensor) -> Tensor:
    """Derivatives of every output of every sample in all parameters, samples × outputs × params."""
    eye = torch.eye(outputs.numel(), dtype=outputs.dtype).reshape(-1, *outputs.shape)
    params = list(problem.params.values())
    rows = torch.autograd.grad(
        outputs,
        params,
        eye,
        retain_graph=True,
        is_grads_batched=True,
        allow_unused=True,
        materialize_grads=True,
    )
    J = torch.cat([row.reshape(len(eye), -1) for row in rows], dim=1)
    return J.reshape(len(outputs), -1, problem.num_params)


def _of_outputs(problem: Problem, root: Callable[[Tensor, Tensor, Batch], Tensor]) -> Tensor:
    """Σ_n J_nᵀ W_n W_nᵀ J_n for a root W that is made from the right one, the outputs and the
    batch."""
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
    return torch.stack(
        [ggn(problem.with_batches([batch])).to_dense() for batch in problem.batches]
    ).mean(0)


def ggn_of_last_batch(problem: Problem) -> Tensor:
    """Takes the last batch for the data set."""
    return ggn(problem.with_batches(problem.batches[-1:])).to_dense()


def hessian_for_ggn(problem: Problem) -> Tensor:
    """Takes the Hessian itself for the Gauss-Newton matrix."""
    return hessian(problem).to_dense()


def ggn_just_outside_rounding(problem: Problem) -> Tensor:
    """Is off by one part in 10⁹."""
    return ggn(problem).to_dense() * (1 + 2**-30)


def _of_diagonal(problem: Problem, diagonal: Tensor) -> pd.Series[float]:
    import pandas as pd

    return pd.Series(
        {block: float(diagonal[index].sum()) for block, index in problem.index.items()}
    )


def _of_columns(
    problem: Problem,
    root: Callable[[Tensor], Tensor],
    squares: Callable[[Linearised, Tensor], Mapping[str, Tensor]],
) -> Estimate:
    """Sums the squares that every column of a root gives, by block."""
    of_tensor = dict.fromkeys(problem.params, 0.0)
    trusted = rules_that_hold(problem)
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        line = linearised(problem, batch, trusted)
        for column in root(loss_root(problem, line.outputs, batch)).unbind(2):
            for name, found in squares(line, column.reshape(line.outputs.shape)).items():
                of_tensor[name] += weight * float(found.sum())
    blocks = problem.partition.blocks.items()
    return Estimate.exact({block: sum(of_tensor[t] for t in names) for block, names in blocks})


def traces_at_labels(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Sums the squared gradients at the labels (the empirical Fisher matrix)."""
    return Estimate.exact(_of_diagonal(problem, empirical_fisher(problem).diagonal()))


def traces_of_independent_outputs(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Takes the standard deviation of every output for a column, as if outputs did not depend on
    one another."""
    return _of_columns(
        problem, lambda S: S.square().sum(2).sqrt().diag_embed(), Linearised.squared_norms
    )


def traces_of_summed_gradients(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Squares the gradient of the batch instead of summing the squares of its samples'
    gradients."""
    return _of_columns(problem, lambda S: S, Linearised.squared_norm_of_sum)


def traces_with_a_column_per_class(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Takes the symmetric root of the loss Hessian, which has a column more than it needs."""

    def symmetric(S: Tensor) -> Tensor:
        U, values, _ = torch.linalg.svd(S, full_matrices=False)
        root: Tensor = (U * values[:, None]) @ U.mT
        return root

    return _of_columns(problem, symmetric, Linearised.squared_norms)


def traces_unweighted(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Averages batches without weighting them by their size."""
    parts = [problem.with_batches([batch]) for batch in problem.batches]
    found = [exact_traces(part, matrix=matrix).value for part in parts]
    return Estimate.exact(sum(found[1:], found[0]) / len(found))


def traces_shifted(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Hands every block the trace of its neighbour."""
    right = exact_traces(problem, matrix=matrix).value
    return Estimate.exact(right.set_axis([*right.index[1:], right.index[0]])[right.index])


def traces_just_outside_rounding(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Is off by one part in 10¹¹, just outside what rounding explains."""
    return Estimate.exact(exact_traces(problem, matrix=matrix).value * (1 + 1e-11))


_SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU)


def traces_unasked(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Hands out tr G as tr H whatever the network."""
    return exact_traces(problem, matrix=ggn)


def traces_asking_for_activations(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Looks for smooth activation modules and at nothing else."""
    for name, module in problem.model.named_modules():
        if isinstance(module, _SMOOTH):
            raise NotPiecewiseLinear(
                f"tr H and tr G differ: in module {name!r} ({type(module).__name__})"
            )
    return exact_traces(problem, matrix=ggn)


def traces_tolerating_a_thousandth(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Calls traces equal that differ by less than one part in 10³."""
    H, G = (_of_diagonal(problem, each(problem).to_dense().diagonal()) for each in (hessian, ggn))
    differs = ((H - G).abs() > 1e-3 * H.abs()).any()
    return exact_traces(problem, matrix=matrix if differs else ggn)


def traces_always_refused(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Refuses every network, naming the right module where there is one."""
    exact_traces(problem, matrix=matrix)
    raise NotPiecewiseLinear("tr H and tr G may differ")


def traces_blaming_the_first_module(problem: Problem, matrix: MatrixOf = hessian) -> Estimate:
    """Refuses rightly, but blames the first module that has parameters."""
    try:
        return exact_traces(problem, matrix=matrix)
    except NotPiecewiseLinear as error:
        owner = next(iter(problem.params)).rpartition(".")[0]
        raise NotPiecewiseLinear(f"in module {owner!r}") from error
