"""Which operations are linear, piecewise linear or products: does any bend the outputs in one parameter?"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor

from hesstheory.autograd.graph import parents_first

_LINEAR = frozenset(
    """AccumulateGrad Add Sub Rsub Neg Sum Mean T View UnsafeView Reshape ReshapeAlias Expand Permute Transpose Squeeze
    Unsqueeze Slice Select Index IndexSelect Gather Cat Stack Split SplitWithSizes Unbind Clone ToCopy Alias
    AsStrided Diagonal AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D ConstantPadNd
    Roll Flip Repeat Unfold Im2Col Col2Im Embedding UpsampleNearest2D UpsampleBilinear2D PixelShuffle PixelUnshuffle
    Cumsum MaskedFill ReflectionPad2D ReplicationPad2D Movedim Swapaxes Detach""".split()  # noqa: SIM905
)

_PIECEWISE = frozenset(
    """Relu LeakyRelu Threshold Hardtanh Clamp ClampMin ClampMax Abs MaxPool2DWithIndices MaxPool3DWithIndices
    AdaptiveMaxPool2D AdaptiveMaxPool3D Max Min Amax Amin Maximum Minimum Sort Topk Where Hardshrink
    Softshrink""".split()  # noqa: SIM905
)

_PRODUCTS = frozenset(
    """Mul Mm Bmm Addmm Addbmm Baddbmm Mv Addmv Dot Linear Convolution MkldnnConvolution NativeBatchNorm CudnnBatchNorm
    PreluKernel""".split()  # noqa: SIM905
)


def obstacle(outputs: Tensor) -> tuple[Any, str] | None:
    """The first operation that bends the outputs in a single parameter, with the reason; None where there is none.

    An operation is affine in each parameter if it is linear, or piecewise so, in what depends on parameters, or a
    product of factors that depend on different ones.
    """
    bits: dict[int, int] = {}
    depends: dict[Any, int] = {None: 0}
    for node in parents_first(outputs.grad_fn):
        operands = [depends[parent] for parent, _ in node.next_functions]
        name = node.name().partition("Backward")[0].rpartition("::")[2].rstrip("0123456789")
        if name.endswith("AccumulateGrad"):
            depends[node] = 1 << bits.setdefault(id(node.variable), len(bits))
            continue
        union = reduce(or_, operands, 0)
        depends[node] = union
        if union and hasattr(type(node), "_forward_cls"):
            return (
                node,
                f"the graph does not show what {name}, a torch.autograd.Function of your own, does",
            )
        if not union or name in _LINEAR or name in _PIECEWISE:
            continue
        if name == "Div" and len(operands) > 1 and not operands[1]:
            continue
        if name == "CopySlices":
            return (
                node,
                f"{name}, an operation in place on a view, hides what it does (write it out of place)",
            )
        if name not in _PRODUCTS and not (name == "Div" and len(operands) == 1):
            return node, f"{name} is not known to be piecewise linear"
        if getattr(node, "_saved_training", False):
            return (
                node,
                f"{name} is in train mode and divides by a deviation that depends on parameters",
            )
        seen = 0
        for operand in operands:
            if seen & operand:
                return (
                    node,
                    f"{name} multiplies two values that depend on the same parameters (a tie in series?)",
                )
            seen |= operand
    return None
