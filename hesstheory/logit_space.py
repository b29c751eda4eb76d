"""What can be known without a probe in parameter space? tr G_ll = (1/N) Σ_n ‖S_nᵀ J_nl‖², from the outputs (claim G4).

J_nl is the Jacobian of the outputs of sample n in the parameters of block l, S_n S_nᵀ the Hessian of its loss in the
outputs. Every column of S costs one backward pass and the norms of per-sample gradients, which most layers give from
their inputs and the slopes at their outputs (Goodfellow 2015; Li, Tramèr, Liang and Hashimoto 2022, ghost norms).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from hesstheory.convolution import Geometry
from hesstheory.curvature import free_memory, graph_values, residual
from hesstheory.estimators import BlockSeparatedTrace, Estimate, LayerwiseTrace, Probe, Rademacher, check_num_probes
from hesstheory.problem import Batch, Problem, differentiating, graph_nodes, to_double

if TYPE_CHECKING:
    import pandas as pd

# Per-sample squared norms of the gradients of a module's tensors, from the slope at its output.
Norms = Callable[[Tensor], dict[str, Float[Tensor, " samples"]]]

_CHUNK_BYTES = 256 * 2**20  # of per-sample gradients held at once
_LARGE = 100_000  # parameters from which on a vector of them costs as much as a pass of one sample
_KEPT = 3  # times the values of the forward graph that are held at most: these, the slopes, patches and Gram matrices


class NotConvex(ValueError):
    """The loss is not convex in the outputs, so that its Hessian there has no square root."""


# --- the loss in the outputs ------------------------------------------------------------------------------------------


def loss_root(problem: Problem, outputs: Tensor, batch: Batch) -> Float[Tensor, "samples outputs rank"]:
    """S_n with S_n S_nᵀ = ∂²loss/∂f_n², columns that are zero for all samples left out: C − 1 for cross-entropy.

    For any loss, by an eigendecomposition of each sample's Hessian in its outputs. Raises `NotConvex`, and ValueError
    where the loss couples samples.
    """
    H, scale = _loss_hessians(problem, outputs, batch)
    values, vectors = torch.linalg.eigh((H + H.mT).double() / 2)
    rounding = 1e3 * H.shape[1] * torch.finfo(H.dtype).eps
    if float(values.min()) < -rounding * scale:
        raise NotConvex(
            f"the loss is not convex in the outputs (curvature {float(values.min()):.3g}): the Gauss-Newton matrix "
            "is then no sum of squares; use hessian(problem) with an estimator"
        )
    root = vectors * values.clamp(min=0).sqrt()[:, None]
    kept: Tensor = root[..., values.amax(0) > rounding * values.abs().max()].to(outputs.dtype)
    return kept


def _loss_hessians(
    problem: Problem, outputs: Tensor, batch: Batch
) -> tuple[Float[Tensor, "samples outputs outputs"], float]:
    """∂²loss/∂f_n² of every sample, and the curvature whose rounding it carries.

    In float64 where the loss allows: where a softmax is sure, its small curvature is a difference of terms of the size
    that they have at outputs of zero, and that is the scale of its rounding.
    """
    outputs, original = outputs.detach(), batch
    try:
        batch = (batch[0], tree_map(to_double, batch[1]))
        slope, leaf = _slope(problem, outputs.double(), batch)
    except (RuntimeError, TypeError):  # it holds float32 weights of its own
        batch = original
        slope, leaf = _slope(problem, outputs, batch)
    D = slope.shape[1]
    if not slope.requires_grad:
        return leaf.new_zeros(len(leaf), D, D), 0.0
    _check_samples_apart(slope, leaf)
    rows = [torch.autograd.grad(slope[:, d].sum(), leaf, retain_graph=True)[0] for d in range(D)]
    H, sizes = torch.stack(rows, 1).reshape(len(leaf), D, D), []
    with suppress(ValueError):  # a loss that has no value there, such as one of log outputs
        flat, zero = _slope(problem, torch.zeros_like(leaf), batch)
        sizes.append(float(torch.autograd.grad(flat[:, 0].sum(), zero)[0].abs().max()) if flat.requires_grad else 0.0)
    return H, max([float(H.abs().max()), *(size for size in sizes if math.isfinite(size))])


def _slope(problem: Problem, outputs: Tensor, batch: Batch) -> tuple[Float[Tensor, "samples outputs"], Tensor]:
    """The slope of the loss at given outputs, with its graph, and the leaf that holds them."""
    leaf = outputs.clone().requires_grad_()
    with differentiating():
        (slope,) = torch.autograd.grad(problem.loss_of(leaf, batch), [leaf], create_graph=True)
    return slope.reshape(len(leaf), -1), leaf


def _check_samples_apart(slope: Tensor, leaf: Tensor) -> None:
    if len(leaf) < 2:
        return
    (bent,) = torch.autograd.grad(slope[0].sum(), leaf, retain_graph=True)
    if bool(bent[1:].any()):
        raise ValueError(
            "the loss of a sample depends on the outputs of another one (contrastive, or normalised over the batch): "
            "no sum over samples of squares is its Gauss-Newton matrix; use ggn(problem) with an estimator"
        )


# --- per-sample gradients ---------------------------------------------------------------------------------------------


@dataclass
class _Call:
    """One call of a module: its input and where the slope at its output is found."""

    module: nn.Module
    inputs: Tensor
    version: int
    edge: GradientEdge
    count: int = 1


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, _Call]]:
    """Calls of the modules that have a rule, by name; a module called twice counts, and has no rule."""
    calls: dict[str, _Call] = {}
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in calls:
                calls[name].count += 1
            elif len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor) and output.requires_grad:
                calls[name] = _Call(module, args[0].detach(), args[0]._version, get_gradient_edge(output))

        return record

    for name, module in model.named_modules():
        if type(module) in _RULES:
            handles.append(module.register_forward_hook(hook(name)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Linearised:
    """Outputs of one batch with their graph, and how the gradients of single samples are found for every tensor."""

    problem: Problem
    outputs: Tensor
    edges: tuple[GradientEdge, ...]
    norms: tuple[Norms, ...]
    ruled: tuple[tuple[str, ...], ...]  # by rule: the tensors that it covers
    others: tuple[str, ...]

    def with_rules_for(self, trusted: frozenset[str]) -> Linearised:
        """The same with the rules that cover trusted tensors alone."""
        kept = [i for i, names in enumerate(self.ruled) if trusted.issuperset(names)]
        dropped = [name for i, names in enumerate(self.ruled) if i not in kept for name in names]
        return replace(
            self,
            edges=tuple(self.edges[i] for i in kept),
            norms=tuple(self.norms[i] for i in kept),
            ruled=tuple(self.ruled[i] for i in kept),
            others=(*self.others, *dropped),
        )

    def wrong_in(self, row: int) -> set[str]:
        """Tensors whose rule is wrong about one row of the outputs, beside an ordinary backward pass."""
        alone = torch.zeros_like(self.outputs)
        alone[row] = (
            torch.arange(1, alone[row].numel() + 1, device=alone.device).to(alone).cos().reshape(alone[row].shape)
        )
        by_rule, plain = replace(self, others=()).squared_norms(alone), self.squared_norm_of_sum(alone)
        wrong, bound = set(), torch.finfo(alone.dtype).eps ** 0.5
        for name in (name for names in self.ruled for name in names):
            expected = alone.new_zeros(len(alone))
            expected[row] = plain[name].sum() if name in plain else 0.0
            found = by_rule.get(name, torch.zeros_like(expected))
            if found.shape != expected.shape or bool((found - expected).abs().max() > bound * expected.max()):
                wrong.add(name)
        return wrong

    def squared_norms(self, cotangent: Tensor) -> dict[str, Float[Tensor, " samples"]]:
        """‖J_nᵀ u_n‖² of every sample n and tensor, for cotangents u of the shape of the outputs."""
        found: dict[str, Tensor] = {}
        if self.edges:
            slopes = torch.autograd.grad(
                self.outputs, self.edges, cotangent, retain_graph=True, allow_unused=True, materialize_grads=False
            )
            for norms, slope in zip(self.norms, slopes, strict=True):
                if slope is not None:
                    found |= norms(slope)
        if self.others:
            found |= self._one_by_one(cotangent)
        return found

    def squared_norm_of_sum(self, cotangent: Tensor) -> dict[str, Tensor]:
        """‖Σ_n J_nᵀ u_n‖² of every tensor, from one ordinary backward pass."""
        params = self.problem.params
        rows = torch.autograd.grad(self.outputs, list(params.values()), cotangent, retain_graph=True, allow_unused=True)
        return {name: row.square() for name, row in zip(params, rows, strict=True) if row is not None}

    def _one_by_one(self, cotangent: Tensor) -> dict[str, Tensor]:
        """The same for tensors without a rule: one backward pass for every sample."""
        params = [self.problem.params[name] for name in self.others]
        found = {name: cotangent.new_zeros(len(cotangent)) for name in self.others}
        for n in range(len(cotangent)):
            alone = torch.zeros_like(cotangent)
            alone[n] = cotangent[n]
            rows = torch.autograd.grad(self.outputs, params, alone, retain_graph=True, allow_unused=True)
            for name, row in zip(self.others, rows, strict=True):
                if row is not None:
                    found[name][n] = row.square().sum()
        return found


def linearised(problem: Problem, batch: Batch, trusted: frozenset[str] | None = None) -> Linearised:
    """One forward pass; a tensor has a rule if one call of one module is its only use and the rule is `trusted`."""
    line = _by_rules(problem, batch)
    return line.with_rules_for(rules_that_hold(problem) if trusted is None else trusted)


def rules_that_hold(problem: Problem) -> frozenset[str]:
    """Tensors whose rule gives the squared gradients of single rows of the outputs, tried beside plain gradients.

    A rule takes the rows of a module's input for those of the outputs and the module's output for W·x + b. A model that
    folds, transposes, averages or broadcasts the batch, a hook, a patched `forward` or a weight used elsewhere breaks
    that. The few samples that are tried come from the largest batch, or are all of it where the model takes no fewer.
    """
    largest = problem.with_batches([max(zip(problem.batch_sizes, problem.batches, strict=True), key=lambda b: b[0])[1]])
    try:
        few = largest.head(3)
        line = _by_rules(few, few.batches[0])
    except (RuntimeError, ValueError, IndexError):
        line = _by_rules(largest, largest.batches[0])
    rows = len(line.outputs)
    wrong = {name for row in {rows // 2, rows - 1} for name in line.wrong_in(row)}
    return frozenset(name for names in line.ruled for name in names if name not in wrong)


def _by_rules(problem: Problem, batch: Batch) -> Linearised:
    with _recorded(problem.model) as calls:
        outputs = problem.outputs(batch)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the model returns a {type(outputs).__name__}: wrap it so that it returns one tensor")
    names, uses = {id(p): name for name, p in problem.params.items()}, _uses(outputs)
    edges, rules, ruled = list[GradientEdge](), list[Norms](), list[tuple[str, ...]]()
    for call in calls.values():
        own = {attribute: names.get(id(getattr(call.module, attribute, None))) for attribute in ("weight", "bias")}
        wanted = {attribute: name for attribute, name in own.items() if name is not None}
        once = all(uses.get(id(problem.params[name]), 0) == 1 for name in wanted.values())
        if not wanted or not once or call.count > 1 or call.inputs._version != call.version:
            continue
        if (norms := _RULES[type(call.module)](call.module, call.inputs, wanted)) is None:
            continue
        edges.append(call.edge)
        rules.append(norms)
        ruled.append(tuple(wanted.values()))
    covered = {name for some in ruled for name in some}
    reached = [name for name, p in problem.params.items() if uses.get(id(p), 0) and name not in covered]
    return Linearised(problem, outputs, tuple(edges), tuple(rules), tuple(ruled), tuple(reached))


def _uses(outputs: Tensor) -> dict[int, int]:
    """How many nodes of the graph take each leaf tensor."""
    counts: dict[int, int] = {}
    for node in graph_nodes(outputs):
        for parent, _ in node.next_functions:
            if parent is not None and hasattr(parent, "variable"):
                counts[id(parent.variable)] = counts.get(id(parent.variable), 0) + 1
    return counts


# --- rules ------------------------------------------------------------------------------------------------------------

_Rule = Callable[[Any, Tensor, dict[str, str]], "Norms | None"]


def _of_products(A: Float[Tensor, samples in positions], num_out: int, groups: int = 1) -> Callable[[Tensor], Tensor]:
    """‖δ_n A_nᵀ‖² for slopes δ_n (out × positions), over groups: by the gradient, or by the Gram matrices of positions.

    ‖δAᵀ‖² = ⟨δᵀδ, AᵀA⟩, which is cheaper where there are fewer positions than entries; AᵀA serves all columns.
    """
    B, I, T = A.shape
    A, out, inside = A.reshape(B, groups, I // groups, T), num_out // groups, I // groups

    def cut(slope: Float[Tensor, "samples out positions"]) -> Tensor:
        return slope.reshape(B, groups, out, T)

    if T == 1:
        squares = A.square().sum((2, 3))
        return lambda slope: (cut(slope).square().sum((2, 3)) * squares).sum(1)
    if inside > T and 4 * out * inside >= T * T:
        gram = A.mT @ A  # all that is kept of A
        return lambda slope: ((cut(slope).mT @ cut(slope)) * gram).sum((1, 2, 3))
    chunk = max(_CHUNK_BYTES // (groups * out * inside * A.element_size()), 1)
    rows = torch.split(A, chunk)
    return lambda slope: torch.cat(
        [(d @ a.mT).square().sum((1, 2, 3)) for d, a in zip(torch.split(cut(slope), chunk), rows, strict=True)]
    )


def _linear(module: nn.Linear, x: Tensor, names: dict[str, str]) -> Norms | None:
    if x.ndim < 2:
        return None
    of_weight = _of_products(x.reshape(len(x), -1, x.shape[-1]).mT, module.out_features)

    def norms(slope: Tensor) -> dict[str, Tensor]:
        D = slope.reshape(len(slope), -1, slope.shape[-1]).mT
        found = {}
        if "weight" in names:
            found[names["weight"]] = of_weight(D)
        if "bias" in names:
            found[names["bias"]] = D.sum(2).square().sum(1)
        return found

    return norms


def _convolution(module: nn.Conv1d | nn.Conv2d, x: Tensor, names: dict[str, str]) -> Norms | None:
    if module.padding_mode != "zeros" or isinstance(module.padding, str) or x.ndim != len(module.kernel_size) + 2:
        return None
    of_weight: list[Callable[[Tensor], Tensor]] = []

    def norms(slope: Tensor) -> dict[str, Tensor]:
        found = {}
        if "weight" in names:
            if not of_weight:
                of_weight.append(_of_kernel(module, x, math.prod(slope.shape[2:])))
            found[names["weight"]] = of_weight[0](slope)
        if "bias" in names:
            found[names["bias"]] = slope.flatten(2).sum(2).square().sum(1)
        return found

    return norms


def _of_kernel(module: nn.Conv1d | nn.Conv2d, x: Tensor, positions: int) -> Callable[[Tensor], Tensor]:
    """‖∂⟨δ_n, W ∗ x_n⟩/∂W‖² by Gram matrices of patches where these are few, else by the gradient of every sample."""
    inside = module.weight[0].numel()
    few = positions < inside and positions**2 <= 4 * len(module.weight) // module.groups * inside
    if few or x.device.type != "cpu":  # sample by sample, an accelerator would wait for its host
        patches = _of_products(_patches(module, x), module.out_channels, module.groups)
        return lambda slope: patches(slope.flatten(2))
    zeros = (0,) * len(module.kernel_size)
    options = (module.stride, module.padding, module.dilation, False, zeros, module.groups)
    one = Geometry(x[:1].shape, module.weight.shape, options)
    return lambda slope: torch.stack(
        [one.slope(d, a, None).square().sum() for d, a in zip(torch.split(slope, 1), torch.split(x, 1), strict=True)]
    )


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Float[Tensor, samples in positions]:
    """What the kernel sees at every position of its output."""
    flat = 2 - len(module.kernel_size)
    options = {
        name: (fill,) * flat + tuple(getattr(module, name))
        for name, fill in (("kernel_size", 1), ("dilation", 1), ("padding", 0), ("stride", 1))
    }
    return F.unfold(x[:, :, None] if flat else x, **options)


def _batch_norm(module: nn.BatchNorm2d, x: Tensor, names: dict[str, str]) -> Norms | None:
    if module.training or module.running_mean is None or module.running_var is None or x.ndim < 2:
        return None
    mean, scale = module.running_mean, (module.running_var + module.eps).rsqrt()

    def norms(slope: Tensor) -> dict[str, Tensor]:
        found = {}
        of_bias = slope.reshape(*x.shape[:2], -1).sum(2)
        if "weight" in names:
            # Σ δ·(x − mean)/deviation, without holding the normalised input of every batch norm.
            of_weight = ((slope * x).reshape(*x.shape[:2], -1).sum(2) - mean * of_bias) * scale
            found[names["weight"]] = of_weight.square().sum(1)
        if "bias" in names:
            found[names["bias"]] = of_bias.square().sum(1)
        return found

    return norms


def _embedding(module: nn.Embedding, x: Tensor, names: dict[str, str]) -> Norms | None:
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse or x.ndim < 1:
        return None
    tokens = x.reshape(len(x), -1)
    same = (tokens[:, :, None] == tokens[:, None]).to(module.weight.dtype)
    if module.padding_idx is not None:
        same = same * (tokens != module.padding_idx)[:, None]

    def norms(slope: Tensor) -> dict[str, Tensor]:
        D = slope.reshape(len(slope), -1, slope.shape[-1])
        return {names["weight"]: ((D @ D.mT) * same).sum((1, 2))}

    return norms


_RULES: dict[type[nn.Module], _Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Embedding: _embedding,
}


# --- is tr H = tr G? --------------------------------------------------------------------------------------------------


class NotPiecewiseLinear(ValueError):
    """The outputs are not piecewise linear in every single parameter, so that tr H_ll and tr G_ll differ (claim G3)."""


_LINEAR = frozenset(
    """AccumulateGrad Add Sub Rsub Neg Sum Mean T View UnsafeView Reshape ReshapeAlias Expand Permute Transpose Squeeze
    Unsqueeze Slice Select Index IndexSelect Gather Cat Stack Split SplitWithSizes Unbind Clone ToCopy Alias
    AsStrided Diagonal AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D ConstantPadNd
    Roll Flip Repeat Unfold Im2Col Col2Im Embedding UpsampleNearest2D UpsampleBilinear2D PixelShuffle MaskedFill
    ReflectionPad2D ReplicationPad2D Movedim Swapaxes Detach""".split()  # noqa: SIM905
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


def _obstacle(outputs: Tensor) -> tuple[Any, str] | None:
    """The first operation that bends the outputs in a single parameter, with the reason; None where there is none.

    An operation is affine in each parameter if it is linear, or piecewise so, in what depends on parameters, or a
    product of factors that depend on different ones.
    """
    bits: dict[int, int] = {}
    depends: dict[Any, int] = {None: 0}
    for node in _parents_first(outputs.grad_fn):
        operands = [depends[parent] for parent, _ in node.next_functions]
        name = node.name().partition("Backward")[0].rpartition("::")[2].rstrip("0123456789")
        if name.endswith("AccumulateGrad"):
            depends[node] = 1 << bits.setdefault(id(node.variable), len(bits))
            continue
        union = reduce(or_, operands, 0)
        depends[node] = union
        if union and hasattr(type(node), "_forward_cls"):
            return node, f"{name} is a torch.autograd.Function of your own, of which nothing is known"
        if not union or name in _LINEAR or name in _PIECEWISE:
            continue
        if name == "Div" and len(operands) > 1 and not operands[1]:
            continue
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


def _parents_first(root: Any) -> Iterator[Any]:
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


def _check_piecewise_linear(problem: Problem, batch: Batch, outputs: Tensor) -> None:
    if outputs.grad_fn is None or _obstacle(outputs) is None:
        return
    with _owners(problem.model) as owner:
        found = _obstacle(problem.outputs(batch))
    assert found is not None
    node, reason = found
    where = owner.get(node, "")
    kind = type(problem.model.get_submodule(where)).__name__
    raise NotPiecewiseLinear(
        f"tr H and tr G differ: in module {where!r} ({kind}), {reason}; pass target='ggn' for the exact Gauss-Newton "
        "traces, or estimate tr H"
    )


@contextmanager
def _owners(model: nn.Module) -> Iterator[dict[Any, str]]:
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


def _spot_check(problem: Problem) -> None:
    """R_ii = 0 beside the other entries of its row for the first few samples, at three parameters of a small network
    and at one of a large one, whose products cost a gradient each: what the graph does not show may show here."""
    params, spans = list(problem.params.values()), list(problem.offsets.values())
    try:
        (_, push), *_ = residual(problem.head(3)).pushes()
    except (RuntimeError, IndexError):  # a model for whole batches alone
        (_, push), *_ = residual(problem).pushes()
    P = problem.num_params
    for i in sorted({P // 4, P // 2, 3 * P // 4} if P < _LARGE else {P // 2}):
        j = next(j for j, (_, stop) in enumerate(spans) if i < stop)
        tangents: list[Tensor | None] = [None] * len(params)
        unit = tangents[j] = torch.zeros_like(params[j])[None]
        unit.view(-1)[i - spans[j][0]] = 1.0
        (row,) = push(tangents, [j])
        if row is not None:
            entry = float(row.reshape(-1)[i - spans[j][0]])
            if abs(entry) > torch.finfo(problem.dtype).eps ** 0.5 * float(row.abs().max()):
                raise NotPiecewiseLinear(
                    f"tr H and tr G differ although the graph looks piecewise linear: H_ii − G_ii = {entry:.3g} at "
                    f"parameter {i} for the first samples; pass target='ggn'"
                )


# --- traces -----------------------------------------------------------------------------------------------------------


def exact_traces(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Exact traces by block, tr G_ll = Σ_b (n_b/N) Σ_n ‖S_nᵀ J_nl‖², in as many backward passes as S has columns.

    With `target="hessian"` the premise that tr H_ll = tr G_ll is verified on the graph of every batch and by Hessian
    products (claims G1, G3), and `NotPiecewiseLinear` names the module where it fails; `target="ggn"` always works. The
    name of the Series says which matrix it is.
    """
    if target not in ("hessian", "ggn"):
        raise ValueError(f"target is {target!r}: pass 'hessian' or 'ggn'")
    problem, of_tensor = fitted(problem), dict.fromkeys(problem.params, 0.0)
    trusted = rules_that_hold(problem)
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        line = linearised(problem, batch, trusted)
        if target == "hessian":
            _check_piecewise_linear(problem, batch, line.outputs)
        for column in loss_root(problem, line.outputs, batch).unbind(2):
            for name, norms in line.squared_norms(column.reshape(line.outputs.shape)).items():
                of_tensor[name] += weight * float(norms.sum(dtype=torch.float64))
    if target == "hessian":
        _spot_check(problem)
    return _by_block(problem, of_tensor, f"tr {'H' if target == 'hessian' else 'G'}")


