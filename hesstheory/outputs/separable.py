"""Roots of loss Hessians that go position by position: never D×D for D outputs of a sample.

The outputs of a segmenter or a language model are logits at every pixel or token. Their loss
Hessian is block-diagonal, c(diag p − ppᵀ) at every position of a softmax. Of losses that go entry
by entry, such as squares, it is diagonal. Two products with generic vectors tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.autograd.rows import generic
from hesstheory.outputs.loss_root import (
    ROUNDINGS,
    SOFTMAX_ROUNDINGS,
    LossSlope,
    NotConvex,
    slope_of,
    softmax_factor,
    softmax_scale_of,
)
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem

# Outputs of a sample from which on a dense root costs more than it tells: its Hessian has the
# square of that many entries.
_WIDE = 128


class SeparableRoot(Protocol):
    """S of every sample, as a function: S_n S_nᵀ is the Hessian of its loss in its outputs."""

    @property
    def num_columns(self) -> int:
        """Columns of the root that has the fewest."""

    @property
    def num_signs(self) -> int:
        """Entries of ε for every sample in a combination."""

    def columns(self, part: slice) -> Float[Tensor, "columns samples ..."]:
        """Some columns, like the outputs."""

    def combination(self, signs: Float[Tensor, "samples signs"]) -> Float[Tensor, "samples ..."]:
        """S_n ε_n of every sample, like the outputs."""


@dataclass(frozen=True)
class SoftmaxRoot:
    """The root of c(diag p − ppᵀ) at every position.

    Parameters
    ----------
    p
        Probabilities.
    c
        Weights of the positions: zero where a target is ignored.
    like
        A tensor of the shape and dtype of the outputs.
    axis
        The axis of the classes in it.
    """

    p: Float[Tensor, "samples positions classes"]
    c: Float[Tensor, "samples positions 1"]
    like: Tensor
    axis: int

    @property
    def num_columns(self) -> int:
        """One fewer than classes, at every position."""
        return self.p.shape[1] * (self.p.shape[2] - 1)

    @property
    def num_signs(self) -> int:
        """One for every class and position."""
        return self.p.shape[1] * self.p.shape[2]

    def columns(self, part: slice) -> Float[Tensor, "columns samples ..."]:
        """Columns of Cholesky's factors, each at one position and zero at the others."""
        C = self.p.shape[2]
        K = part.stop - part.start
        found = self.p.new_zeros(K, *self.p.shape)
        for m in range(part.start // (C - 1), -(-part.stop // (C - 1))):
            first = max(part.start - m * (C - 1), 0)
            last = min(part.stop - m * (C - 1), C - 1)
            factor = softmax_factor(self.p[:, m], self.c[:, m])[:, :, first:last]
            at = m * (C - 1) + first - part.start
            found[at : at + last - first, :, m] = factor.permute(2, 0, 1)
        return self._as_outputs(found)

    def combination(self, signs: Float[Tensor, "samples signs"]) -> Float[Tensor, "samples ..."]:
        """√c(√p ε − p⟨√p, ε⟩): with B = diag √p − p√pᵀ, BBᵀ is diag p − ppᵀ."""
        scaled = self.p.sqrt() * signs.reshape(self.p.shape)
        u = self.c.sqrt() * (scaled - self.p * scaled.sum(2, keepdim=True))
        return self._as_outputs(u[None])[0]

    def _as_outputs(self, u: Float[Tensor, "columns samples positions classes"]) -> Tensor:
        """In the layout and dtype of the outputs."""
        positions = [n for axis, n in enumerate(self.like.shape) if axis not in (0, self.axis)]
        spread = u.reshape(len(u), len(self.like), *positions, u.shape[3])
        return spread.movedim(-1, self.axis + 1).to(self.like.dtype).contiguous()


@dataclass(frozen=True)
class DiagonalRoot:
    """The root of a diagonal Hessian.

    Parameters
    ----------
    diagonal
        Of every sample.
    like
        A tensor of the shape and dtype of the outputs.
    """

    diagonal: Float[Tensor, "samples outputs"]
    like: Tensor

    @property
    def num_columns(self) -> int:
        """One for every output."""
        return self.diagonal.shape[1]

    @property
    def num_signs(self) -> int:
        """One for every output."""
        return self.diagonal.shape[1]

    def columns(self, part: slice) -> Float[Tensor, "columns samples ..."]:
        """√d_j at output j."""
        numbers = torch.arange(part.start, part.stop, device=self.diagonal.device)
        found = self.diagonal.new_zeros(len(numbers), *self.diagonal.shape)
        found[numbers - part.start, :, numbers] = self.diagonal[:, numbers].sqrt().mT
        return found.reshape(-1, *self.like.shape).to(self.like.dtype)

    def combination(self, signs: Float[Tensor, "samples signs"]) -> Float[Tensor, "samples ..."]:
        """√d ε."""
        return (self.diagonal.sqrt() * signs).reshape(self.like.shape).to(self.like.dtype)


def separable_root(
    problem: Problem, outputs: Tensor, batch: Batch, no_penalty: bool = False
) -> SeparableRoot | None:
    """The root as a function, for many outputs a sample; None where a dense root serves.

    Parameters
    ----------
    problem
        Its loss is meant.
    outputs
        Of the batch: `(N, C, …)`, `(N, …, C)`, or entries of any layout.
    batch
        `(inputs, targets)`.
    no_penalty
        Whether to refuse a loss that reads parameters by itself.

    Raises
    ------
    NotConvex
        The Hessian is diagonal, with an entry below zero.
    NotTwiceDifferentiable
        The loss has no second derivative.
    """
    if not _is_wide(outputs):
        return None
    slope = slope_of(problem, outputs, batch, no_penalty)
    if not slope.values.requires_grad:
        return None
    for axis in sorted({1, outputs.ndim - 1}):
        if _sums_to_zero(slope, axis) and (root := _softmax(slope, outputs, axis)) is not None:
            return root
    return _diagonal(slope, outputs)


def _sums_to_zero(slope: LossSlope, axis: int) -> bool:
    """Whether the slopes along an axis add up to zero, as those of a softmax do."""
    values = slope.values.detach().reshape(slope.at.shape)
    rounding = ROUNDINGS * slope.eps * float(values.abs().max())
    return bool((values.sum(axis).abs() <= rounding).all())


def _softmax(slope: LossSlope, outputs: Tensor, axis: int) -> SoftmaxRoot | None:
    """The root of a softmax along an axis of classes; None where the loss is another one."""
    c = softmax_scale_of(slope, axis, SOFTMAX_ROUNDINGS)
    if c is None:
        return None
    if outputs.shape[axis] < 2 or bool((c < 0).any()):
        return None
    f = slope.at.detach().movedim(axis, -1)
    p = f.log_softmax(-1).exp().reshape(len(f), -1, f.shape[-1])
    return SoftmaxRoot(p, c.reshape(len(f), -1, 1), outputs.detach(), axis)


def _diagonal(slope: LossSlope, outputs: Tensor) -> DiagonalRoot | None:
    """The root of a diagonal Hessian; None where two products show that it is not diagonal."""
    ones = torch.ones_like(slope.values.detach())
    u = generic(ones)
    d, bent = slope.bent(torch.stack([ones, u]))
    rounding = ROUNDINGS * slope.eps * float(d.abs().max())
    if not bool(((bent - d * u).abs() <= rounding).all()):
        return None
    if bool((d < -rounding).any()):
        raise NotConvex(
            f"the loss is not convex in the outputs (curvature {float(d.min()):.3g}): the "
            "Gauss-Newton matrix is then no sum of squares; use hessian(problem) with an estimator"
        )
    return DiagonalRoot(d.clamp(min=0), outputs.detach())


def bytes_of_root(outputs: Tensor) -> int:
    """Bytes of what a sample's loss Hessian takes with its root, in float64."""
    D = math.prod(outputs.shape[1:])
    # Of many outputs the root goes position by position, or is refused where it would be made.
    return 8 * D * (4 if _is_wide(outputs) else D)


def _is_wide(outputs: Tensor) -> bool:
    """Whether a dense root is not worth it."""
    return outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[1] > _WIDE)
