"""Square roots S_n of the loss's Hessian in the outputs of a sample: S_n S_nᵀ = ∂²loss/∂f_n²."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from hesstheory.autograd.graph import coarsest_eps
from hesstheory.autograd.products import chunks, vjp
from hesstheory.autograd.rows import generic
from hesstheory.curvature.limits import check_finite
from hesstheory.curvature.loss_slope import loss_slope
from hesstheory.problem.batches import Batch, to_double
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import free_memory

# Roundings, in units of eps and of the largest curvature, that an entry of a loss's second
# derivative may carry. Losses that are computed stably carry 55 at most, in float32 with up to 100
# classes, and an eigenvalue 2 for each class (measured by tests/outputs/test_loss_root.py). A
# user's loss may chain ten times as many operations.
ROUNDINGS = 1e3

# The same for a product with the Hessian of a softmax, in units of the sum of absolute values that
# an entry is made of. Measured there: 64 at most.
SOFTMAX_ROUNDINGS = 256


# Bytes that are there without asking the system.
_LITTLE = 16 * 2**20


class NotConvex(ValueError):
    """The loss is not convex in the outputs, so that its Hessian there has no square root.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import NotConvex, Problem, exact_traces, zoo
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> concave = Problem(problem.model, lambda f, y: -f.square().mean(), problem.batches)
    >>> try:
    ...     exact_traces(concave)
    ... except NotConvex as error:
    ...     print(str(error).partition(" (")[0])
    the loss is not convex in the outputs
    """


def loss_root(
    problem: Problem, outputs: Tensor, batch: Batch
) -> Float[Tensor, "samples outputs rank"]:
    """S_n with S_n S_nᵀ = ∂²loss/∂f_n² of every sample, for any loss.

    An eigendecomposition of each sample's Hessian makes the columns orthogonal. Columns that are
    zero for all samples are left out: C − 1 remain for cross-entropy with C classes.

    Parameters
    ----------
    problem
        Its loss is meant.
    outputs
        Outputs of the batch.
    batch
        `(inputs, targets)`.

    Raises
    ------
    NotConvex
        The loss is not convex in the outputs.
    NotTwiceDifferentiable
        The loss has no second derivative.
    ValueError
        The loss couples samples.
    """
    return _orthogonal_root(problem, slope_of(problem, outputs, batch)).to(outputs.dtype)


def cheapest_root(
    problem: Problem, outputs: Tensor, batch: Batch, no_penalty: bool = False
) -> Float[Tensor, "samples outputs rank"]:
    """As `loss_root`, but for the columns: where the loss is a softmax's they are not orthogonal.

    `no_penalty` refuses a loss that reads parameters by itself.
    """
    slope = slope_of(problem, outputs, batch, no_penalty)
    root = _softmax_root(slope)
    return (_orthogonal_root(problem, slope) if root is None else root).to(outputs.dtype)


@dataclass(frozen=True)
class LossSlope:
    """∂loss/∂f_n of every sample with its graph, in float64 where the loss allows.

    Parameters
    ----------
    values
        The slopes.
    at
        The leaf that holds the outputs.
    batch
        What it was taken on.
    """

    values: Float[Tensor, "samples outputs"]
    at: Tensor
    batch: Batch

    @cached_property
    def eps(self) -> float:
        """Of the coarsest dtype in which the loss computes, such as `outputs.float()` in it."""
        return coarsest_eps(self.values)

    def bent(
        self, directions: Float[Tensor, "directions samples outputs"]
    ) -> Float[Tensor, "directions samples outputs"]:
        """The Hessian of the loss in the outputs of all samples times directions."""
        (rows,) = vjp([self.values], [directions], [self.at])
        if rows is None:
            return torch.zeros_like(directions)
        check_finite(rows)
        return rows.reshape(directions.shape)


def slope_of(
    problem: Problem, outputs: Tensor, batch: Batch, no_penalty: bool = False
) -> LossSlope:
    """The slope of the loss at the outputs of a batch."""
    in_double = (batch[0], tree_map(to_double, batch[1]))
    # Where a softmax is sure its curvature is small, and it comes as the difference of terms that
    # are not small: float32 leaves nothing of it.
    with suppress(RuntimeError, TypeError):  # the loss holds float32 weights of its own
        return _slope(problem, outputs.double(), in_double, no_penalty)
    return _slope(problem, outputs, batch, no_penalty)


def _slope(problem: Problem, outputs: Tensor, batch: Batch, no_penalty: bool = False) -> LossSlope:
    """The same in the dtype of the outputs."""
    leaf, slope = loss_slope(problem, outputs, batch, no_penalty=no_penalty)
    return LossSlope(slope.reshape(len(leaf), -1), leaf, batch)


def _orthogonal_root(problem: Problem, slope: LossSlope) -> Float[Tensor, "samples outputs rank"]:
    """The root from eigenvectors; NotConvex where an eigenvalue is negative beyond rounding."""
    H = loss_hessians(slope)
    values, vectors = torch.linalg.eigh(H.double())
    # A symmetric error of E in every one of D×D entries moves an eigenvalue by at most D·E (Weyl).
    rounding = ROUNDINGS * H.shape[1] * slope.eps
    least = float(values.min())
    if least < 0 and least < -rounding * _curvature_that_rounds(problem, slope, H):
        raise NotConvex(
            f"the loss is not convex in the outputs (curvature {least:.3g}): the Gauss-Newton "
            "matrix is then no sum of squares; use hessian(problem) with an estimator"
        )
    root = vectors * values.clamp(min=0).sqrt()[:, None]
    # Of a loss in a coarse dtype three quarters of the digits: the bound may exceed all columns.
    zero = min(rounding, slope.eps**0.75) * values.abs().max()
    kept: Tensor = root[..., values.amax(0) > zero]
    return kept


def _softmax_root(slope: LossSlope) -> Float[Tensor, "samples outputs rank"] | None:
    """Cholesky's factor of c(diag(p) − ppᵀ), p = softmax(f); None where the loss is another one.

    It takes no difference (Tanabe and Sagae 1992). Column j is √(p_j/q_{j−1}) times √q_j at j and
    −p_i/√q_j below, with the tails q_j of `softmax_factor`.
    """
    c = softmax_scale(slope)
    if c is None:
        return None
    return softmax_factor(slope.at.detach().log_softmax(1).exp(), c)


def softmax_factor(
    p: Float[Tensor, "samples classes"], c: Float[Tensor, "samples 1"]
) -> Float[Tensor, "samples classes rank"]:
    """Cholesky's factor of c(diag(p) − ppᵀ), from the tails q_j = Σ_{k>j} p_k."""
    # From j on; an underflown tail would give 0/0.
    tails = p.flip(1).cumsum(1).flip(1).clamp(min=torch.finfo(p.dtype).tiny)
    before = tails[:, :-1]
    after = tails[:, 1:]
    L = torch.tril(-p[:, :, None] / after.sqrt()[:, None], -1)
    L.diagonal(dim1=1, dim2=2).copy_(after.sqrt())
    return L.mul_((c * p[:, :-1] / before).sqrt()[:, None])


