"""One batch, linearised: how a vector is pushed through H, G or R on a graph that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesstheory.autograd.graph import check_twice_differentiable, graph_leaves, graph_values
from hesstheory.autograd.layers import BilinearLayers
from hesstheory.autograd.products import CHUNK_ELEMENTS, chunks, gradients_of, vjp
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem

# One batch, differentiated once with its graph kept: maps tangents (one per parameter, K leading, None for zero) to the
# rows of the product that the wanted parameters hold (None for zero).
Pull = Callable[[Sequence[Tensor | None], Sequence[int]], list[Tensor | None]]


@dataclass(frozen=True)
class Push:
    """One linearised batch; `elements` is the size of the values on its graph, which a chunk multiplies."""

    pull: Pull
    elements: int

    def __call__(
        self, tangents: Sequence[Tensor | None], wanted: Sequence[int]
    ) -> list[Tensor | None]:
        return self.pull(tangents, wanted)

    def chunks(self, num_columns: int, num_params: int) -> Iterator[slice]:
        """Columns to push at once: one where the graph is large, many where the overhead of a pass is all there is."""
        return chunks(num_columns, max(num_params, self.elements))


Linearise = Callable[[Problem, Batch], Push]


def linearised_hessian(problem: Problem, batch: Batch) -> Push:
    params = list(problem.params.values())
    with _layers(problem):
        loss = problem.loss(batch)
    check_twice_differentiable(loss)
    gradients = gradients_of(loss, params, create_graph=True)
    return Push(
        lambda tangents, wanted: vjp(gradients, tangents, [params[j] for j in wanted]),
        graph_values(loss),
    )


def linearised_ggn(problem: Problem, batch: Batch) -> Push:
    params = list(problem.params.values())
    outputs, leaf, slope = _loss_slope(problem, batch)
    dummy = torch.zeros_like(outputs, requires_grad=True)
    pulled = gradients_of(outputs, params, create_graph=True, grad_outputs=dummy)

    def push(tangents: Sequence[Tensor | None], wanted: Sequence[int]) -> list[Tensor | None]:
        (pushed,) = vjp(pulled, tangents, [dummy])  # J v: the pull-back u ↦ Jᵀu is linear in u
        (bent,) = vjp([slope], [pushed], [leaf])
        return vjp([outputs], [bent], [params[j] for j in wanted])

    return Push(push, graph_values(outputs))


def linearised_residual(problem: Problem, batch: Batch) -> Push:
    params = list(problem.params.values())
    with _layers(problem):
        outputs, leaf, slope = _loss_slope(problem, batch)
    check_no_penalty(problem, problem.loss_of(leaf, batch))
    linear = outputs.mul(0.0 if slope is None else slope.detach()).sum()
    gradients = gradients_of(linear, params, create_graph=True)
    return Push(
        lambda tangents, wanted: vjp(gradients, tangents, [params[j] for j in wanted]),
        graph_values(linear),
    )


def _layers(problem: Problem) -> AbstractContextManager[Any]:
    """Faster convolutions and batch norms where products come one by one: they have no rule for a batch of products."""
    return BilinearLayers() if problem.num_params > CHUNK_ELEMENTS // 2 else nullcontext()


def _loss_slope(problem: Problem, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """The outputs, a leaf of the same values, and the slope ∂loss/∂leaf with its graph."""
    outputs = problem.outputs(batch)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the Gauss-Newton matrix needs one output tensor, the model returns {type(outputs).__name__}: "
            "wrap the model so that it returns its logits"
        )
    leaf = outputs.detach().requires_grad_()
    loss = problem.loss_of(leaf, batch)
    check_twice_differentiable(outputs)
    check_twice_differentiable(loss)
    (slope,) = gradients_of(loss, [leaf], create_graph=True)
    return outputs, leaf, slope


def check_no_penalty(problem: Problem, loss: Tensor) -> None:
    """Raises ValueError where a loss of outputs that were cut off depends on parameters all the same."""
    if graph_leaves(loss) & {id(p) for p in problem.params.values()}:
        raise ValueError(
            "loss_fn reads parameters of the model by itself: H − G then holds more than the residual; use "
            "hessian(problem) - ggn(problem), or let the model return the penalty"
        )
