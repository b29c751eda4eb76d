"""Is the loss of a batch the mean over its terms? Compared with the losses of its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hesstheory.autograd.graph import coarsest_eps
from hesstheory.autograd.rows import generic
from hesstheory.problem.batches import cut, to_double
from hesstheory.problem.forward import loss_value

if TYPE_CHECKING:
    from hesstheory.problem.risk import Problem

# The bound of a mean of N terms in units of eps: a loop over N terms in any order is off by about
# 0.3·√N (partial sums grow evenly, and their roundings add up like independent ones), a sum in
# pairs by less. Four times √N is beyond thirteen such standard deviations.
_FEW_ROUNDINGS = 16
_PER_ROOT = 4

# In bfloat16 the bound would pass anything. A sum in place of a mean of two halves is off by a
# third of the magnitudes that are compared.
_MOST = 0.05


def why_no_mean(problem: Problem, number: int, outputs: object) -> str:
    """What shows that the loss of a batch is no mean over its terms; empty where nothing does.

    The loss of the batch is compared with the mean of the losses of two parts, weighted by their
    terms, for cuts at a half and at a third. Where every output and target has a row for each
    sample, the parts are cut out of the outputs, which costs no further pass of the model.

    Parameters
    ----------
    problem, number
        The problem, and which batch of it.
    outputs
        Of the model on that batch.
    """
    size = problem.samples_of_batch[number]
    if size is None or size < 2:
        return ""
    compared = _Compared(problem, number, outputs).with_a_loss()
    for at in sorted({size // 2, max(size // 3, 1)}, reverse=True):
        if why := compared.why_no_mean(at, size):
            return why
    return ""


@dataclass(frozen=True)
class _Compared:
    """A batch with its outputs, whose loss is compared with those of its parts."""

    problem: Problem
    number: int
    outputs: object

    def with_a_loss(self) -> _Compared:
        """Itself, or at tame outputs where the loss is zero: a sum of zeros is their mean."""
        size = self.problem.samples_of_batch[self.number] or 0
        if not self._by_rows or bool(self._loss(self.outputs, 0, size)):
            return self
        tame = replace(self, outputs=tree_map(_tame, self.outputs))
        with suppress(RuntimeError, TypeError, ValueError):  # a loss that has no value there
            if bool(torch.isfinite(tame._loss(tame.outputs, 0, size))):
                return tame
        return self

    def why_no_mean(self, at: int, size: int) -> str:
        """What a cut in front of sample `at` shows; empty where the mean of the parts is right."""
        whole = self._loss(self.outputs, 0, size)
        spans = ((0, at), (at, size))
        try:
            terms = [self._terms(*span) for span in spans]
            parts = [self._loss_of_part(*span) for span in spans]
        except torch.OutOfMemoryError:
            raise
        # Whatever a loss that is made for the whole batch makes of a part.
        except Exception as error:
            return self._not_for_parts(error)
        return _why_other_mean(whole, parts, terms, self._rounding(whole, size), size)

    def _not_for_parts(self, error: Exception) -> str:
        """What to say of a loss or a model that fails on a part of the batch."""
        if self.problem.weight is not None:  # the user has said what the loss averages
            return ""
        reason = str(error).partition("\n")[0]
        return (
            f"loss_fn fails on parts of batch {self.number} ({type(error).__name__}: {reason}), "
            "so that it is not known to be the mean over samples"
        )

    @property
    def _by_rows(self) -> bool:
        """Whether the outputs and targets can be cut without the model."""
        size = self.problem.samples_of_batch[self.number]
        targets = self.problem.batches[self.number][1]
        return size is not None and all_have_rows((self.outputs, targets), size)

    def _terms(self, start: int, stop: int) -> float:
        """How many terms the loss of some samples averages; 0 where all targets are ignored."""
        weight = self.problem.weight
        if weight is None:
            return float(stop - start)
        return float(weight(cut(self.problem.batches[self.number], start, stop)))

    def _loss_of_part(self, start: int, stop: int) -> Tensor:
        """The loss of some samples."""
        if self._by_rows:
            return self._loss(cut(self.outputs, start, stop), start, stop)
        part = cut(self.problem.batches[self.number], start, stop)
        return self._loss(self.problem.outputs(part), start, stop)

    def _loss(self, outputs: object, start: int, stop: int) -> Tensor:
        """The loss of given outputs, in float64 where it takes that, with the graph of the loss."""
        inputs, targets = self.problem.batches[self.number]
        batch = (inputs, cut(targets, start, stop))  # a loss reads no inputs
        loss_fn, device = self.problem.loss_fn, self.problem.device
        in_double = (inputs, tree_map(to_double, batch[1]))
        with suppress(RuntimeError, TypeError):  # the loss holds float32 weights of its own
            doubled = tree_map(to_double, tree_map(_detached, outputs))
            return loss_value(loss_fn, tree_map(_leaf, doubled), in_double, device)
        return loss_value(loss_fn, tree_map(_leaf, outputs), batch, device)

    def _rounding(self, whole: Tensor, size: int) -> float:
        """How far the mean of the parts may be off, relative to the magnitudes."""
        eps = coarsest_eps(whole)
        of_loss = min((_FEW_ROUNDINGS + _PER_ROOT * math.sqrt(size)) * eps, _MOST)
        if self._by_rows:
            return of_loss
        # Half of the digits: kernels of another size add up in another order.
        return max(of_loss, float(torch.finfo(self.problem.dtype).eps ** 0.5))


def _detached(value: object) -> object:
    """A tensor without its graph; anything else as it is."""
    return value.detach() if isinstance(value, Tensor) else value


def _tame(value: object) -> object:
    """Numbers of order one in place of a tensor's; anything else as it is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return generic(value.detach())


def _leaf(value: object) -> object:
    """A tensor of numbers as a leaf of a new graph; anything else as it is."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.detach().requires_grad_()


def _why_other_mean(
    whole: Tensor, parts: Sequence[Tensor], terms: Sequence[float], rounding: float, size: int
) -> str:
    """Why a loss is not the mean of those of two parts of its batch."""
    shares = [n / sum(terms) if n else 0.0 for n in terms]
    # A part without terms has no loss, 0/0, and no share in the mean.
    losses = [part.item() if share else 0.0 for part, share in zip(parts, shares, strict=True)]
    if not math.isfinite(sum(losses)):
        return (
            f"loss_fn gives {whole.item():.6g} for {size} samples, but {losses[0]:.6g} for the "
            f"first {terms[0]:g} and {losses[1]:.6g} for the others: it is not the mean over "
            "samples (are the targets of a part ignored, as by ignore_index?)"
        )
    mean = math.fsum(share * loss for share, loss in zip(shares, losses, strict=True))
    magnitude = abs(whole.item()) + math.fsum(
        share * abs(loss) for share, loss in zip(shares, losses, strict=True)
    )
    if abs(mean - whole.item()) <= rounding * magnitude:
        return ""
    return (
        f"loss_fn gives {whole.item():.6g} for {size} samples, but the mean of its parts is "
        f"{mean:.6g}: it is not the mean over samples (reduction='sum', class weights or ignored "
        "targets?)"
    )


def all_have_rows(parts: object, size: int) -> bool:
    """Whether every leaf that is not None is a tensor with a row for every sample."""
    return all(
        isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size
        for leaf in tree_leaves(parts)
        if leaf is not None
    )