def softmax_scale(
    slope: LossSlope, roundings: float = SOFTMAX_ROUNDINGS
) -> Float[Tensor, "samples 1"] | None:
    """c of every sample where the loss's Hessian is c(diag(p) − ppᵀ) up to rounding, else None."""
    f = slope.at
    return None if f.ndim != 2 else softmax_scale_of(slope, 1, roundings)


def softmax_scale_of(
    slope: LossSlope, axis: int, roundings: float
) -> Float[Tensor, "positions 1"] | None:
    """c of every position where the Hessian there is c(diag(p) − ppᵀ), zero between positions.

    Two products with generic vectors, for all samples at once, decide. Classes lie along `axis`.
    """
    f = slope.at.detach()
    C = f.shape[axis]
    if C < 2 or not slope.values.requires_grad:
        return None

    def by_position(values: Tensor) -> Float[Tensor, "2 positions classes"]:
        return values.reshape(2, *f.shape).movedim(axis + 1, -1).reshape(2, -1, C)

    p = f.movedim(axis, -1).reshape(-1, C).log_softmax(1).exp()
    # With two classes any slope is that of a softmax for one vector; coupled samples give another c
    # for the second.
    directions = generic(torch.stack([f, f]))
    bent = by_position(slope.bent(directions.reshape(2, len(f), -1)))
    u = by_position(directions)
    spread = p * (u - (p * u).sum(2, keepdim=True))
    # c is read off where 1 − p is no difference of near numbers: not at the likeliest class.
    second = spread[0].abs().scatter(1, p.argmax(1, keepdim=True), 0.0).argmax(1, keepdim=True)
    c = (bent[0] / spread[0]).gather(1, second)
    size = p * (u.abs() + (p * u.abs()).sum(2, keepdim=True))
    rounding = roundings * slope.eps * c * size
    return c if bool(((bent - c * spread).abs() <= rounding).all()) else None


