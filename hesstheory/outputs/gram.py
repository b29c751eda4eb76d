"""Gram matrices of the rows of G = BᵀB, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.autograd.graph import differentiating
from hesstheory.curvature.limits import check_finite
from hesstheory.curvature.linearised import checked_outputs
from hesstheory.outputs.loss_root import loss_root
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import free_memory
from hesstheory.run.precision import full_precision
from hesstheory.theory.outputs import ggn_squared_norm

# Parameters whose products are added up in the dtype of the model before they go to float64: more
# would lose digits in float32, fewer would pay for more conversions.
_GRAM_COLUMNS = 2**13


@dataclass(frozen=True)
class DualGram:
    """The dual Gram matrices M_l = B_l B_lᵀ of all blocks, and what else the rows B_l gave.

    Parameters
    ----------
    blocks
        Names, in the order of everything below.
    grams
        M_l in float64. A row carries 1/N, N samples.
    projections
        B_l z_l for the probes that were asked for.
    diagonal_norms2
        ‖diag G_ll‖².
    sample_of_row
        Which sample a row belongs to, numbered through the batches.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import dual_gram, exact_traces, ggn, zoo
    >>> problem = zoo.problem("tiny_mlp", torch.Generator().manual_seed(0), num_samples=8)
    >>> gram = dual_gram(problem)
    >>> traces = exact_traces(problem, matrix=ggn).value.to_numpy()
    >>> bool((abs(gram.traces.numpy() - traces) < 1e-12).all())
    True
    """

    blocks: tuple[str, ...]
    grams: Float[Tensor, "blocks rows rows"]
    projections: Float[Tensor, "blocks rows probes"]
    diagonal_norms2: Float[Tensor, " blocks"]
    sample_of_row: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        """N."""
        return max(self.sample_of_row) + 1

    @property
    def traces(self) -> Float[Tensor, " blocks"]:
        """tr G_ll = tr M_l."""
        return self.grams.diagonal(dim1=1, dim2=2).sum(1)

    @property
    def sample_traces(self) -> Float[Tensor, "blocks samples"]:
        """Traces of the samples' own matrices, whose mean over the N samples is tr G_ll."""
        of_row = self.grams.diagonal(dim1=1, dim2=2)
        empty = of_row.new_zeros(len(of_row), self.num_samples)
        return self.num_samples * empty.index_add(1, self._rows_of_samples(), of_row)

    @property
    def norms2(self) -> Float[Tensor, " blocks"]:
        """‖G_ll‖² = ‖M_l‖²."""
        norms2: Tensor = torch.stack([ggn_squared_norm(M, M) for M in self.grams])
        return norms2

    def forms(self) -> Float[Tensor, "probes blocks"]:
        """z_lᵀ(Gz)_l of the probes: ⟨B_l z_l, Σ_m B_m z_m⟩."""
        return (self.projections * self.projections.sum(0)).sum(1).mT

    def squared_product_norms(self) -> Float[Tensor, "probes blocks"]:
        """‖(Gz)_l‖² of the probes: wᵀM_l w with w = Σ_m B_m z_m."""
        w = self.projections.sum(0)
        return torch.einsum("lrs,rk,sk->kl", self.grams, w, w)

    def of_samples(self) -> Iterator[Float[Tensor, "blocks columns columns"]]:
        """S_nᵀJ_nl J_nlᵀS_n of every sample, without 1/N: what logit probes see (claim G5)."""
        rows = self._rows_of_samples()
        for n in range(self.num_samples):
            own = (rows == n).nonzero()[:, 0]
            yield self.grams[:, own[:, None], own[None, :]] * self.num_samples

    def _rows_of_samples(self) -> Tensor:
        """`sample_of_row` where the matrices lie."""
        return torch.tensor(self.sample_of_row, device=self.grams.device)