def fitted(problem: Problem) -> Problem:
    """The same risk in batches that half of the free memory holds together with what a trace keeps of them.

    Raises MemoryError, with the bytes, where a single sample is too large.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"pass a Problem, not a {type(problem).__name__}: Problem(model, loss_fn, batches)")
    largest = problem.with_batches([max(zip(problem.batch_sizes, problem.batches, strict=True), key=lambda b: b[0])[1]])
    try:
        few = [head.outputs(head.batches[0]) for head in map(largest.head, (1, 2))]
    except (RuntimeError, ValueError, IndexError):  # a model for whole batches alone cannot be cut
        return problem
    if not all(isinstance(outputs, Tensor) for outputs in few) or few[0].numel() == few[1].numel():
        return problem
    # A second sample adds its own values; what stays are the parameters, which lie there already.
    of_graph = _KEPT * max(graph_values(few[1]) - graph_values(few[0]), 1) * torch.finfo(problem.dtype).bits // 8
    of_loss = 8 * _KEPT * (few[0].numel() * few[0][0].numel())  # the loss Hessian in the outputs, and its root
    of_sample = of_graph + of_loss
    budget = free_memory(problem.device) // 2
    if of_sample > budget:
        raise MemoryError(
            f"a single sample takes about {of_sample:,} bytes and {budget:,} may be used: free memory, or "
            "use smaller inputs or a smaller dtype"
        )
    size = budget // of_sample
    return problem if size >= max(problem.batch_sizes) else problem.rebatched(size)


def _by_block(problem: Problem, of_tensor: dict[str, float], name: str) -> pd.Series[float]:
    import pandas as pd

    sums = {block: sum(of_tensor[t] for t in tensors) for block, tensors in problem.partition.blocks.items()}
    return pd.Series(sums, name=name)


@dataclass(frozen=True)
class LogitProbeTrace:
    """Traces tr G_ll from random combinations u_n = S_n ε_n of the columns of S, one backward pass for each (claim G5).

    Unbiased. `per_sample` sums ‖J_nᵀu_n‖² over the samples; else it is ‖Σ_n J_nᵀu_n‖², which needs no per-sample
    gradients and is noisier (claim G7). `num_matvecs` counts backward passes through all batches.
    """

    num_probes: int = 10
    per_sample: bool = True
    probe: Probe = field(default_factory=Rademacher)

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)

    def __call__(self, problem: Problem, generator: torch.Generator) -> Estimate:
        """Estimates with ε drawn from the generator, for every sample of its own."""
        import pandas as pd

        if not isinstance(generator, torch.Generator):
            raise TypeError("pass a torch.Generator (torch.Generator().manual_seed(...)): no global randomness")
        problem, names = fitted(problem), list(problem.params)
        trusted = rules_that_hold(problem) if self.per_sample else frozenset[str]()
        of_tensor = torch.zeros(self.num_probes, len(names), dtype=torch.float64)
        for weight, batch in zip(problem.weights, problem.batches, strict=True):
            line = linearised(problem, batch, trusted)
            S = loss_root(problem, line.outputs, batch)
            for k in range(self.num_probes if S.shape[2] else 0):
                signs = self.probe.sample(S.shape[2], len(S), generator).mT.to(S)
                u = (S @ signs[:, :, None]).reshape(line.outputs.shape)
                squares = line.squared_norms(u) if self.per_sample else line.squared_norm_of_sum(u)
                for name, square in squares.items():
                    of_tensor[k, names.index(name)] += weight * float(square.sum(dtype=torch.float64))
        blocks = {
            block: of_tensor[:, [names.index(t) for t in tensors]].sum(1).numpy()
            for block, tensors in problem.partition.blocks.items()
        }
        return Estimate(pd.DataFrame(blocks), num_matvecs=self.num_probes)


@dataclass(frozen=True)
class ControlVariateTrace:
    """Traces tr H_ll = tr G_ll + tr R_ll for any network, probes on the residual R = H − G alone (claim G8).

    tr G_ll is exact, or with `exact=False` a logit probe of its own for every parameter probe. Unbiased; the variance
    is T2 with R for H, far less where the loss is small. `num_matvecs` counts products with R; the traces of G cost
    as many gradients as S has columns on top. `separated` probes R one block at a time, without cross terms.
    """

    num_probes: int = 10
    probe: Probe = field(default_factory=Rademacher)
    exact: bool = True
    separated: bool = False

    def __post_init__(self) -> None:
        check_num_probes(self.num_probes)

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator | None = None,
        *,
        probes: Float[Tensor, "params probes"] | None = None,
    ) -> Estimate:
        """Estimates with probes drawn from the generator, or with the given P×K probes on R."""
        design = BlockSeparatedTrace if self.separated else LayerwiseTrace
        of_residual = design(self.num_probes, self.probe, residual)(problem, generator, probes=probes)
        if self.exact:
            return Estimate(of_residual.samples + exact_traces(problem, "ggn"), of_residual.num_matvecs)
        if generator is None:
            raise TypeError("exact=False draws logit probes: pass a torch.Generator beside probes=")
        of_ggn = LogitProbeTrace(len(of_residual.samples))(problem, generator)
        return Estimate(of_residual.samples + of_ggn.samples, of_residual.num_matvecs)
