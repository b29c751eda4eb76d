"""Nodes and leaves of PyTorch's graph, and what has no second derivative in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves


class NotTwiceDifferentiable(RuntimeError):
    """An operation of the model or the loss has no second derivative in PyTorch."""


@contextmanager
def differentiating() -> Iterator[None]:
    """Gradients on, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def graph_nodes(value: Tensor) -> Iterator[Any]:
    """Every node of the graph that a tensor hangs on."""
    seen: set[Any] = set()
    stack = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parent for parent, _ in node.next_functions)


def graph_leaves(loss: Tensor) -> set[int]:
    """Identities of the leaf tensors that a graph ends in."""
    return {id(node.variable) for node in graph_nodes(loss) if hasattr(node, "variable")}


@contextmanager
def second_derivatives() -> Iterator[None]:
    """Gradients on; turns autograd's refusals into an error that names the cure."""
    try:
        with differentiating():
            yield
    except RuntimeError as error:
        cure = next((cure for sign, cure in _CURES.items() if sign in str(error)), None)
        if cure is None:
            raise
        raise NotTwiceDifferentiable(
            f"{cure} (PyTorch said: {str(error).splitlines()[0]})"
        ) from error


def check_twice_differentiable(value: Tensor) -> None:
    """Refuses a once_differentiable function, whose second derivative autograd takes for zero without a word."""
    for node in graph_nodes(value):
        function: Any = getattr(type(node), "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE:
            raise NotTwiceDifferentiable(
                f"{function.__name__} is once_differentiable: write its backward in torch operations"
            )


def graph_values(value: Tensor) -> int:
    """Number of values that the forward graph of a tensor holds."""
    shapes = (
        metadata.shape
        for node in graph_nodes(value)
        for metadata in getattr(node, "_input_metadata", ())
    )
    return sum(math.prod(shape) for shape in shapes)


_ONCE = once_differentiable(
    lambda ctx, *gradients: gradients
).__code__  # the wrapper that every use of it shares

_RECURRENT = "recurrent layers of cuDNN have no second derivative: use `with torch.backends.cudnn.flags(enabled=False)`"

_CURES = {
    "use_reentrant": "reentrant checkpointing hides parameters: checkpoint with use_reentrant=False",
    "Checkpointing is not compatible": "reentrant checkpointing hides parameters: checkpoint with use_reentrant=False",
    "scaled_dot_product": "a fused attention kernel has no second derivative: use sdpa_kernel(SDPBackend.MATH)",
    "CuDNN RNN": _RECURRENT,
    "cudnn RNN": _RECURRENT,
    "aot_autograd does not": "a compiled module has no second derivative: pass the model as it was before compilation",
    "is not implemented": "an operation has no second derivative: replace it by differentiable torch operations",
    "does not require grad": "a custom autograd.Function breaks the graph in backward: write it in torch operations",
}


def parents_first(root: Any) -> Iterator[Any]:
    """Every node of a graph after all that it is computed from."""
    done: set[Any] = {None}
    stack = [root]
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
            continue
        if open_ones := [parent for parent, _ in node.next_functions if parent not in done]:
            stack.extend(open_ones)
            continue
        done.add(node)
        stack.pop()
        yield node


@contextmanager
def owners(model: nn.Module) -> Iterator[dict[Any, str]]:
    """Names of the innermost modules whose forward pass makes the nodes of a graph."""
    owner: dict[Any, str] = {}
    running: list[str] = []

    def claim(values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                for node in graph_nodes(value):
                    owner.setdefault(node, running[-1] if running else "")

    def enters(name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            claim(args)
            running.append(name)

        return enter

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        claim(output)
        running.pop()

    handles: list[Any] = [
        module.register_forward_pre_hook(enters(name)) for name, module in model.named_modules()
    ]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        yield owner
    finally:
        for handle in handles:
            handle.remove()


def uses_of_leaves(outputs: Tensor) -> dict[int, int]:
    """How many nodes of the graph take each leaf tensor."""
    counts: dict[int, int] = {}
    for node in graph_nodes(outputs):
        for parent, _ in node.next_functions:
            if parent is not None and hasattr(parent, "variable"):
                counts[id(parent.variable)] = counts.get(id(parent.variable), 0) + 1
    return counts