@full_precision()
@differentiating()
def dual_gram(
    problem: Problem,
    probes: Float[Tensor, "params probes"] | None = None,
    *,
    samples: range | None = None,
    total: Callable[[Tensor], Tensor] = lambda part: part,
    budget: int | None = None,
) -> DualGram:
    """The dual Gram matrices, from one backward pass for every sample and column of its root.

    The model must take samples one by one and treat each by itself, as in eval mode.

    Parameters
    ----------
    problem
        Its loss must be convex in the outputs.
    probes
        P×K, in the order of `problem.params`, if `projections` are wanted.
    samples
        The samples whose rows this process computes, by default all.
    total
        Adds up over the processes.
    budget
        Bytes that rows may take, by default half of the free memory. Rows of as many blocks as it
        holds are there at once; if that is not all, the passes are repeated.

    Returns
    -------
    DualGram
        An NC×NC matrix for every block (R×R, R the number of rows), in float64.

    Raises
    ------
    MemoryError
        The rows of one block do not fit.
    ValueError
        A sample alone has other outputs than in its batch, or the loss is none for this, as in
        `exact_traces`.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import dual_gram, ggn, zoo
    >>> problem = zoo.problem("tiny_mlp", torch.Generator().manual_seed(0), num_samples=8)
    >>> norms = ggn(problem).block_norms().to_numpy().diagonal()
    >>> bool((abs(dual_gram(problem).norms2.numpy() - norms**2) < 1e-12).all())
    True
    """
    _check_arguments(problem, probes)
    outputs, roots = weighted_roots(problem)
    owners = tuple(n for n, S in enumerate(roots) for _ in range(S.shape[1]))
    budget = free_memory(problem.device) // 2 if budget is None else budget
    grams = list[Tensor]()
    projections = list[Tensor]()
    diagonals = list[Tensor]()
    for blocks in _groups(problem, len(owners), budget):
        tensors = [name for block in blocks for name in problem.partition.blocks[block]]
        found = _rows(problem, tensors, outputs, roots, samples)
        rows = dict(zip(tensors, found, strict=True))
        del found  # so that a block's rows go as soon as its matrix is there
        for block in blocks:
            names = problem.partition.blocks[block]
            of_block = [total(rows.pop(name)) for name in names]
            gram, diagonal = gram_of_rows(of_block)
            check_finite(gram)
            grams.append(gram)
            diagonals.append(diagonal)
            projections.append(_projected(problem, of_block, names, probes))
    return DualGram(
        tuple(problem.partition.blocks),
        torch.stack(grams),
        torch.stack(projections),
        torch.stack(diagonals),
        owners,
    )


def _check_arguments(problem: object, probes: Tensor | None) -> None:
    """Raises TypeError for what is no problem, ValueError for probes of another shape."""
    if not isinstance(problem, Problem):
        raise TypeError(
            f"pass a Problem, not a {type(problem).__name__}: Problem(model, loss_fn, batches)"
        )
    if probes is not None and (probes.ndim != 2 or len(probes) != problem.num_params):
        raise ValueError(
            f"the probes are {tuple(probes.shape)}: pass {problem.num_params} rows and a column "
            "for each"
        )


def weighted_roots(problem: Problem) -> tuple[list[Tensor], list[Float[Tensor, "outputs rank"]]]:
    """Outputs of every sample, and its root times the square root of its weight in the risk.

    Within a batch the loss is a mean, so that `loss_root` carries 1/n_b.
    """
    with torch.no_grad():
        outputs = [checked_outputs(problem.outputs(batch)) for batch in problem.batches]
    rows = sum(map(len, outputs))
    if rows != problem.num_samples:
        raise ValueError(
            f"the model returns {rows} rows for {problem.num_samples} samples: let it return one "
            "for each"
        )
    roots = [
        math.sqrt(weight) * root
        for weight, out, batch in zip(problem.weights, outputs, problem.batches, strict=True)
        for root in loss_root(problem, out, batch)
    ]
    return [row for out in outputs for row in out], roots


