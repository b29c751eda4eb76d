"""What is the matrix? Operators for the Hessian, the Gauss-Newton matrix and their difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Real
from torch import Tensor

from hesstheory.autograd.graph import second_derivatives
from hesstheory.autograd.products import MAX_CHUNK, side_by_side, unit_tangents
from hesstheory.curvature.limits import check_dense_fits, check_finite, checked_columns
from hesstheory.curvature.linearised import (
    Linearise,
    Push,
    linearised_ggn,
    linearised_hessian,
    linearised_residual,
)
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import keep_freed_memory

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Curvature:
    """A symmetric P×P matrix Σ_i c_i M_i of a problem, known through its products.

    `C @ V` takes a vector or a P×K matrix in the dtype and on the device of the model; `A - B` subtracts. Exact
    matrices (`to_dense`, `block`, `block_norms`) are float64 whatever the model, in the order of `problem.params`.
    """

    problem: Problem
    terms: tuple[tuple[float, Linearise], ...]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.problem.num_params, self.problem.num_params)

    def __repr__(self) -> str:
        signs = " ".join(
            f"{coefficient:+g}·{getattr(term, '__name__', term)}"
            for coefficient, term in self.terms
        )
        return f"Curvature({signs.replace('_linearised_', '')}, {self.problem!r})"

    def __sub__(self, other: Curvature) -> Curvature:
        return self + Curvature(other.problem, tuple((-c, term) for c, term in other.terms))

    def __add__(self, other: Curvature) -> Curvature:
        if other.problem is not self.problem:
            raise ValueError(
                "the two matrices belong to different problems: build both from the same Problem object"
            )
        return Curvature(self.problem, self.terms + other.terms)

    def __matmul__(self, V: Float[Tensor, " params"] | Float[Tensor, "params columns"]) -> Tensor:
        """Product with one vector or with many columns; one graph per batch serves all columns."""
        columns = checked_columns(self.problem, V, copies=2)
        params, out = list(self.problem.params.values()), torch.zeros_like(columns)
        for weight, push in self.pushes():
            for chunk in push.chunks(len(columns), self.problem.num_params):
                rows = push(self.tangents(columns[chunk]), range(len(params)))
                out[chunk] += weight * side_by_side(rows, params, len(out[chunk]))
        check_finite(out)
        return out[0] if V.ndim == 1 else out.mT

    def quadratic_forms(self, Z: Real[Tensor, "params probes"]) -> Float[Tensor, "probes blocks"]:
        """q_l = z_lᵀ(Cz)_l of every probe and block, in float64, without holding a product for longer than a chunk.

        Signs may come as int8, which is cast chunk by chunk.
        """
        everything = range(len(self.problem.params))
        return self._forms(Z, [everything])

    def separated_forms(self, Z: Real[Tensor, "params probes"]) -> Float[Tensor, "probes blocks"]:
        """q_l = z_lᵀ C_ll z_l of every probe and block: a product for each block, through what depends on it alone."""
        order = {name: j for j, name in enumerate(self.problem.params)}
        return self._forms(
            Z, [[order[name] for name in names] for names in self.problem.partition.blocks.values()]
        )

    def _forms(self, Z: Tensor, parts: Sequence[Sequence[int]]) -> Tensor:
        """Forms by block, from a product for each part of the tensors, with the probe cut to that part."""
        problem, columns = (
            self.problem,
            checked_columns(self.problem, Z, (self.problem.dtype, torch.int8)),
        )
        of_tensor = columns.new_zeros(len(columns), len(problem.params), dtype=torch.float64)
        for weight, push in self.pushes():
            for chunk in push.chunks(len(columns), problem.num_params):
                tangents = self.tangents(columns[chunk])
                for part in parts:
                    only = [tangent if j in part else None for j, tangent in enumerate(tangents)]
                    for j, row in zip(part, push(only, part), strict=True):
                        if row is not None:
                            form = (
                                (row * tangents[j])
                                .reshape(len(row), -1)
                                .sum(1, dtype=torch.float64)
                            )
                            of_tensor[chunk, j] += weight * form
        check_finite(of_tensor)
        return of_tensor @ _membership(problem).to(of_tensor)

    def to_dense(self) -> Float[Tensor, "params params"]:
        """The matrix itself in float64; raises MemoryError, with the bytes, where it cannot be held."""
        problem = self.problem
        check_dense_fits(problem.num_params, problem.device)
        if problem.dtype != torch.float64:
            return Curvature(problem.double(), self.terms).to_dense()
        tensors = range(len(problem.params))
        # Symmetric: rows of tensor i need only the columns from i on. Few parameters: one chunk beats the saving.
        dense = next(iter(problem.params.values())).new_zeros(self.shape)
        if problem.num_params <= MAX_CHUNK:
            self._add_rows(dense, tensors, tensors)
        else:
            for i in tensors:
                start, stop = list(problem.offsets.values())[i]
                self._add_rows(dense[start:stop, start:], [i], tensors[i:])
                dense[stop:, start:stop] = dense[start:stop, stop:].mT
        check_finite(dense)
        return dense

    def block(self, l: str, m: str) -> Float[Tensor, "block_l block_m"]:
        """The block C_lm in float64, from as many products as the smaller of the two blocks has parameters."""
        problem, order = self.problem, {name: i for i, name in enumerate(self.problem.params)}
        rows, columns = ([order[name] for name in problem.tensors_of(block)] for block in (l, m))
        if problem.dtype != torch.float64:
            return Curvature(problem.double(), self.terms).block(l, m)
        sizes = [len(problem.index[block]) for block in (l, m)]
        check_dense_fits(int((sizes[0] * sizes[1]) ** 0.5) + 1, problem.device)
        block = self._rows(rows, columns) if sizes[0] <= sizes[1] else self._rows(columns, rows).mT
        check_finite(block)
        return block

    def block_norms(self) -> pd.DataFrame:
        """Frobenius norms ‖C_lm‖ as a labelled L×L table."""
        import pandas as pd

        of_block = _membership(self.problem, per_parameter=True)
        dense = self.to_dense().cpu()
        names = list(self.problem.partition.blocks)
        norms = (of_block.mT @ dense.square() @ of_block).sqrt()
        return pd.DataFrame(norms.numpy(), index=names, columns=names)

    def trace_by_block(self) -> pd.Series[float]:
        """Exact traces tr C_ll by block, from the dense diagonal blocks."""
        import pandas as pd

        return pd.Series(
            {
                block: float(self.block(block, block).trace())
                for block in self.problem.partition.blocks
            }
        )

    # --- machinery --------------------------------------------------------------------------------------------------

    def pushes(self) -> Iterator[tuple[float, Push]]:
        """Weighted linearisations, one batch and term at a time, so that one graph is alive at a time."""
        keep_freed_memory()
        for weight, batch in zip(self.problem.weights, self.problem.batches, strict=True):
            for coefficient, linearise in self.terms:
                with second_derivatives():
                    push = linearise(self.problem, batch)
                yield coefficient * weight, push

    def tangents(self, columns: Real[Tensor, "columns params"]) -> list[Tensor]:
        """Rows of a K×P matrix cut into one K×shape tensor per parameter, in the dtype of the model."""
        problem = self.problem
        return [
            columns[:, start:stop].to(problem.dtype).reshape(len(columns), *p.shape)
            for (start, stop), p in zip(
                problem.offsets.values(), problem.params.values(), strict=True
            )
        ]

    def _rows(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Rows of the given tensors, restricted to the columns of the given tensors; dense."""
        params = list(self.problem.params.values())
        shape = [sum(params[i].numel() for i in some) for some in (rows, columns)]
        return self._add_rows(params[0].new_zeros(shape), rows, columns)

    def _add_rows(self, out: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The same added to a tensor in place: copies of large pieces cost as much as the products themselves."""
        params = list(self.problem.params.values())
        for weight, push in self.pushes():
            for chunk in push.chunks(len(out), self.problem.num_params):
                start = 0
                for j, part in zip(
                    columns, push(unit_tangents(params, rows, chunk), columns), strict=True
                ):
                    stop = start + params[j].numel()
                    if part is not None:
                        out[chunk, start:stop].add_(part.reshape(len(part), -1), alpha=weight)
                    start = stop
        return out


def hessian(problem: Problem) -> Curvature:
    """The Hessian H = ∇²R(θ) of the risk."""
    return Curvature(problem, ((1.0, linearised_hessian),))


def ggn(problem: Problem) -> Curvature:
    """The generalised Gauss-Newton matrix G = (1/N) Σ_n J_nᵀ (∇²_f ℓ) J_n."""
    return Curvature(problem, ((1.0, linearised_ggn),))


def residual(problem: Problem) -> Curvature:
    """R = H − G = (1/N) Σ_n Σ_c (∂ℓ/∂f_nc) ∇²f_nc, the Hessian of the loss made linear in the outputs.

    A product costs as much as one with H, less than half of one with `hessian(problem) - ggn(problem)`.
    """
    return Curvature(problem, ((1.0, linearised_residual),))


def per_sample_hessians(problem: Problem) -> Float[Tensor, "samples params params"]:
    """Dense Hessians H_n of every sample, in float64 and in the order of the batches; their mean is the Hessian."""
    check_dense_fits(int(problem.num_params * problem.num_samples**0.5) + 1, problem.device)
    return torch.stack([hessian(sample).to_dense() for sample in problem.double().samples()])


def _membership(problem: Problem, per_parameter: bool = False) -> Float[Tensor, "tensors blocks"]:
    """0/1 table of which block a tensor (or every single parameter) belongs to."""
    block_of = {
        name: b for b, names in enumerate(problem.partition.blocks.values()) for name in names
    }
    table = torch.zeros(len(problem.params), len(problem.partition.blocks), dtype=torch.float64)
    for j, name in enumerate(problem.params):
        table[j, block_of[name]] = 1.0
    if not per_parameter:
        return table
    return table.repeat_interleave(
        torch.tensor([p.numel() for p in problem.params.values()]), dim=0
    )
