"""How does the loss bend in the outputs? S_n with S_n S_nᵀ = ∂²loss/∂f_n², the Hessian of a sample's loss there."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from hesstheory.autograd.products import chunks, vjp
from hesstheory.autograd.rows import generic
from hesstheory.curvature.linearised import loss_slope
from hesstheory.problem.batches import Batch, to_double
from hesstheory.problem.risk import Problem


class NotConvex(ValueError):
    """The loss is not convex in the outputs, so that its Hessian there has no square root."""


def loss_root(
    problem: Problem, outputs: Tensor, batch: Batch
) -> Float[Tensor, "samples outputs rank"]:
    """S_n with S_n S_nᵀ = ∂²loss/∂f_n², columns that are zero for all samples left out: C − 1 for cross-entropy.

    For any loss, by an eigendecomposition of each sample's Hessian in its outputs, which makes columns orthogonal.
    Raises `NotConvex`, `NotTwiceDifferentiable`, and ValueError where the loss couples samples.
    """
    return _orthogonal_root(problem, _loss_slope(problem, outputs, batch)).to(outputs.dtype)


def cheapest_root(
    problem: Problem, outputs: Tensor, batch: Batch, no_penalty: bool = False
) -> Float[Tensor, "samples outputs rank"]:
    """As `loss_root`, but for the columns, which are not orthogonal where the loss is that of a softmax."""
    slope = _loss_slope(problem, outputs, batch, no_penalty)
    root = _softmax_root(slope)
    return (_orthogonal_root(problem, slope) if root is None else root).to(outputs.dtype)


@dataclass(frozen=True)
class _LossSlope:
    """∂loss/∂f_n of every sample with its graph, the leaf that holds the outputs, and the batch that it was taken on.

    In float64 where the loss allows: where a softmax is sure, its small curvature is a difference of terms of the size
    that they have at outputs of zero.
    """

    values: Float[Tensor, "samples outputs"]
    at: Tensor
    batch: Batch

    def bent(
        self, directions: Float[Tensor, "directions samples outputs"]
    ) -> Float[Tensor, "directions samples outputs"]:
        """The Hessian of the loss in the outputs of all samples times directions."""
        (rows,) = vjp([self.values], [directions], [self.at])
        return torch.zeros_like(directions) if rows is None else rows.reshape(directions.shape)


def _loss_slope(
    problem: Problem, outputs: Tensor, batch: Batch, no_penalty: bool = False
) -> _LossSlope:
    outputs = outputs.detach()
    in_double = (batch[0], tree_map(to_double, batch[1]))
    with suppress(RuntimeError, TypeError):  # it holds float32 weights of its own
        return _slope(problem, outputs.double(), in_double, no_penalty)
    return _slope(problem, outputs, batch, no_penalty)


def _slope(problem: Problem, outputs: Tensor, batch: Batch, no_penalty: bool = False) -> _LossSlope:
    leaf, slope = loss_slope(problem, outputs, batch, no_penalty=no_penalty)
    return _LossSlope(slope.reshape(len(leaf), -1), leaf, batch)


def _orthogonal_root(problem: Problem, slope: _LossSlope) -> Float[Tensor, "samples outputs rank"]:
    H = _loss_hessians(slope)
    values, vectors = torch.linalg.eigh(H.double())
    rounding = 1e3 * H.shape[1] * torch.finfo(H.dtype).eps
    if float(values.min()) < 0 and float(values.min()) < -rounding * _curvature_that_rounds(
        problem, slope, H
    ):
        raise NotConvex(
            f"the loss is not convex in the outputs (curvature {float(values.min()):.3g}): the Gauss-Newton matrix "
            "is then no sum of squares; use hessian(problem) with an estimator"
        )
    root = vectors * values.clamp(min=0).sqrt()[:, None]
    kept: Tensor = root[..., values.amax(0) > rounding * values.abs().max()]
    return kept


def _softmax_root(slope: _LossSlope) -> Float[Tensor, "samples outputs rank"] | None:
    """Cholesky's factor of c(diag(p) − ppᵀ), p = softmax(f), without a difference (Tanabe and Sagae 1992).

    Column j is √(p_j/q_j₋₁) (√q_j at j, −p_i/√q_j below) with the tails q_j = Σ_{k>j} p_k. None where two products
    of the loss's Hessian with generic vectors, for all samples at once, are not those of such matrices up to rounding.
    """
    f = slope.at.detach()
    if f.ndim != 2 or f.shape[1] < 2 or not slope.values.requires_grad:
        return None
    p, eps, tiny = f.log_softmax(1).exp(), torch.finfo(f.dtype).eps, torch.finfo(f.dtype).tiny
    # Two of them: with two classes any slope is that of a softmax for one, but coupled samples give another c for each.
    u = generic(torch.stack([f, f]))
    bent, spread = slope.bent(u), p * (u - (p * u).sum(2, keepdim=True))
    # c is read off where 1 − p is no difference of near numbers.
    second = spread[0].abs().scatter(1, p.argmax(1, keepdim=True), 0.0).argmax(1, keepdim=True)
    c = (bent[0] / spread[0]).gather(1, second)
    size = p * (u.abs() + (p * u.abs()).sum(2, keepdim=True))
    if not bool(((bent - c * spread).abs() <= 256 * eps * c * size).all()):
        return None
    tails = p.flip(1).cumsum(1).flip(1).clamp(min=tiny)  # from j on
    before, after = tails[:, :-1], tails[:, 1:]
    L = torch.tril(-p[:, :, None] / after.sqrt()[:, None], -1)
    L.diagonal(dim1=1, dim2=2).copy_(after.sqrt())
    return L.mul_((c * p[:, :-1] / before).sqrt()[:, None])


def _loss_hessians(slope: _LossSlope) -> Float[Tensor, "samples outputs outputs"]:
    """∂²loss/∂f_n² of every sample."""
    N, D = slope.values.shape
    # Any two samples differ in a digit of their binary numbers: those that have it must not bend those that have not.
    digits = torch.arange(N) >> torch.arange((N - 1).bit_length())[:, None] & 1
    parts = digits[:, :, None].to(slope.at)
    units = slope.at.new_zeros(D + len(parts), N, D)
    if not slope.values.requires_grad:
        return units[:D].transpose(0, 1)
    units[:D] = torch.eye(D, dtype=units.dtype, device=units.device)[:, None]
    units[D:] = parts * generic(units[0])
    bent = torch.cat([slope.bent(units[part]) for part in chunks(len(units), slope.values.numel())])
    rounding = 1e3 * torch.finfo(units.dtype).eps * bent[:D].abs().max()
    if bool((((1 - parts) * bent[D:]).abs() > rounding).any()):
        raise ValueError(
            "the loss of a sample depends on the outputs of another one (contrastive, or normalised over the batch): "
            "no sum over samples of squares is its Gauss-Newton matrix; use ggn(problem) with an estimator"
        )
    return (bent[:D].transpose(0, 1) + bent[:D].permute(1, 2, 0)) / 2


def _curvature_that_rounds(problem: Problem, slope: _LossSlope, H: Tensor) -> float:
    """The largest curvature here or at outputs of zero, whose rounding the curvature here carries."""
    here, there = float(H.abs().max()), 0.0
    with suppress(ValueError):  # a loss that has no value there, such as one of log outputs
        flat = _slope(problem, torch.zeros_like(slope.at), slope.batch)
        (row,) = vjp([flat.values[:, 0].sum()], [flat.values.new_ones(1)], [flat.at])
        there = 0.0 if row is None else float(row.abs().max())
    return max(here, there) if math.isfinite(there) else here
