"""Blocks of the Hessian between the uses of one tied tensor."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from hesstheory.autograd.graph import check_twice_differentiable, second_derivatives
from hesstheory.autograd.products import dense_rows
from hesstheory.curvature.limits import check_dense_fits
from hesstheory.problem.risk import Problem


def unrolled_hessian(problem: Problem, name: str) -> Float[Tensor, "instances n instances n"]:
    """Blocks U_rs between the uses r, s = 1..T of one tensor, as if every use had a tensor of its own; Σ_rs U_rs = H_w.

    A use is one torch call that takes the tensor. Dense, float64. Raises KeyError for an unknown name and ValueError
    where the batches use the tensor a different number of times.
    """
    if name not in problem.params:
        raise KeyError(
            f"no parameter {name!r}; the parameters are {', '.join(map(repr, problem.params))}"
        )
    problem = problem.double()
    total: Tensor | None = None
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        with _SeparateUses(problem.params[name]) as uses:
            loss = problem.loss(batch)
        with second_derivatives():
            check_twice_differentiable(loss)
            gradients = torch.autograd.grad(loss, uses.leaves, create_graph=True, allow_unused=True)
            live = [
                (leaf, g) for leaf, g in zip(uses.leaves, gradients, strict=True) if g is not None
            ]
            T, n = len(live), problem.params[name].numel()
            check_dense_fits(T * n, problem.device)
            U = torch.stack([dense_rows(g, [leaf for leaf, _ in live]) for _, g in live]).reshape(
                T, n, T, n
            )
        if total is not None and total.shape != U.shape:
            raise ValueError(
                f"{name} is used {len(total)} times in one batch and {T} times in another: unroll them one by one"
            )
        total = weight * U if total is None else total + weight * U
    assert total is not None  # a Problem has at least one batch
    return total


class _SeparateUses(TorchFunctionMode):
    """Hands a fresh leaf to every torch call that takes the tensor, so that the uses can be told apart."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.leaves: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(*tree_map(self._separate, args), **tree_map(self._separate, kwargs or {}))

    def _separate(self, value: Any) -> Any:
        if value is not self.tensor:
            return value
        self.leaves.append(self.tensor.detach().clone().requires_grad_())
        return self.leaves[-1]
