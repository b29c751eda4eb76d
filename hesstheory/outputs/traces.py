"""What can be known without a probe in parameter space? tr G_ll = (1/N) Σ_n ‖S_nᵀ J_nl‖², from the outputs (claim G4).

J_nl is the Jacobian of the outputs of sample n in the parameters of block l, S_n S_nᵀ the Hessian of its loss in the
outputs. Every column of S costs one backward pass and the norms of per-sample gradients, which most layers give from
their inputs and the slopes at their outputs (Goodfellow 2015; Li, Tramèr, Liang and Hashimoto 2022, ghost norms).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hesstheory.autograd.graph import graph_values
from hesstheory.autograd.rows import apart_by_graph
from hesstheory.outputs.loss_root import cheapest_root
from hesstheory.outputs.per_sample import Linearised, first_samples, linearised
from hesstheory.outputs.premise import check_no_bend, check_piecewise_linear
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import free_memory
from hesstheory.run.precision import full_precision

if TYPE_CHECKING:
    import pandas as pd


_LITTLE = 16 * 2**20  # bytes that are there without a look

_KEPT = 3  # times the values of the forward graph that are held at most: these, the slopes, patches and Gram matrices


@full_precision()
def exact_traces(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Exact traces by block, tr G_ll = Σ_b (n_b/N) Σ_n ‖S_nᵀ J_nl‖², in as many backward passes as S has columns.

    With `target="hessian"` the premise that tr H_ll = tr G_ll is verified on the graph of every batch and by second
    derivatives (claims G1, G3); `target="ggn"` needs no premise. The name of the Series says which matrix it is. TF32,
    PyTorch's default for convolutions on a GPU, is off meanwhile: its three digits would not be exact.

    Raises `NotPiecewiseLinear`, which names the module where the premise is not known to hold, for "hessian" alone;
    for both `NotConvex` where the loss is not convex in the outputs, `NotTwiceDifferentiable` where it has no second
    derivative, ValueError where it couples samples and MemoryError where a single sample is too large.
    """
    of_tensor: dict[str, float] = {}
    for weight, _, found in _squared_norms(problem, target):
        sums = (
            torch.stack(list(found.values())).sum(1, dtype=torch.float64).tolist() if found else []
        )
        for name, square in zip(found, sums, strict=True):
            of_tensor[name] = of_tensor.get(name, 0.0) + weight * square
    return _by_block(problem, of_tensor, f"tr {'H' if target == 'hessian' else 'G'}")


@full_precision()
def sample_traces(problem: Problem, target: str = "hessian") -> pd.DataFrame:
    """Exact traces by sample and block, N times what each sample adds to `exact_traces`, at the cost of these.

    Samples are numbered through the batches; the mean over them is `exact_traces`. Where the loss is a plain mean they
    are the traces of the loss of every sample alone, and what varies from one to the next is the noise that probes
    cannot lower. `target` and errors are those of `exact_traces`; ValueError where an output row is no sample.
    """
    import pandas as pd

    parts = []
    for weight, rows, found in _squared_norms(problem, target):
        if rows != (size := round(weight * problem.num_samples)):
            raise ValueError(
                f"the model returns {rows} rows for {size} samples: let it return one for each, such as (N, T, C)"
            )
        of_block = torch.zeros(rows, len(problem.partition.blocks), dtype=torch.float64)
        for column, tensors in zip(
            of_block.unbind(1), problem.partition.blocks.values(), strict=True
        ):
            column += sum(rows * found[name].double().cpu() for name in tensors if name in found)
        parts.append(of_block)
    columns = pd.Index(list(problem.partition.blocks), dtype=object)
    return pd.DataFrame(torch.cat(parts).numpy(), columns=columns).rename_axis("sample")


def _squared_norms(problem: Problem, target: str) -> Iterator[tuple[float, int, dict[str, Tensor]]]:
    """Of every batch its weight, the number of its samples, and their shares of its mean traces by tensor."""
    if target not in ("hessian", "ggn"):
        raise ValueError(f"target is {target!r}: pass 'hessian' or 'ggn'")
    few = first_samples(problem)
    problem, trusted = fitted(problem, few), few.trusted()
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        line = linearised(problem, batch, trusted)
        if target == "hessian":
            check_piecewise_linear(line)
        columns = cheapest_root(
            problem, line.outputs, batch, no_penalty=target == "hessian"
        ).movedim(2, 0)
        yield (
            weight,
            len(line.outputs),
            line.squared_norms_of_all(columns.reshape(-1, *line.outputs.shape)),
        )
    if target == "hessian":
        check_no_bend(few)


def fitted(problem: Problem, few: Linearised | None = None) -> Problem:
    """The same risk in batches that half of the free memory holds together with what a trace keeps of them.

    Judged by the first samples of the largest batch: all samples are taken to be of their size. Raises MemoryError,
    with the bytes, where a single sample is too large.
    """
    few = first_samples(problem) if few is None else few
    one = few.outputs[:1]

    def bytes_of(values: int) -> int:
        """Of so many values of a graph, and of the loss Hessian of a sample in its outputs with its root."""
        return _KEPT * (problem.dtype.itemsize * max(values, 1) + 8 * one.numel() ** 2)

    at_most = bytes_of(few.pushed_values) * max(problem.batch_sizes)
    if at_most <= _LITTLE or at_most <= (budget := free_memory(problem.device) // 2):
        return problem
    try:
        one, two = (head.outputs(head.batches[0]) for head in map(problem.largest().head, (1, 2)))
    except (RuntimeError, ValueError, IndexError):  # a model for whole batches alone cannot be cut
        return problem
    if one.numel() == two.numel():
        return problem
    # A second sample adds its own values; what stays are the parameters, which lie there already.
    of_sample = bytes_of(graph_values(two) - graph_values(one))
    if of_sample > budget:
        raise MemoryError(
            f"a single sample takes about {of_sample:,} bytes and {budget:,} may be used: free memory, or "
            "use smaller inputs or a smaller dtype"
        )
    size = budget // of_sample
    if size >= max(problem.batch_sizes):
        return problem
    parts = problem.rebatched(size)
    if not apart_by_graph(few.outputs):
        _check_same_in_parts(problem, parts)
    return parts


def _check_same_in_parts(problem: Problem, parts: Problem) -> None:
    """Raises MemoryError where smaller batches have other outputs."""
    with torch.no_grad():
        whole, cut = (
            torch.cat([each.outputs(batch) for batch in each.batches]) for each in (problem, parts)
        )
    if not bool(
        ((whole - cut).abs() <= torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max()).all()
    ):
        raise MemoryError(
            f"batches of {max(problem.batch_sizes)} samples take too much memory, and cut into parts of "
            f"{max(parts.batch_sizes)} the model gives other outputs: free memory, or use a smaller dtype"
        )


def _by_block(problem: Problem, of_tensor: dict[str, float], name: str) -> pd.Series[float]:
    import pandas as pd

    blocks = problem.partition.blocks
    sums = [sum(of_tensor.get(t, 0.0) for t in tensors) for tensors in blocks.values()]
    return pd.Series(np.array(sums), pd.Index(list(blocks), dtype=object), name=name)
