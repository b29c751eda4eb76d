"""Exact traces from the outputs, without a probe: tr G_ll = (1/N) Σ_n ‖S_nᵀ J_nl‖² (claim G4).

J_nl is the Jacobian of the outputs of sample n in the parameters of block l. S_n S_nᵀ is the
Hessian of its loss in the outputs. Every column of S costs one backward pass and the norms of
per-sample gradients. Most layers give these norms from their inputs and the slopes at their
outputs (Goodfellow 2015; Li, Tramèr, Liang and Hashimoto 2022, ghost norms).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesstheory.autograd.graph import differentiating
from hesstheory.curvature.matrix import MatrixOf, ggn, hessian
from hesstheory.outputs.fit import fitted
from hesstheory.outputs.loss_root import cheapest_root
from hesstheory.outputs.per_sample import Linearised, first_samples, linearised
from hesstheory.outputs.premise import check_no_bend, check_piecewise_linear
from hesstheory.outputs.separable import separable_root
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate
from hesstheory.run.precision import full_precision

if TYPE_CHECKING:
    import pandas as pd

# Backward passes beyond which exact traces are refused: hours on the smallest networks.
_MOST_COLUMNS = 2**14

# Bytes of columns that are made at once.
_COLUMN_BYTES = 64 * 2**20

# `hessian` or `ggn`; their names as strings are the older spelling.
Target = MatrixOf | str


@full_precision()
@differentiating()
def exact_traces(
    problem: Problem, matrix: Target | None = None, *, target: Target | None = None
) -> Estimate:
    """Exact traces by block, tr G_ll = Σ_b (n_b/N) Σ_n ‖S_nᵀ J_nl‖², without probes.

    It costs as many backward passes as S has columns: C − 1 for cross-entropy with C classes. TF32
    is off meanwhile. It is PyTorch's default for convolutions on a GPU and holds three digits.

    Parameters
    ----------
    problem
        Its loss must be convex in the outputs.
    matrix
        `hessian` (default): tr H_ll, which is tr G_ll where the outputs are piecewise linear in
        every single parameter (claims G1, G3). The graph of every batch and second derivatives
        are checked for that. `ggn`: tr G_ll of any network.
    target
        The older spelling of `matrix`: `"hessian"` or `"ggn"`.

    Returns
    -------
    Estimate
        Standard errors are zero. `name` says which matrix it is, `num_matvecs` counts backward
        passes through all batches.

    Raises
    ------
    NotPiecewiseLinear
        The premise is not known to hold, in the module that is named; for `hessian` alone.
    NotConvex
        The loss is not convex in the outputs.
    NotTwiceDifferentiable
        The loss has no second derivative.
    ValueError
        The loss couples samples, or `matrix` is another matrix.
    MemoryError
        A single sample is too large.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import exact_traces, hessian, zoo
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> traces = exact_traces(problem)
    >>> dense = hessian(problem).trace_by_block()
    >>> bool(((traces.value - dense).abs() < 1e-12).all())
    True
    >>> traces.name, traces.num_matvecs
    ('tr H', 2)
    """
    of_hessian = _is_hessian(matrix, target)
    of_tensor: dict[str, float] = {}
    num_columns = 0
    for part in _parts(problem, of_hessian):
        num_columns = max(num_columns, part.num_columns)
        for name, square in part.sums().items():
            of_tensor[name] = of_tensor.get(name, 0.0) + part.weight * square
    blocks = {
        block: sum(of_tensor.get(name, 0.0) for name in names)
        for block, names in problem.partition.blocks.items()
    }
    title = problem.named("tr H" if of_hessian else "tr G")
    return Estimate.exact(blocks, num_columns, title or "")


@full_precision()
@differentiating()
def sample_traces(
    problem: Problem, matrix: Target | None = None, *, target: Target | None = None
) -> pd.DataFrame:
    """Exact traces by sample and block: N times what each sample adds to `exact_traces`.

    Where the loss is a plain mean, a row holds the traces of that sample's loss alone. Probes
    cannot lower the noise from one row to the next. The cost is that of `exact_traces`.

    Parameters
    ----------
    problem, matrix, target
        As in `exact_traces`.

    Returns
    -------
    DataFrame
        A row per sample, numbered through the batches, and a column per block. Their mean is
        `exact_traces`. Where the samples of a batch cannot be counted, rows of the outputs count.

    Raises
    ------
    ValueError
        A row of the outputs is no sample, or as in `exact_traces`.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import exact_traces, ggn, sample_traces, zoo
    >>> problem = zoo.problem("tiny_mlp", torch.Generator().manual_seed(0), num_samples=8)
    >>> table = sample_traces(problem, matrix=ggn)
    >>> len(table)
    8
    >>> gap = table.mean() - exact_traces(problem, matrix=ggn).value
    >>> bool((gap.abs() < 1e-12).all())
    True
    """
    import pandas as pd

    parts = list(_parts(problem, _is_hessian(matrix, target)))
    for part in parts:
        if part.num_samples not in (part.num_rows, None):
            raise ValueError(
                f"the model returns {part.num_rows} rows for {part.num_samples} samples: let it "
                "return one for each, such as (N, T, C)"
            )
    N = sum(part.num_rows for part in parts)
    tables = [part.by_sample(problem, N) for part in parts]
    columns = pd.Index(list(problem.partition.blocks), dtype=object)
    return pd.DataFrame(torch.cat(tables).numpy(), columns=columns).rename_axis("sample")


def _is_hessian(matrix: Target | None, target: Target | None) -> bool:
    """Whether H is asked for, not G; ValueError where it is neither, or both."""
    asked = {_named(spelling) for spelling in (matrix, target) if spelling is not None}
    if len(asked) > 1:
        raise ValueError(
            f"matrix is {matrix!r} and target is {target!r}: pass matrix= alone, the one you mean"
        )
    return asked != {"ggn"}


def _named(spelling: Target) -> str:
    """The name of `hessian` or `ggn`."""
    for matrix in (hessian, ggn):
        if spelling in (matrix, matrix.__name__):
            return matrix.__name__
    shown = getattr(spelling, "__name__", repr(spelling))
    raise ValueError(
        f"matrix is {shown}: pass matrix=hessian or matrix=ggn (as target=, 'hessian' or 'ggn'); "
        "traces of other matrices need an estimator, such as LayerwiseTrace"
    )


@dataclass(frozen=True)
class _Part:
    """What one batch adds: its weight in the risk, and each row's share of its mean traces."""

    weight: float
    num_samples: int | None
    num_rows: int
    num_columns: int
    of_tensor: dict[str, Tensor]

    def sums(self) -> dict[str, float]:
        """Over the rows, by tensor."""
        if not self.of_tensor:
            return {}
        # One transfer from the device for all tensors.
        sums = torch.stack(list(self.of_tensor.values())).sum(1, dtype=torch.float64).tolist()
        return dict(zip(self.of_tensor, sums, strict=True))

    def by_sample(self, problem: Problem, N: int) -> Tensor:
        """The traces of every row by itself, as one of N: rows × blocks."""
        blocks = problem.partition.blocks.values()
        share = self.weight * N
        table = torch.zeros(self.num_rows, len(blocks), dtype=torch.float64)
        for column, names in zip(table.unbind(1), blocks, strict=True):
            for name in names:
                if name in self.of_tensor:
                    column += share * self.of_tensor[name].double().cpu()
        return table