def loss_hessians(
    slope: LossSlope, roundings: float = ROUNDINGS
) -> Float[Tensor, "samples outputs outputs"]:
    """∂²loss/∂f_n² of every sample; ValueError where the loss couples samples beyond rounding."""
    N, D = slope.values.shape
    _check_fits(slope, N, D)
    # Any two samples differ in a digit of their binary numbers. For every digit, the samples that
    # have it must not bend those that have not: log N products test all pairs.
    digits = torch.arange(N) >> torch.arange((N - 1).bit_length())[:, None] & 1
    parts = digits[:, :, None].to(slope.at)
    units = slope.at.new_zeros(D + len(parts), N, D)
    if not slope.values.requires_grad:
        return units[:D].transpose(0, 1)
    units[:D] = torch.eye(D, dtype=units.dtype, device=units.device)[:, None]
    units[D:] = parts * generic(units[0])
    bent = torch.cat([slope.bent(units[part]) for part in chunks(len(units), slope.values.numel())])
    rounding = roundings * slope.eps * bent[:D].abs().max()
    if bool((((1 - parts) * bent[D:]).abs() > rounding).any()):
        raise ValueError(
            "the loss of a sample depends on the outputs of another one (contrastive, or "
            "normalised over the batch): no sum over samples of squares is its Gauss-Newton "
            "matrix; use ggn(problem) with an estimator"
        )
    return (bent[:D].transpose(0, 1) + bent[:D].permute(1, 2, 0)) / 2


def _check_fits(slope: LossSlope, N: int, D: int) -> None:
    """Raises MemoryError where the Hessians of all samples cannot be held."""
    # Directions, products, Hessians and eigenvectors.
    needed = 4 * 8 * N * D * D
    if needed > _LITTLE and needed > (free := free_memory(slope.at.device)):
        raise MemoryError(
            f"the loss Hessians of {N} samples with {D} outputs each take {needed:,} bytes, "
            f"{free:,} are free: use LogitProbeTrace or LayerwiseTrace, or fewer samples"
        )


def _curvature_that_rounds(problem: Problem, slope: LossSlope, H: Tensor) -> float:
    """The largest curvature here or at outputs of zero: the rounding of both is here."""
    here = float(H.abs().max())
    there = 0.0
    with suppress(ValueError):  # a loss that has no value there, such as one of log outputs
        flat = _slope(problem, torch.zeros_like(slope.at), slope.batch)
        (row,) = vjp([flat.values[:, 0].sum()], [flat.values.new_ones(1)], [flat.at])
        there = 0.0 if row is None else float(row.abs().max())
    return max(here, there) if math.isfinite(there) else here
