"""Which operations are linear, piecewise linear or products in a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from torch import Tensor
from torch.autograd.graph import Node

from hesstheory.autograd.graph import (
    is_in_train_mode,
    leaf_of,
    operation,
    parents_first,
    user_function,
)

# By the names that `operation` reads. A name that is missing costs an exact trace; a name in the
# wrong set would cost a wrong number.
_LINEAR = frozenset(
    """Add Sub Rsub Neg Sum Mean T View UnsafeView Reshape ReshapeAlias Expand Permute Transpose
    Squeeze Unsqueeze Slice Select Index IndexSelect Gather Cat Stack Split SplitWithSizes Unbind
    Clone ToCopy Alias AsStrided Diagonal AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D
    MkldnnAdaptiveAvgPool2D ConstantPadNd Roll Flip Repeat Unfold Im2Col Col2Im Embedding
    UpsampleNearest2D UpsampleBilinear2D PixelShuffle PixelUnshuffle Cumsum MaskedFill
    ReflectionPad2D ReplicationPad2D Movedim Swapaxes Detach""".split()  # noqa: SIM905
)

_PIECEWISE = frozenset(
    """Relu LeakyRelu Threshold Hardtanh Clamp ClampMin ClampMax Abs MaxPool2DWithIndices
    MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D Max Min Amax Amin Maximum Minimum Sort
    Topk Where Hardshrink Softshrink""".split()  # noqa: SIM905
)

_PRODUCTS = frozenset(
    """Mul Mm Bmm Addmm Addbmm Baddbmm Mv Addmv Dot Linear Convolution MkldnnConvolution
    NativeBatchNorm CudnnBatchNorm PreluKernel""".split()  # noqa: SIM905
)


def obstacle(outputs: Tensor) -> tuple[Node, str] | None:
    """The first operation by which outputs may be nonlinear in a single parameter.

    An operation is affine in each parameter in three cases. It is linear, it is piecewise linear,
    or it is a product of factors that depend on different parameters.

    Parameters
    ----------
    outputs
        Outputs of a model, with their graph.

    Returns
    -------
    tuple[Node, str] | None
        The node of the operation and the reason in words; None where there is none.
    """
    # Sets of parameters as the bits of an integer: unions and overlaps cost one operation each.
    bits: dict[int, int] = {}
    depends: dict[Node | None, int] = {None: 0}
    for node in parents_first(outputs.grad_fn):  # operands come before what is made of them
        if (leaf := leaf_of(node)) is not None:
            depends[node] = 1 << bits.setdefault(id(leaf), len(bits))
            continue
        operands = [depends[parent] for parent, _ in node.next_functions]
        if reason := _why_not_affine(node, operands):
            return node, reason
        depends[node] = reduce(or_, operands, 0)
    return None


def _why_not_affine(node: Node, operands: Sequence[int]) -> str:
    """Why a node may bend in a parameter that its operands depend on; empty where it does not."""
    name = operation(node)
    if not any(operands):
        return ""
    if user_function(node) is not None:
        return f"the graph does not show what {name}, a torch.autograd.Function of your own, does"
    if name in _LINEAR or name in _PIECEWISE:
        return ""
    if name == "Div" and not any(operands[1:]):  # by a constant
        return ""
    if name == "CopySlices":
        return (
            f"{name}, an operation in place on a view, hides what it does (write it out of place)"
        )
    if name not in _PRODUCTS:
        return f"{name} is not known to be piecewise linear"
    if is_in_train_mode(node):
        return f"{name} is in train mode and divides by a deviation that depends on parameters"
    if _overlap(operands):
        return f"{name} multiplies two values that depend on the same parameters (a tie in series?)"
    return ""


def _overlap(sets: Sequence[int]) -> bool:
    """Whether any two sets of bits have one in common."""
    seen = 0
    for some in sets:
        if seen & some:
            return True
        seen |= some
    return False