def _parts(problem: Problem, of_hessian: bool) -> Iterator[_Part]:
    """Every batch in turn, the premise checked for the Hessian."""
    few = first_samples(problem)
    problem = fitted(problem, few)
    trusted = few.trusted()
    parts = zip(problem.weights, problem.samples_of_batch, problem.batches, strict=True)
    for weight, size, batch in parts:
        line = linearised(problem, batch, trusted)
        if of_hessian:
            check_piecewise_linear(line)
        num_columns, squares = _squares(line, of_hessian)
        yield _Part(weight, size, len(line.outputs), num_columns, squares)
    if of_hessian:
        check_no_bend(few)


def _squares(line: Linearised, of_hessian: bool) -> tuple[int, dict[str, Tensor]]:
    """Columns of the root of one batch, and ‖S_nᵀJ_n‖² of every sample and tensor."""
    root = separable_root(line.problem, line.outputs, line.batch, no_penalty=of_hessian)
    if root is None:
        S = cheapest_root(line.problem, line.outputs, line.batch, no_penalty=of_hessian)
        columns = S.movedim(2, 0).reshape(-1, *line.outputs.shape)
        return len(columns), line.squared_norms_of_all(columns)
    if root.num_columns > _MOST_COLUMNS:
        raise ValueError(
            f"the outputs of a sample are {tuple(line.outputs.shape[1:])}: exact traces would cost "
            f"{root.num_columns:,} backward passes through every batch; use "
            "LogitProbeTrace(num_probes), which costs one for each probe"
        )
    found = dict[str, Tensor]()
    size = max(_COLUMN_BYTES // line.outputs.nbytes, 1)
    for start in range(0, root.num_columns, size):
        part = slice(start, min(start + size, root.num_columns))
        for name, squares in line.squared_norms_of_all(root.columns(part)).items():
            found[name] = found[name] + squares if name in found else squares
    return root.num_columns, found
