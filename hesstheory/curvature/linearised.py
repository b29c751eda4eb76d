"""One batch, linearised: how a vector is pushed through H, G or R on a graph that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from hesstheory.autograd.graph import (
    check_twice_differentiable,
    graph_values,
)
from hesstheory.autograd.layers import BilinearLayers
from hesstheory.autograd.products import chunks, columns_at_once, gradients_of, vjp
from hesstheory.curvature.loss_slope import (
    curvature_seen_through,
    loss_slope,
    reads_parameters,
    restored_slope,
)
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem

# Tangents (one per parameter, K leading, None for zero) and the numbers of the wanted parameters,
# mapped to the rows of the product that those parameters hold (None for zero).
Pull = Callable[[Sequence[Tensor | None], Sequence[int]], list[Tensor | None]]


@dataclass(frozen=True)
class Push:
    """Products with one linearised batch.

    Parameters
    ----------
    pull
        The product itself, see `Pull`.
    elements
        Number of values on the graph. A chunk of K columns holds K times as many.
    """

    pull: Pull
    elements: int

    def __call__(
        self, tangents: Sequence[Tensor | None], wanted: Sequence[int]
    ) -> list[Tensor | None]:
        return self.pull(tangents, wanted)

    def chunks(self, num_columns: int, num_params: int) -> Iterator[slice]:
        """Columns to push at once, fewer where the graph or the parameters are large."""
        return chunks(num_columns, max(num_params, self.elements))


Linearise = Callable[[Problem, Batch], Push]


def linearised_hessian(problem: Problem, batch: Batch) -> Push:
    """Products with the Hessian of the loss of one batch, by reverse over reverse."""
    params = list(problem.params.values())
    with _layers(problem):
        outputs = problem.outputs(batch)
        loss = problem.loss_of(outputs, batch)
    check_twice_differentiable(loss)
    gradients = _restored_gradients(problem, outputs, batch)
    if gradients is None:
        gradients = gradients_of(loss, params, create_graph=True)
    return Push(
        lambda tangents, wanted: vjp(gradients, tangents, [params[j] for j in wanted]),
        graph_values(loss),
    )


def _restored_gradients(
    problem: Problem, outputs: object, batch: Batch
) -> list[Tensor | None] | None:
    """Jᵀs with a slope s none of whose digits cancelled; None where none would have."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        return None
    slope = restored_slope(problem, outputs, batch)
    if slope is None or reads_parameters(problem, problem.loss_of(outputs.detach(), batch)):
        return None
    params = list(problem.params.values())
    return gradients_of(outputs, params, create_graph=True, grad_outputs=slope(outputs))


def linearised_ggn(problem: Problem, batch: Batch) -> Push:
    """Products Jᵀ (∂²loss/∂f²) J v with the Gauss-Newton matrix of one batch."""
    params = list(problem.params.values())
    outputs = _output_tensor(problem, batch)
    leaf, slope = loss_slope(problem, outputs, batch)
    # Its values do not matter, it is differentiated once and Jᵀu is linear in u.
    dummy = torch.zeros_like(outputs, requires_grad=True)
    pulled = gradients_of(outputs, params, create_graph=True, grad_outputs=dummy)

    def push(tangents: Sequence[Tensor | None], wanted: Sequence[int]) -> list[Tensor | None]:
        # J v without forward mode, which many operations lack: the transpose of u ↦ Jᵀu is J.
        (pushed,) = vjp(pulled, tangents, [dummy])
        (bent,) = vjp([slope], [pushed], [leaf])
        return vjp([outputs], [bent], [params[j] for j in wanted])

    return Push(push, graph_values(outputs))


def linearised_residual(problem: Problem, batch: Batch) -> Push:
    """Products with the Hessian of ⟨∂loss/∂f, f⟩, the slope held fixed, of one batch.

    Of log-probabilities, G is that of the logits: ⟨s, f⟩ − ½⟨d, (f − f₀)²⟩ has the Hessian H − G.
    """
    params = list(problem.params.values())
    with _layers(problem):
        outputs = _output_tensor(problem, batch)
        _, slope = loss_slope(problem, outputs, batch, no_penalty=True)
    linear = outputs.mul(slope.detach()).sum()
    if (d := curvature_seen_through(problem, outputs, batch)) is not None:
        linear = linear - d.mul((outputs - outputs.detach()).square()).sum() / 2
    gradients = gradients_of(linear, params, create_graph=True)
    return Push(
        lambda tangents, wanted: vjp(gradients, tangents, [params[j] for j in wanted]),
        graph_values(linear),
    )


def _layers(problem: Problem) -> AbstractContextManager[object]:
    """Faster convolutions and batch norms, which have no rule for a batch of products."""
    # They pay where columns go one by one, which is where the model is large.
    return BilinearLayers() if columns_at_once(problem.num_params) == 1 else nullcontext()


def _output_tensor(problem: Problem, batch: Batch) -> Tensor:
    """The outputs of a batch with their graph, which must be one real tensor."""
    outputs = checked_outputs(problem.outputs(batch))
    check_twice_differentiable(outputs)
    return outputs


def checked_outputs(outputs: object) -> Tensor:
    """The outputs of a batch; TypeError where they are not one tensor of real numbers."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model returns a {type(outputs).__name__}, and the Gauss-Newton matrix needs the "
            "one tensor in which the loss is convex: select it, as "
            "Problem(..., outputs=lambda out: out.logits) does"
        )
    if outputs.is_complex():
        raise TypeError(
            "the outputs are complex, and the Gauss-Newton matrix is one of real outputs: pass "
            "outputs=torch.view_as_real, and let loss_fn begin with torch.view_as_complex(outputs)"
        )
    return outputs
