"""Gradients of single samples for tensors without a rule: side by side, or one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from hesstheory.autograd.rows import generic
from hesstheory.outputs.rules import CHUNK_BYTES
from hesstheory.problem.risk import Problem

# Samples up to which a backward pass for each costs less than vmap.
_FEW = 8

# Roundings, in eps, by which a sum over samples may differ from that of the batch: one per layer
# and sample, far fewer than a thousand, while another function differs in its leading digits.
_ROUNDINGS = 1e3

# Of a cotangent, the squared gradients of every sample by tensor.
Squares = Callable[[Tensor], dict[str, Tensor]]


def square(row: Tensor) -> Tensor:
    """‖row‖², line by line, which is faster by far than the norm of all."""
    lines = row.reshape(len(row) if row.ndim > 1 else 1, -1)
    total: Tensor = torch.linalg.vector_norm(lines, dim=1).square().sum()
    return total


def pulled_back(
    outputs: Tensor, params: Mapping[str, Tensor], cotangent: Tensor
) -> dict[str, Tensor]:
    """Σ_n J_nᵀ u_n of the tensors that the outputs depend on."""
    rows = torch.autograd.grad(
        outputs, list(params.values()), cotangent, retain_graph=True, allow_unused=True
    )
    return {name: row for name, row in zip(params, rows, strict=True) if row is not None}


def one_by_one(
    outputs: Tensor, params: Mapping[str, Tensor], cotangent: Tensor
) -> dict[str, Tensor]:
    """‖J_nᵀ u_n‖² by tensor and sample, from one backward pass of the batch for every sample."""
    found = {name: cotangent.new_zeros(len(cotangent)) for name in params}
    # A tensor for which a generic sum over the samples is zero has a zero gradient in every one.
    weights = 1.5 + generic(cotangent.new_empty(len(cotangent), *[1] * (cotangent.ndim - 1)))
    sums = pulled_back(outputs, params, weights * cotangent)
    alive = {name: params[name] for name, row in sums.items() if bool(row.any())}
    for n in range(len(cotangent) if alive else 0):
        alone = torch.zeros_like(cotangent)
        alone[n] = cotangent[n]
        for name, row in pulled_back(outputs, alive, alone).items():
            found[name][n] = square(row)
    return found


@dataclass(frozen=True)
class _OneSample:
    """The model as a function of some of its tensors and of one sample."""

    problem: Problem
    fixed: dict[str, Tensor]

    def slope(self, tensors: dict[str, Tensor], sample: object, u: Tensor) -> tuple[Tensor, Tensor]:
        """⟨u, f⟩ and the outputs f."""
        one = tree_map(
            lambda leaf: leaf[None] if isinstance(leaf, Tensor) and leaf.ndim else leaf, sample
        )
        output: Tensor = self.problem.outputs_at({**self.fixed, **tensors}, one)[0]
        return (output * u).sum(), output

    def squared(
        self, tensors: dict[str, Tensor], sample: object, u: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """‖∂⟨u, f⟩/∂tensor‖² and the outputs f."""
        row, output = grad(self.slope, has_aux=True)(tensors, sample, u)
        return {name: g.square().sum() for name, g in row.items()}, output


def side_by_side(
    problem: Problem, inputs: object, outputs: Tensor, params: Mapping[str, Tensor]
) -> Squares | None:
    """‖J_nᵀ u_n‖² by tensor and sample, every sample through the model by itself, by vmap.

    None for few samples. None too where the model cannot go through vmap, or is not the same
    function of samples by themselves: `one_by_one` then serves.
    """
    if len(outputs) <= _FEW:
        return None
    fixed = {name: p.detach() for name, p in problem.params.items()}
    own = {name: fixed[name] for name in params}
    one = _OneSample(problem, fixed)
    of_samples = tree_map(
        lambda leaf: 0 if isinstance(leaf, Tensor) and leaf.ndim else None, inputs
    )
    size = max(CHUNK_BYTES // sum(p.numel() * p.itemsize for p in own.values()), 1)
    each = vmap(one.squared, (None, of_samples, 0), chunk_size=size)
    u = generic(outputs.detach())

    def combined(tensors: dict[str, Tensor]) -> Tensor:
        return vmap(one.slope, (None, of_samples, 0))(tensors, inputs, u)[0].sum()

    try:
        squares, found = each(own, inputs, u)
        sums = grad(combined)(own)
    except torch.OutOfMemoryError:
        raise
    # Whatever an operation without a batching rule, or a model for whole batches, makes of it.
    except Exception:
        return None
    in_batch = pulled_back(outputs, params, u)
    if not _is_same_function(found, outputs.detach(), squares, sums, in_batch):
        return None
    return lambda cotangent: each(own, inputs, cotangent)[0]


def _is_same_function(
    found: Tensor,
    outputs: Tensor,
    squares: Mapping[str, Tensor],
    sums: Mapping[str, Tensor],
    in_batch: Mapping[str, Tensor],
) -> bool:
    """Whether samples by themselves have the outputs and gradients that they have in the batch."""
    eps = torch.finfo(outputs.dtype).eps
    # Half of the digits: kernels of another size add up in another order.
    bound = eps**0.5 * outputs.abs().max()
    if found.shape != outputs.shape or not bool(((found - outputs).abs() <= bound).all()):
        return False
    return all(
        bool((sums[name] - row).norm() <= _ROUNDINGS * eps * squares[name].sum().sqrt())
        for name, row in in_batch.items()
    )
