"""Which operations are linear, piecewise linear or products in a parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_

from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from hesstheory.autograd.graph import (
    is_in_train_mode,
    leaf_of,
    operation,
    parents_first,
    saved_option,
    user_function,
)

# By the names that `operation` reads. A name that is missing costs an exact trace; a name in the
# wrong set would cost a wrong number.
_LINEAR = frozenset(
    """Add Sub Rsub Neg NegView Sum Nansum Mean Trace T View UnsafeView Reshape ReshapeAlias Expand
    Permute Transpose Squeeze Unsqueeze Slice Select Index IndexSelect IndexAdd IndexCopy IndexFill
    IndexPut
    Gather Scatter ScatterAdd SelectScatter SliceScatter DiagonalScatter MaskedFill MaskedScatter
    MaskedSelect Take Put Cat Stack Split SplitWithSizes Unbind BlockDiag Clone ToCopy Alias
    AsStrided Diagonal DiagEmbed Tril Triu AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D
    MkldnnAdaptiveAvgPool2D MaxUnpool2D MaxUnpool3D ConstantPadNd ReflectionPad1D ReflectionPad2D
    ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D Roll Flip Rot Repeat Unfold
    Im2Col Col2Im Embedding AffineGridGenerator UpsampleNearest1D UpsampleNearest2D
    UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D
    UpsampleLinear1D UpsampleBilinear2D UpsampleTrilinear3D UpsampleBicubic2D UpsampleBilinear2DAa
    UpsampleBicubic2DAa PixelShuffle PixelUnshuffle ChannelShuffle Cumsum Movedim Swapaxes Detach
    FftR2C FftC2C FftC2R ViewAsReal ViewAsComplex Complex Conj""".split()  # noqa: SIM905
)

_PIECEWISE = frozenset(
    """Relu LeakyRelu RreluWithNoise Threshold Hardtanh Hardsigmoid Clamp ClampMin ClampMax Abs
    MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D
    FractionalMaxPool2D FractionalMaxPool3D Max Min Amax Amin Aminmax Maximum Minimum Fmax Fmin
    Cummax Cummin Sort Topk Kthvalue Mode Median Nanmedian Where Hardshrink Softshrink Floor Ceil
    Round Trunc Frac Sign Copysign NanToNum""".split()  # noqa: SIM905
)

_PRODUCTS = frozenset(
    """Mul Mm Bmm Addmm Addbmm Baddbmm Mv Addmv Addr Dot Linear Trilinear LinalgCross Convolution
    MkldnnConvolution NativeBatchNorm CudnnBatchNorm PreluKernel EmbeddingBag SparseAddmm Addcmul
    """.split()  # noqa: SIM905
)

# Piecewise linear in these operands, while the others depend on no parameter.
_IN_SOME_OPERANDS = {
    "Div": (0,),
    "Addcdiv": (0, 1),
    "Lerp": (0, 1),
    "Fmod": (0,),
    "Remainder": (0,),
    "GridSampler2D": (0,),
    "GridSampler3D": (0,),
}

# Piecewise linear for some values of an option that the node saves, by its name.
_BY_OPTION: dict[str, tuple[str, frozenset[object]]] = {
    "ScatterReduce": ("reduce", frozenset({"sum", "mean", "amax", "amin"})),
    "IndexReduce": ("reduce", frozenset({"mean", "amax", "amin"})),
    "SegmentReduce": ("reduce", frozenset({"sum", "mean", "max", "min"})),
    "LinalgVectorNorm": ("ord", frozenset({0.0, 1.0, math.inf, -math.inf})),
    "Norm": ("p", frozenset({0.0, 1.0, math.inf, -math.inf})),
    "Dist": ("p", frozenset({1.0, math.inf})),
    "Cdist": ("p", frozenset({1.0, math.inf})),
    "Pdist": ("p", frozenset({1.0, math.inf})),
}


# Operations in place that are linear in what they write over and in what they write.
_LINEAR_IN_PLACE = frozenset(
    "copy_ zero_ fill_ add_ sub_ neg_ masked_fill_ index_fill_ index_add_ index_copy_".split()  # noqa: SIM905
)


class InPlace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of PyTorch
    """Whether all operations in place that run meanwhile are linear.

    The node of an operation in place on a view does not say which one it was.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_linear = True

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs the operation, once it is noted."""
        name = func.overloadpacket.__name__
        if func._schema.is_mutable and name not in _LINEAR_IN_PLACE:
            self.is_linear = False
        return func(*args, **(kwargs or {}))


def obstacle(outputs: Tensor, *, in_place_is_linear: bool = False) -> tuple[Node, str] | None:
    """The first operation by which outputs may be nonlinear in a single parameter.

    An operation is affine in each parameter in three cases. It is linear, it is piecewise linear,
    or it is a product of factors that depend on different parameters.

    Parameters
    ----------
    outputs
        Outputs of a model, with their graph.
    in_place_is_linear
        Whether operations in place on views are known to be linear, by `InPlace`.

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
        is_known = in_place_is_linear and operation(node) == "CopySlices"
        if not is_known and (reason := _why_not_affine(node, operands)):
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
    if name == "CopySlices":
        return (
            f"{name}, an operation in place on a view, hides what it does (write it out of place)"
        )
    if name in _IN_SOME_OPERANDS:
        others = [bits for n, bits in enumerate(operands) if n not in _IN_SOME_OPERANDS[name]]
        return f"{name} by a value that depends on parameters bends" if any(others) else ""
    if name in _BY_OPTION:
        option, linear = _BY_OPTION[name]
        value = saved_option(node, option)
        return "" if value in linear else f"{name} with {option}={value!r} bends"
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
