"""The slope of the loss at the outputs, ∂loss/∂f, with the digits that cancel restored.

Near a loss of zero a slope is the difference of numbers that are not small: p − y of a softmax
keeps nothing of 1 − p once that is below eps. Its derivative, the curvature, loses as much. Two
identities of the loss give the digits back. They are tested at tame outputs, where nothing cancels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hesstheory.autograd.graph import (
    check_twice_differentiable,
    differentiating,
    graph_leaves,
    operation,
    second_derivatives,
)
from hesstheory.autograd.products import gradients_of
from hesstheory.autograd.rows import generic
from hesstheory.problem.batches import Batch, to_double
from hesstheory.problem.risk import Problem

# Roundings, in eps of the sum of absolute values, within which an identity holds at tame outputs.
_ROUNDINGS = 64

# A function of outputs with a graph: their slope, with its graph.
Slope = Callable[[Tensor], Tensor]


def loss_slope(
    problem: Problem, outputs: Tensor, batch: Batch, *, no_penalty: bool = False
) -> tuple[Tensor, Tensor]:
    """The slope ∂loss/∂f at given outputs f of one batch, with its graph.

    Of outputs that are log-probabilities, made by `log_softmax` in the model, and of a loss that is
    linear in them, it is Σ −s_k·p: with it, the Gauss-Newton matrix is that of the logits.

    Parameters
    ----------
    problem
        The loss is its loss.
    outputs
        Outputs f of the batch. Their graph, if any, is cut off.
    batch
        `(inputs, targets)`.
    no_penalty
        Whether to refuse a loss that depends on parameters by itself.

    Returns
    -------
    tuple[Tensor, Tensor]
        A leaf with the values of `outputs`, and the slope at it. Both have the shape of
        `outputs`. The slope is zero where the loss does not depend on the outputs.

    Raises
    ------
    NotTwiceDifferentiable
        The loss uses a function whose second derivative PyTorch takes for zero.
    ValueError
        The loss is not a finite number, or `no_penalty` and it reads parameters.
    """
    leaf = outputs.detach().requires_grad_()
    loss = problem.loss_of(leaf, batch)
    if reads_parameters(problem, loss):
        if no_penalty:
            raise ValueError(
                "loss_fn reads parameters of the model by itself: H − G then holds more than the "
                "residual; use hessian(problem) - ggn(problem), or let the model return the penalty"
            )
        warnings.warn(
            "loss_fn reads parameters of the model by itself, or calls it again: the Gauss-Newton "
            "matrix is that of the outputs alone and leaves the rest out",
            stacklevel=2,
        )
    slope = _slope(problem, leaf, batch)
    if bool(slope.any()) and _is_constant(problem, slope, leaf, batch):
        return leaf, _linear(slope.detach(), leaf, outputs)
    restored = restored_slope(problem, leaf, batch)
    return leaf, slope if restored is None else restored(leaf)


def reads_parameters(problem: Problem, loss: Tensor) -> bool:
    """Whether a loss of outputs that were cut off depends on parameters."""
    return bool(graph_leaves(loss) & {id(p) for p in problem.params.values()})


def restored_slope(problem: Problem, outputs: Tensor, batch: Batch) -> Slope | None:
    """The slope as a function of outputs, none of its digits cancelled; None where none do.

    Parameters
    ----------
    problem, batch
        The loss on this batch.
    outputs
        Where it is needed. Their graph, if any, is not used.
    """
    here = outputs.detach().double().requires_grad_()
    in_double = (batch[0], tree_map(to_double, batch[1]))
    with suppress(RuntimeError, TypeError, ValueError):  # a loss in float32, or none at tame values
        tame = generic(here.detach()).requires_grad_()
        there = _slope(problem, tame, in_double)
        size = float(there.detach().abs().sum())
        if float(_slope(problem, here, in_double).detach().abs().sum()) >= _lost(outputs) * size:
            return None
        for identity in (_zero_sum, _signed_sigmoid):
            if (slope := identity(problem, in_double, tame, there)) is not None:
                return slope
        # Other losses: float64 holds more of them, and squares cancel nothing.
        return _in_double(problem, in_double)
    return None


def _lost(outputs: Tensor) -> float:
    """Share of the slope of tame outputs below which half of the digits may have cancelled."""
    return float(torch.finfo(outputs.dtype).eps ** 0.5)


def _slope(problem: Problem, at: Tensor, batch: Batch) -> Tensor:
    """∂loss/∂f at outputs that ask for gradients, as autograd has it."""
    loss = problem.loss_of(at, batch)
    check_twice_differentiable(loss)
    with differentiating():
        (slope,) = gradients_of(loss, [at], create_graph=True)
    return torch.zeros_like(at) if slope is None else slope


def _in_double(problem: Problem, batch: Batch) -> Slope:
    """The slope of the loss in float64."""

    def slope(at: Tensor) -> Tensor:
        return _slope(problem, at.double(), batch).to(at.dtype)

    return slope


def _zero_sum(problem: Problem, batch: Batch, tame: Tensor, there: Tensor) -> Slope | None:
    """Where a shift of all classes leaves the loss as it is: the largest logit's slope is −Σ rest.

    The slopes of the others are products, c·p_k of a softmax, and keep their digits.
    """
    slopes = there.detach()
    axes = {1, tame.ndim - 1} if tame.ndim > 1 else set[int]()
    bound = _ROUNDINGS * torch.finfo(slopes.dtype).eps
    for axis in sorted(axes):
        total = slopes.sum(axis).abs()
        if tame.shape[axis] > 1 and bool((total <= bound * slopes.abs().sum(axis)).all()):
            return _restored(_in_double(problem, batch), axis)
    return None


def _restored(plain: Slope, axis: int) -> Slope:
    """A slope whose entry of the largest logit is minus the sum of the others."""

    def slope(at: Tensor) -> Tensor:
        with differentiating():
            found = plain(at)
            largest = at.detach().argmax(axis, keepdim=True)
            is_largest = torch.zeros_like(at, dtype=torch.bool).scatter(axis, largest, True)
            others = torch.where(is_largest, torch.zeros_like(found), found)
            return torch.where(is_largest, -others.sum(axis, keepdim=True), others)

    return slope


def _signed_sigmoid(problem: Problem, batch: Batch, tame: Tensor, there: Tensor) -> Slope | None:
    """c(σ(f) − y) of every entry with y in {0, 1}: for y = 1 it is −c·σ(−f), without a difference.

    c and y are read off the slope and its derivative at tame outputs, and tried at others.
    """
    with differentiating():
        (bend,) = gradients_of(there, [tame], grad_outputs=torch.ones_like(there))
    if bend is None:
        return None
    p = tame.detach().sigmoid()
    c = bend / (p * (1 - p))
    y = p - there.detach() / c
    targets = y.round()
    other = (-tame.detach() / 2).requires_grad_()
    expected = c * (other.detach().sigmoid() - targets)
    found = _slope(problem, other, batch).detach()
    bound = _ROUNDINGS * torch.finfo(c.dtype).eps
    binary = (targets == 0) | (targets == 1)
    holds = ((y - targets).abs() <= bound) & ((found - expected).abs() <= bound * c.abs())
    if not bool((binary & holds).all()):
        return None
    sign = 1 - 2 * targets

    def slope(at: Tensor) -> Tensor:
        with differentiating():
            return (sign * c * (sign * at.double()).sigmoid()).to(at.dtype)

    return slope


def _is_constant(problem: Problem, slope: Tensor, leaf: Tensor, batch: Batch) -> bool:
    """Whether a slope is the same at all outputs: its derivative is zero here and at tame ones."""
    if not slope.requires_grad:
        return True
    if _bends(slope, leaf):
        return False
    # What is zero here alone has underflowed, or is a flat piece of the loss.
    tame = generic(leaf.detach()).requires_grad_()
    with suppress(ValueError):  # a loss that has no value there
        there = _slope(problem, tame, batch)
        return not there.requires_grad or not _bends(there, tame)
    return False


def _bends(slope: Tensor, at: Tensor) -> bool:
    """Whether a slope has a derivative other than zero."""
    with second_derivatives():
        (row,) = gradients_of(slope, [at], create_graph=True, grad_outputs=generic(slope.detach()))
    return row is not None and bool(row.any())


def curvature_seen_through(problem: Problem, outputs: Tensor, batch: Batch) -> Tensor | None:
    """Where the outputs are log-probabilities in which the loss is linear: the d of `loss_slope`.

    JᵀSJ of the logits is Jᵀ diag(d) J with J of the log-probabilities. None elsewhere.
    """
    leaf = outputs.detach().requires_grad_()
    slope = _slope(problem, leaf, batch)
    if not bool(slope.any()) or not _is_constant(problem, slope, leaf, batch):
        return None
    return _curvature_of_softmax(slope.detach(), outputs)


def _linear(slope: Tensor, leaf: Tensor, outputs: Tensor) -> Tensor:
    """A constant slope, with the derivative that it has through the softmax of log-probabilities.

    Without such a softmax it has none, and a warning says so.
    """
    d = _curvature_of_softmax(slope, outputs)
    if d is None:
        warnings.warn(
            "the loss is linear in the outputs, so that the Gauss-Newton matrix is zero by "
            "definition: let the model return its logits, or pass outputs= that selects them",
            stacklevel=2,
        )
        return slope
    with differentiating():
        return slope + d * (leaf - leaf.detach())


def _curvature_of_softmax(slope: Tensor, outputs: Tensor) -> Tensor | None:
    """The d = −(Σ s) p of a constant slope s of log-probabilities; None for other outputs.

    In the logits the Hessian of sᵀlog_softmax is −(Σ s)(diag p − ppᵀ). With J of the
    log-probabilities in place of that of the logits, diag d gives the same matrix.
    """
    node = outputs.grad_fn
    if (
        node is not None and operation(node) == "ToCopy"
    ):  # float32 outputs of which float64 is asked
        (node, _), *_ = node.next_functions
    if node is None or operation(node) != "LogSoftmax":
        return None
    axis = int(getattr(node, "_saved_dim", 1))
    axis -= 2**64 if axis >= 2**63 else 0  # saved without a sign
    return -slope.sum(axis, keepdim=True) * outputs.detach().exp()
