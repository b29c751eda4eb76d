"""Nodes and leaves of PyTorch's graph, and what has no second derivative in it.

Every walk over a graph and every reading of a node's attributes stands here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

# --- walks --------------------------------------------------------------------------------------


def graph_nodes(value: Tensor) -> Iterator[Node]:
    """Every node of the graph that a tensor hangs on, in no particular order."""
    seen: set[Node] = set()
    stack: list[Node | None] = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parent for parent, _ in node.next_functions)


def parents_first(root: Node | None) -> Iterator[Node]:
    """Every node of a graph after all that it is computed from."""
    done: set[Node | None] = {None}
    stack = [root]
    while stack:
        node = stack[-1]
        if node is None or node in done:
            stack.pop()
            continue
        # By hand and not by recursion: graphs are deeper than Python's stack.
        if waiting := [parent for parent, _ in node.next_functions if parent not in done]:
            stack.extend(waiting)
            continue
        done.add(node)
        stack.pop()
        yield node


def graph_leaves(value: Tensor) -> set[int]:
    """Identities of the leaf tensors that a graph ends in."""
    return {id(leaf) for node in graph_nodes(value) if (leaf := leaf_of(node)) is not None}


def uses_of_leaves(value: Tensor) -> dict[int, int]:
    """How many nodes of the graph take each leaf tensor, by its identity."""
    counts: dict[int, int] = {}
    for node in graph_nodes(value):
        for parent, _ in node.next_functions:
            if (leaf := leaf_of(parent)) is not None:
                counts[id(leaf)] = counts.get(id(leaf), 0) + 1
    return counts


def graph_values(value: Tensor) -> int:
    """Number of values that the forward graph of a tensor holds."""
    return sum(map(node_values, graph_nodes(value)))


def pushed_values(value: Tensor) -> int:
    """Number of values that a backward pass goes through: all but leaves and their transposes."""
    # A linear layer transposes its weight first: a pass does no work there.
    nodes = list(graph_nodes(value))
    leaves = {node for node in nodes if leaf_of(node) is not None}
    return sum(
        node_values(node)
        for node in nodes
        if node not in leaves and not {parent for parent, _ in node.next_functions} <= leaves
    )


@contextmanager
def owners(model: nn.Module) -> Iterator[dict[Node, str]]:
    """Names of the innermost modules whose forward pass makes the nodes of a graph."""
    owner: dict[Node, str] = {}
    running: list[str] = []

    def claim(values: object) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                # The innermost module returns first, and who claims a node first keeps it.
                for node in graph_nodes(value):
                    owner.setdefault(node, running[-1] if running else "")

    def enters(name: str) -> Callable[[nn.Module, object], None]:
        def enter(module: nn.Module, args: object) -> None:
            claim(args)
            running.append(name)

        return enter

    def leave(module: nn.Module, args: object, output: object) -> None:
        claim(output)
        running.pop()

    with ExitStack() as hooks:
        # What a module is given was made outside of it, what it returns and nobody claimed inside.
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            hooks.enter_context(module.register_forward_pre_hook(enters(name)))
            hooks.enter_context(module.register_forward_hook(leave))
        yield owner


# --- one node -----------------------------------------------------------------------------------


def operation(node: Node) -> str:
    """Name of the operation that made a node: "Addmm" of AddmmBackward0."""
    return node.name().partition("Backward")[0].rpartition("::")[2].rstrip("0123456789")


def leaf_of(node: Node | None) -> Tensor | None:
    """The leaf tensor whose gradient a node adds up; None for any other node."""
    # By name: a user's Function may keep an attribute of that name on its node.
    if node is None or not node.name().endswith("AccumulateGrad"):
        return None
    leaf: Tensor | None = getattr(node, "variable", None)
    return leaf


def user_function(node: Node) -> type[torch.autograd.Function] | None:
    """The `torch.autograd.Function` whose forward made a node; None for PyTorch's operations."""
    return getattr(type(node), "_forward_cls", None)


