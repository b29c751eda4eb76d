"""Blocks of the Hessian between the uses of one tied tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from hesstheory.autograd.graph import (
    check_twice_differentiable,
    differentiating,
    second_derivatives,
)
from hesstheory.autograd.products import dense_rows
from hesstheory.curvature.limits import check_dense_fits
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem


@differentiating()
def unrolled_hessian(problem: Problem, name: str) -> Float[Tensor, "instances n instances n"]:
    """Blocks of the Hessian between the uses of one tensor, as if each use had its own tensor.

    The blocks U_rs between the uses r, s = 1..T add up to the block of the tensor, Σ_rs U_rs = H_w.
    A use is one torch call that takes the tensor.

    Parameters
    ----------
    problem
        The risk.
    name
        Name of the tensor in `problem.params`.

    Returns
    -------
    Tensor
        U (T × n × T × n) in float64, for a tensor of n entries that is used T times.

    Raises
    ------
    KeyError
        No parameter has this name.
    ValueError
        The batches use the tensor a different number of times.
    MemoryError
        The blocks cannot be held.

    Examples
    --------
    One weight, used twice: the risk is (w·w·x)²/2 at w = x = 1.

    >>> import torch
    >>> from torch import nn
    >>> from hesstheory import Problem, unrolled_hessian
    >>> class Twice(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = nn.Parameter(torch.ones(1))
    ...     def forward(self, x):
    ...         return self.w * (self.w * x)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> problem = Problem(Twice(), half_square, [(torch.ones(1, 1), torch.zeros(1, 1))])
    >>> unrolled_hessian(problem, "w").reshape(2, 2).tolist()
    [[1.0, 2.0], [2.0, 1.0]]
    """
    if name not in problem.params:
        raise KeyError(
            f"no parameter {name!r}; the parameters are {', '.join(map(repr, problem.params))}"
        )
    problem = problem.double()  # dense results are float64
    total: Tensor | None = None
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        U = _unrolled(problem, name, batch)
        if total is not None and total.shape != U.shape:
            raise ValueError(
                f"{name} is used {len(total)} times in one batch and {len(U)} times in another: "
                "unroll them one by one"
            )
        total = weight * U if total is None else total + weight * U
    assert total is not None  # a Problem has at least one batch
    return total


def _unrolled(
    problem: Problem, name: str, batch: Batch
) -> Float[Tensor, "instances n instances n"]:
    """The blocks between the uses of a tensor in the loss of one batch."""
    with _SeparateUses(problem.params[name]) as uses:
        loss = problem.loss(batch)
    with second_derivatives():
        check_twice_differentiable(loss)
        gradients = torch.autograd.grad(loss, uses.leaves, create_graph=True, allow_unused=True)
        # A call whose result the loss does not depend on is no use.
        live = [(leaf, g) for leaf, g in zip(uses.leaves, gradients, strict=True) if g is not None]
        T = len(live)
        n = problem.params[name].numel()
        check_dense_fits(T * n, problem.device)
        leaves = [leaf for leaf, _ in live]
        return torch.stack([dense_rows(g, leaves) for _, g in live]).reshape(T, n, T, n)


class _SeparateUses(TorchFunctionMode):
    """Gives a fresh leaf to every torch call that takes the tensor, so that uses are told apart."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.leaves: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        return func(*tree_map(self._separate, args), **tree_map(self._separate, kwargs or {}))

    def _separate(self, value: object) -> object:
        """A fresh leaf for the tensor, anything else as it is."""
        if value is not self.tensor:
            return value
        self.leaves.append(self.tensor.detach().clone().requires_grad_())
        return self.leaves[-1]