def _groups(problem: Problem, num_rows: int, budget: int) -> Iterator[list[str]]:
    """Blocks in their order, in groups whose rows fit into the budget."""
    bytes_of_row = problem.dtype.itemsize * num_rows
    group = list[str]()
    size = 0
    for block, names in problem.partition.blocks.items():
        needed = bytes_of_row * sum(problem.params[name].numel() for name in names)
        if needed > budget:
            raise MemoryError(
                f"the {num_rows} rows of {block} take {needed:,} bytes and {budget:,} may be "
                "used: use fewer samples"
            )
        if size + needed > budget:
            yield group
            group = []
            size = 0
        group = [*group, block]
        size += needed
    yield group


def _rows(
    problem: Problem,
    tensors: Sequence[str],
    in_batch: Sequence[Tensor],
    roots: Sequence[Tensor],
    samples: range | None,
) -> list[Float[Tensor, "rows entries"]]:
    """Rows of the given tensors, those of other samples than `samples` zero."""
    params = [problem.params[name] for name in tensors]
    num_rows = sum(S.shape[1] for S in roots)
    rows = [p.new_zeros(num_rows, p.numel()) for p in params]
    first = 0
    for n, (alone, S) in enumerate(zip(problem.samples(), roots, strict=True)):
        if samples is None or n in samples:
            with differentiating():
                outputs = _outputs_alone(alone, in_batch[n], n)
                _fill(rows, first, outputs, S, params)
        first += S.shape[1]
    return rows


def _fill(
    rows: Sequence[Tensor], first: int, outputs: Tensor, S: Tensor, params: Sequence[Tensor]
) -> None:
    """Writes the rows of one sample, one backward pass for every column of its root."""
    for r, column in enumerate(S.unbind(1), start=first):
        pulled = torch.autograd.grad(
            outputs, params, column.reshape(outputs.shape), retain_graph=True, allow_unused=True
        )
        for row, part in zip(rows, pulled, strict=True):
            if part is not None:
                row[r] = part.reshape(-1)


def _outputs_alone(problem: Problem, in_batch: Tensor, number: int) -> Tensor:
    """What a sample gives by itself, which must be what it gives in its batch, but for rounding."""
    cure = (
        "its samples have no matrices of their own; use hessian(problem) or ggn(problem) with an "
        "estimator"
    )
    try:
        outputs: Tensor = problem.outputs(problem.batches[0])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"the model does not take sample {number} alone ({error}): {cure}"
        ) from error
    alone = outputs.detach()
    # Half of the digits: kernels of another size add up in another order.
    bound = torch.finfo(outputs.dtype).eps ** 0.5 * in_batch.abs().max()
    has_same_shape = alone.shape == (1, *in_batch.shape)
    if not has_same_shape or not bool(((alone[0] - in_batch).abs() <= bound).all()):
        raise ValueError(
            f"the model gives sample {number} other outputs in its batch than alone: {cure}"
        )
    return outputs


def gram_of_rows(rows: Sequence[Float[Tensor, "rows entries"]]) -> tuple[Tensor, Tensor]:
    """M_l and ‖diag G_ll‖² of one block, in float64."""
    R = len(rows[0])
    gram = rows[0].new_zeros(R, R, dtype=torch.float64)
    diagonal = rows[0].new_zeros((), dtype=torch.float64)
    for part in (chunk for row in rows for chunk in torch.split(row, _GRAM_COLUMNS, dim=1)):
        gram += (part @ part.mT).double()
        diagonal += part.square().sum(0).double().square().sum()
    return (gram + gram.mT) / 2, diagonal


def _projected(
    problem: Problem, rows: Sequence[Tensor], names: Sequence[str], probes: Tensor | None
) -> Float[Tensor, "rows probes"]:
    """B_l z_l of one block, in float64."""
    if probes is None:
        return rows[0].new_zeros(len(rows[0]), 0, dtype=torch.float64)
    parts = [
        (row @ probes[slice(*problem.offsets[n])].to(row)).double()
        for row, n in zip(rows, names, strict=True)
    ]
    return torch.stack(parts).sum(0)