def is_in_train_mode(node: Node) -> bool:
    """Whether a node is a batch norm that divides by the deviation of its batch."""
    return bool(getattr(node, "_saved_training", False))


def saved_option(node: Node, option: str) -> object:
    """An option of the operation that made a node, which it saves; None where it saves none."""
    return getattr(node, f"_saved_{option}", None)


def shape_of(node: Node | None, output: int = 0) -> Sequence[int]:
    """Shape of an output of the operation that made a node."""
    if node is None:
        raise ValueError("a constant has no node: its shape is not in the graph")
    shape: Sequence[int] = node._input_metadata[output].shape
    return shape


def node_values(node: Node) -> int:
    """Number of values that the operation of a node made."""
    return sum(math.prod(output.shape) for output in getattr(node, "_input_metadata", ()))


def coarsest_eps(value: Tensor) -> float:
    """The largest eps of the real dtypes that a tensor and the nodes of its graph have."""
    dtypes = {value.dtype} | {
        output.dtype
        for node in graph_nodes(value)
        for output in getattr(node, "_input_metadata", ())
    }
    return max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)


# --- derivatives --------------------------------------------------------------------------------


class NotTwiceDifferentiable(RuntimeError):
    """An operation of the model or the loss has no second derivative in PyTorch.

    The message names the operation and what to write in its place.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from torch.nn import functional as F
    >>> from hesstheory import NotTwiceDifferentiable, Problem, hessian
    >>> class Distances(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = nn.Parameter(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    ...     def forward(self, x):
    ...         return torch.cdist(x, self.w)
    >>> problem = Problem(Distances(), F.mse_loss, [(torch.ones(3, 2), torch.zeros(3, 2))])
    >>> try:
    ...     hessian(problem).to_dense()
    ... except NotTwiceDifferentiable as error:
    ...     print(str(error).partition(" (")[0])
    an operation has no second derivative: replace it by differentiable torch operations
    """


@contextmanager
def differentiating() -> Iterator[None]:
    """Gradients on and autocast off, whatever mode the caller is in.

    Autocast rounds products to bfloat16 or float16, in a backward pass as well.
    """
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield


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
    """Refuses once_differentiable functions, whose second derivative PyTorch takes for zero."""
    for node in graph_nodes(value):
        function = user_function(node)
        backward = getattr(function, "backward", None)
        if function is not None and getattr(backward, "__code__", None) is _ONCE:
            raise NotTwiceDifferentiable(
                f"{function.__name__} is once_differentiable: write its backward in torch "
                "operations"
            )


# once_differentiable returns the same wrapper code around every backward that it decorates.
_ONCE = once_differentiable(lambda ctx, *gradients: gradients).__code__

_REENTRANT = "reentrant checkpointing hides parameters: checkpoint with use_reentrant=False"
_RECURRENT = (
    "recurrent layers of cuDNN have no second derivative: "
    "use `with torch.backends.cudnn.flags(enabled=False)`"
)
# By a part of PyTorch's own message. The first that fits counts, so the general ones come last.
_CURES = {
    "hardsigmoid_backward": (
        "Hardsigmoid has no second derivative in PyTorch: write relu6(x + 3) / 6, which is the same"
    ),
    "use_reentrant": _REENTRANT,
    "Checkpointing is not compatible": _REENTRANT,
    "scaled_dot_product": (
        "a fused attention kernel has no second derivative: use sdpa_kernel(SDPBackend.MATH)"
    ),
    "CuDNN RNN": _RECURRENT,
    "cudnn RNN": _RECURRENT,
    "aot_autograd does not": (
        "a compiled module has no second derivative: pass the model as it was before compilation"
    ),
    "is not implemented": (
        "an operation has no second derivative: replace it by differentiable torch operations"
    ),
    "does not require grad": (
        "a custom autograd.Function breaks the graph in backward: write it in torch operations"
    ),
}
