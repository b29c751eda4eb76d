"""What the matrix is: Hessian, Gauss-Newton matrix and their difference, known through products or held exactly."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from hesstheory.convolution import BilinearLayers
from hesstheory.problem import Batch, NotTwiceDifferentiable, Problem, differentiating, graph_leaves, graph_nodes

if TYPE_CHECKING:
    import pandas as pd

# One batch, differentiated once with its graph kept: maps tangents (one per parameter, K leading, None for zero) to the
# rows of the product that the wanted parameters hold (None for zero).
Pull = Callable[[Sequence[Tensor | None], Sequence[int]], list[Tensor | None]]


def chunks(num_columns: int, elements: int) -> Iterator[slice]:
    """Columns to push at once through a graph of so many values: one at least, so many that the caches hold them."""
    size = min(max(_CHUNK_ELEMENTS // max(elements, 1), 1), _MAX_CHUNK)
    return (slice(start, min(start + size, num_columns)) for start in range(0, num_columns, size))


@dataclass(frozen=True)
class Push:
    """One linearised batch; `elements` is the size of the values on its graph, which a chunk multiplies."""

    pull: Pull
    elements: int

    def __call__(self, tangents: Sequence[Tensor | None], wanted: Sequence[int]) -> list[Tensor | None]:
        return self.pull(tangents, wanted)

    def chunks(self, num_columns: int, num_params: int) -> Iterator[slice]:
        """Columns to push at once: one where the graph is large, many where the overhead of a pass is all there is."""
        return chunks(num_columns, max(num_params, self.elements))


Linearise = Callable[[Problem, Batch], Push]

_MAX_CHUNK = 1024  # columns pushed through a graph at once; more gain nothing even on the smallest networks
_CHUNK_ELEMENTS = 1_280_000  # columns × values of one chunk; beyond this the caches, not the overhead, set the pace


@dataclass(frozen=True)
class Curvature:
    """A symmetric P×P matrix Σ_i c_i M_i of a problem, known through its products.

    `C @ V` takes a vector or a P×K matrix in the dtype and on the device of the model; `A - B` subtracts. Exact
    matrices (`to_dense`, `block`, `block_norms`) are float64 whatever the model, in the order of `problem.params`.
    """

    problem: Problem
    terms: tuple[tuple[float, Linearise], ...]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.problem.num_params, self.problem.num_params)

    def __repr__(self) -> str:
        signs = " ".join(f"{coefficient:+g}·{getattr(term, '__name__', term)}" for coefficient, term in self.terms)
        return f"Curvature({signs.replace('_linearised_', '')}, {self.problem!r})"

    def __sub__(self, other: Curvature) -> Curvature:
        return self + Curvature(other.problem, tuple((-c, term) for c, term in other.terms))

    def __add__(self, other: Curvature) -> Curvature:
        if other.problem is not self.problem:
            raise ValueError("the two matrices belong to different problems: build both from the same Problem object")
        return Curvature(self.problem, self.terms + other.terms)

    def __matmul__(self, V: Float[Tensor, " params"] | Float[Tensor, "params columns"]) -> Tensor:
        """Product with one vector or with many columns; one graph per batch serves all columns."""
        columns = _checked_columns(self.problem, V, copies=2)
        params, out = list(self.problem.params.values()), torch.zeros_like(columns)
        for weight, push in self.pushes():
            for chunk in push.chunks(len(columns), self.problem.num_params):
                rows = push(self.tangents(columns[chunk]), range(len(params)))
                out[chunk] += weight * _side_by_side(rows, params, len(out[chunk]))
        _check_finite(out)
        return out[0] if V.ndim == 1 else out.mT

    def quadratic_forms(self, Z: Real[Tensor, "params probes"]) -> Float[Tensor, "probes blocks"]:
        """q_l = z_lᵀ(Cz)_l of every probe and block, in float64, without holding a product for longer than a chunk.

        Signs may come as int8, which is cast chunk by chunk.
        """
        everything = range(len(self.problem.params))
        return self._forms(Z, [everything])

    def separated_forms(self, Z: Real[Tensor, "params probes"]) -> Float[Tensor, "probes blocks"]:
        """q_l = z_lᵀ C_ll z_l of every probe and block: a product for each block, through what depends on it alone."""
        order = {name: j for j, name in enumerate(self.problem.params)}
        return self._forms(Z, [[order[name] for name in names] for names in self.problem.partition.blocks.values()])

    def _forms(self, Z: Tensor, parts: Sequence[Sequence[int]]) -> Tensor:
        """Forms by block, from a product for each part of the tensors, with the probe cut to that part."""
        problem, columns = self.problem, _checked_columns(self.problem, Z, (self.problem.dtype, torch.int8))
        of_tensor = columns.new_zeros(len(columns), len(problem.params), dtype=torch.float64)
        for weight, push in self.pushes():
            for chunk in push.chunks(len(columns), problem.num_params):
                tangents = self.tangents(columns[chunk])
                for part in parts:
                    only = [tangent if j in part else None for j, tangent in enumerate(tangents)]
                    for j, row in zip(part, push(only, part), strict=True):
                        if row is not None:
                            form = (row * tangents[j]).reshape(len(row), -1).sum(1, dtype=torch.float64)
                            of_tensor[chunk, j] += weight * form
        _check_finite(of_tensor)
        return of_tensor @ _membership(problem).to(of_tensor)

    def to_dense(self) -> Float[Tensor, "params params"]:
        """The matrix itself in float64; raises MemoryError, with the bytes, where it cannot be held."""
        problem = self.problem
        _check_memory(problem.num_params, problem.device)
        if problem.dtype != torch.float64:
            return Curvature(problem.double(), self.terms).to_dense()
        tensors = range(len(problem.params))
        # Symmetric: rows of tensor i need only the columns from i on. Few parameters: one chunk beats the saving.
        dense = next(iter(problem.params.values())).new_zeros(self.shape)
        if problem.num_params <= _MAX_CHUNK:
            self._add_rows(dense, tensors, tensors)
        else:
            for i in tensors:
                start, stop = list(problem.offsets.values())[i]
                self._add_rows(dense[start:stop, start:], [i], tensors[i:])
                dense[stop:, start:stop] = dense[start:stop, stop:].mT
        _check_finite(dense)
        return dense

    def block(self, l: str, m: str) -> Float[Tensor, "block_l block_m"]:
        """The block C_lm in float64, from as many products as the smaller of the two blocks has parameters."""
        problem, order = self.problem, {name: i for i, name in enumerate(self.problem.params)}
        rows, columns = ([order[name] for name in problem.tensors_of(block)] for block in (l, m))
        if problem.dtype != torch.float64:
            return Curvature(problem.double(), self.terms).block(l, m)
        sizes = [len(problem.index[block]) for block in (l, m)]
        _check_memory(int((sizes[0] * sizes[1]) ** 0.5) + 1, problem.device)
        block = self._rows(rows, columns) if sizes[0] <= sizes[1] else self._rows(columns, rows).mT
        _check_finite(block)
        return block

    def block_norms(self) -> pd.DataFrame:
        """Frobenius norms ‖C_lm‖ as a labelled L×L table."""
        import pandas as pd

        of_block = _membership(self.problem, per_parameter=True)
        dense = self.to_dense().cpu()
        names = list(self.problem.partition.blocks)
        norms = (of_block.mT @ dense.square() @ of_block).sqrt()
        return pd.DataFrame(norms.numpy(), index=names, columns=names)

    def trace_by_block(self) -> pd.Series[float]:
        """Exact traces tr C_ll by block, from the dense diagonal blocks."""
        import pandas as pd

        return pd.Series({block: float(self.block(block, block).trace()) for block in self.problem.partition.blocks})

    # --- machinery --------------------------------------------------------------------------------------------------

    def pushes(self) -> Iterator[tuple[float, Push]]:
        """Weighted linearisations, one batch and term at a time, so that one graph is alive at a time."""
        keep_freed_memory()
        for weight, batch in zip(self.problem.weights, self.problem.batches, strict=True):
            for coefficient, linearise in self.terms:
                with second_derivatives():
                    push = linearise(self.problem, batch)
                yield coefficient * weight, push

    def tangents(self, columns: Real[Tensor, "columns params"]) -> list[Tensor]:
        """Rows of a K×P matrix cut into one K×shape tensor per parameter, in the dtype of the model."""
        problem = self.problem
        return [
            columns[:, start:stop].to(problem.dtype).reshape(len(columns), *p.shape)
            for (start, stop), p in zip(problem.offsets.values(), problem.params.values(), strict=True)
        ]

    def _rows(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Rows of the given tensors, restricted to the columns of the given tensors; dense."""
        params = list(self.problem.params.values())
        shape = [sum(params[i].numel() for i in some) for some in (rows, columns)]
        return self._add_rows(params[0].new_zeros(shape), rows, columns)

    def _add_rows(self, out: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The same added to a tensor in place: copies of large pieces cost as much as the products themselves."""
        params = list(self.problem.params.values())
        for weight, push in self.pushes():
            for chunk in push.chunks(len(out), self.problem.num_params):
                start = 0
                for j, part in zip(columns, push(_unit_tangents(params, rows, chunk), columns), strict=True):
                    stop = start + params[j].numel()
                    if part is not None:
                        out[chunk, start:stop].add_(part.reshape(len(part), -1), alpha=weight)
                    start = stop
        return out


def hessian(problem: Problem) -> Curvature:
    """The Hessian H = ∇²R(θ) of the risk."""
    return Curvature(problem, ((1.0, _linearised_hessian),))


def ggn(problem: Problem) -> Curvature:
    """The generalised Gauss-Newton matrix G = (1/N) Σ_n J_nᵀ (∇²_f ℓ) J_n."""
    return Curvature(problem, ((1.0, _linearised_ggn),))


def residual(problem: Problem) -> Curvature:
    """R = H − G = (1/N) Σ_n Σ_c (∂ℓ/∂f_nc) ∇²f_nc, the Hessian of the loss made linear in the outputs.

    A product costs as much as one with H, less than half of one with `hessian(problem) - ggn(problem)`.
    """
    return Curvature(problem, ((1.0, _linearised_residual),))


def per_sample_hessians(problem: Problem) -> Float[Tensor, "samples params params"]:
    """Dense Hessians H_n of every sample, in float64 and in the order of the batches; their mean is the Hessian."""
    _check_memory(int(problem.num_params * problem.num_samples**0.5) + 1, problem.device)
    return torch.stack([hessian(sample).to_dense() for sample in problem.double().samples()])


def unrolled_hessian(problem: Problem, name: str) -> Float[Tensor, "instances n instances n"]:
    """Blocks U_rs between the uses r, s = 1..T of one tensor, as if every use had a tensor of its own; Σ_rs U_rs = H_w.

    A use is one torch call that takes the tensor. Dense, float64. Raises KeyError for an unknown name and ValueError
    where the batches use the tensor a different number of times.
    """
    if name not in problem.params:
        raise KeyError(f"no parameter {name!r}; the parameters are {', '.join(map(repr, problem.params))}")
    problem = problem.double()
    total: Tensor | None = None
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        with _SeparateUses(problem.params[name]) as uses:
            loss = problem.loss(batch)
        with second_derivatives():
            check_twice_differentiable(loss)
            gradients = torch.autograd.grad(loss, uses.leaves, create_graph=True, allow_unused=True)
            live = [(leaf, g) for leaf, g in zip(uses.leaves, gradients, strict=True) if g is not None]
            T, n = len(live), problem.params[name].numel()
            _check_memory(T * n, problem.device)
            U = torch.stack([_dense_rows(g, [leaf for leaf, _ in live]) for _, g in live]).reshape(T, n, T, n)
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
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*tree_map(self._separate, args), **tree_map(self._separate, kwargs or {}))

    def _separate(self, value: Any) -> Any:
        if value is not self.tensor:
            return value
        self.leaves.append(self.tensor.detach().clone().requires_grad_())
        return self.leaves[-1]


# --- one batch, linearised ------------------------------------------------------------------------------------------


def _linearised_hessian(problem: Problem, batch: Batch) -> Push:
    params = list(problem.params.values())
    with _layers(problem):
        loss = problem.loss(batch)
    check_twice_differentiable(loss)
    gradients = _gradients(loss, params, create_graph=True)
    return Push(lambda tangents, wanted: vjp(gradients, tangents, [params[j] for j in wanted]), graph_values(loss))


def _linearised_ggn(problem: Problem, batch: Batch) -> Push:
    params = list(problem.params.values())
    outputs, leaf, slope = _loss_slope(problem, batch)
    dummy = torch.zeros_like(outputs, requires_grad=True)
    pulled = _gradients(outputs, params, create_graph=True, grad_outputs=dummy)

    def push(tangents: Sequence[Tensor | None], wanted: Sequence[int]) -> list[Tensor | None]:
        (pushed,) = vjp(pulled, tangents, [dummy])  # J v: the pull-back u ↦ Jᵀu is linear in u
        (bent,) = vjp([slope], [pushed], [leaf])
        return vjp([outputs], [bent], [params[j] for j in wanted])

    return Push(push, graph_values(outputs))


def _linearised_residual(problem: Problem, batch: Batch) -> Push:
    params = list(problem.params.values())
    with _layers(problem):
        outputs, leaf, slope = _loss_slope(problem, batch)
    check_no_penalty(problem, problem.loss_of(leaf, batch))
    linear = outputs.mul(0.0 if slope is None else slope.detach()).sum()
    gradients = _gradients(linear, params, create_graph=True)
    return Push(lambda tangents, wanted: vjp(gradients, tangents, [params[j] for j in wanted]), graph_values(linear))


def _layers(problem: Problem) -> AbstractContextManager[Any]:
    """Faster convolutions and batch norms where products come one by one: they have no rule for a batch of products."""
    return BilinearLayers() if problem.num_params > _CHUNK_ELEMENTS // 2 else nullcontext()


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
    (slope,) = _gradients(loss, [leaf], create_graph=True)
    return outputs, leaf, slope


def check_no_penalty(problem: Problem, loss: Tensor) -> None:
    """Raises ValueError where a loss of outputs that were cut off depends on parameters all the same."""
    if graph_leaves(loss) & {id(p) for p in problem.params.values()}:
        raise ValueError(
            "loss_fn reads parameters of the model by itself: H − G then holds more than the residual; use "
            "hessian(problem) - ggn(problem), or let the model return the penalty"
        )


def _gradients(value: Tensor, inputs: Sequence[Tensor], **options: Any) -> list[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(inputs)
    return list(torch.autograd.grad(value, list(inputs), allow_unused=True, **options))


def vjp(
    values: Sequence[Tensor | None], cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor | GradientEdge]
) -> list[Tensor | None]:
    """Σ_i (∂values_i/∂inputs)ᵀ cotangents_i for K cotangents at once, on a graph that is kept; None for zero."""
    live = [
        (value, cotangent)
        for value, cotangent in zip(values, cotangents, strict=True)
        if value is not None and cotangent is not None and value.requires_grad
    ]
    if not live:
        return [None] * len(inputs)
    outputs, grads, into = [value for value, _ in live], [cotangent for _, cotangent in live], list[Any](inputs)

    def pull(grad_outputs: list[Tensor], batched: bool) -> list[Tensor | None]:
        return list(
            torch.autograd.grad(
                outputs, into, grad_outputs, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
        )

    with second_derivatives():
        if len(grads[0]) > 1:
            with suppress(RuntimeError):  # an operation without a batching rule: one by one, it may still work
                return pull(grads, batched=True)
        columns = [pull([g[k] for g in grads], batched=False) for k in range(len(grads[0]))]
        if len(columns) == 1:  # a view: a copy of all parameters is not for nothing
            return [None if row is None else row[None] for row in columns[0]]
        return [None if rows[0] is None else torch.stack(rows) for rows in map(list, zip(*columns, strict=True))]


def _dense_rows(value: Tensor, inputs: Sequence[Tensor]) -> Float[Tensor, "n all_inputs"]:
    """Derivatives of every entry of a tensor in all inputs, side by side."""
    eye = torch.eye(value.numel(), dtype=value.dtype, device=value.device).reshape(-1, *value.shape)
    return _side_by_side(vjp([value], [eye], inputs), inputs, len(eye))


def _side_by_side(rows: Sequence[Tensor | None], like: Sequence[Tensor], count: int) -> Float[Tensor, "columns all"]:
    """Rows of several tensors laid end to end, None filled with zeros."""
    parts = [
        x.new_zeros(count, x.numel()) if row is None else row.reshape(count, -1)
        for row, x in zip(rows, like, strict=True)
    ]
    return torch.cat(parts, dim=1)


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
        raise NotTwiceDifferentiable(f"{cure} (PyTorch said: {str(error).splitlines()[0]})") from error


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
    shapes = (metadata.shape for node in graph_nodes(value) for metadata in getattr(node, "_input_metadata", ()))
    return sum(math.prod(shape) for shape in shapes)


_ONCE = once_differentiable(lambda ctx, *gradients: gradients).__code__  # the wrapper that every use of it shares
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


def _unit_tangents(params: Sequence[Tensor], rows: Sequence[int], chunk: slice) -> list[Tensor | None]:
    """Unit vectors number chunk.start..chunk.stop of the given tensors laid end to end; None for untouched tensors."""
    tangents: list[Tensor | None] = [None] * len(params)
    start = 0
    for i in rows:
        n = params[i].numel()
        lo, hi = max(chunk.start, start), min(chunk.stop, start + n)
        if lo < hi:
            unit = params[i].new_zeros(chunk.stop - chunk.start, n)
            positions = torch.arange(lo, hi, device=unit.device)
            unit[positions - chunk.start, positions - start] = 1.0
            tangents[i] = unit.reshape(-1, *params[i].shape)
        start += n
    return tangents


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB of what was freed for the next product instead of handing it back to the system,
    which costs as much time as the product on some machines; MALLOC_ variables of the environment rule it out.

    A freed block just below 32 MiB lifts the size from which on blocks are handed back at once (mallopt(3)).
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(AttributeError, OSError, TypeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, 2**30)


_M_TRIM_THRESHOLD = -1  # malloc.h


def _membership(problem: Problem, per_parameter: bool = False) -> Float[Tensor, "tensors blocks"]:
    """0/1 table of which block a tensor (or every single parameter) belongs to."""
    block_of = {name: b for b, names in enumerate(problem.partition.blocks.values()) for name in names}
    table = torch.zeros(len(problem.params), len(problem.partition.blocks), dtype=torch.float64)
    for j, name in enumerate(problem.params):
        table[j, block_of[name]] = 1.0
    if not per_parameter:
        return table
    return table.repeat_interleave(torch.tensor([p.numel() for p in problem.params.values()]), dim=0)


# --- where H and G may differ ------------------------------------------------------------------------------------

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
            return node, f"the graph does not show what {name}, a torch.autograd.Function of your own, does"
        if not union or name in _LINEAR or name in _PIECEWISE:
            continue
        if name == "Div" and len(operands) > 1 and not operands[1]:
            continue
        if name == "CopySlices":
            return node, f"{name}, an operation in place on a view, hides what it does (write it out of place)"
        if name not in _PRODUCTS and not (name == "Div" and len(operands) == 1):
            return node, f"{name} is not known to be piecewise linear"
        if getattr(node, "_saved_training", False):
            return node, f"{name} is in train mode and divides by a deviation that depends on parameters"
        seen = 0
        for operand in operands:
            if seen & operand:
                return node, f"{name} multiplies two values that depend on the same parameters (a tie in series?)"
            seen |= operand
    return None


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

    handles: list[Any] = [module.register_forward_pre_hook(enters(name)) for name, module in model.named_modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        yield owner
    finally:
        for handle in handles:
            handle.remove()


# --- the edge -------------------------------------------------------------------------------------------------------


def _checked_columns(
    problem: Problem, V: Tensor, dtypes: Sequence[torch.dtype] = (), copies: int = 0
) -> Real[Tensor, "columns params"]:
    if not isinstance(V, Tensor) or V.ndim not in (1, 2) or len(V) != problem.num_params:
        shape = tuple(V.shape) if isinstance(V, Tensor) else type(V).__name__
        raise ValueError(f"expected a tensor of {problem.num_params} rows, one per parameter, got {shape}")
    if V.dtype not in (dtypes or (problem.dtype,)) or V.device != problem.device:
        raise ValueError(
            f"the vectors are {V.dtype} on {V.device}, the model {problem.dtype} on {problem.device}: use .to()"
        )
    if copies and V.ndim == 2:
        check_fits(problem, V.shape[1], copies * V.itemsize, "columns of a product")
    return (V[None] if V.ndim == 1 else V.mT).detach().contiguous()


def _check_finite(values: Tensor) -> None:
    # The extremes need no second array of the size of a dense matrix, as torch.isfinite does; a NaN is both of them.
    if values.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(values)):
        raise ValueError(
            "a Hessian product is not finite although the loss is: a second derivative overflows or is undefined "
            "(sqrt or norm at 0, log at 0, float16); use a smooth variant or float64"
        )


def _check_memory(side: int, device: torch.device) -> None:
    needed = 8 * side * side
    available = free_memory(device)
    if needed > available:
        raise MemoryError(
            f"a dense float64 matrix of this size needs {needed:,} bytes and {available:,} are free: use products "
            "(`@`), .block(l, m) of smaller blocks, or an estimator such as LayerwiseTrace"
        )


def check_fits(problem: Problem, num_columns: int, bytes_per_entry: int, what: str) -> None:
    """Raises MemoryError where so many vectors of parameters cannot be held, with the number that can."""
    each, available = bytes_per_entry * problem.num_params, free_memory(problem.device)
    if num_columns * each > available:
        raise MemoryError(
            f"{num_columns} {what} need {num_columns * each:,} bytes with all copies and {available:,} are free: "
            f"{available // each} fit; ask for no more at a time, or use a smaller dtype"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; PyTorch keeps what was freed on CUDA, and gives it out again."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
