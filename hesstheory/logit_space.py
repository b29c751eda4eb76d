"""What can be known without a probe in parameter space? tr G_ll = (1/N) Σ_n ‖S_nᵀ J_nl‖², from the outputs (claim G4).

J_nl is the Jacobian of the outputs of sample n in the parameters of block l, S_n S_nᵀ the Hessian of its loss in the
outputs. Every column of S costs one backward pass and the norms of per-sample gradients, which most layers give from
their inputs and the slopes at their outputs (Goodfellow 2015; Li, Tramèr, Liang and Hashimoto 2022, ghost norms).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from hesstheory.convolution import Geometry
from hesstheory.curvature import (
    chunks,
    free_memory,
    graph_values,
    keep_freed_memory,
    obstacle,
    owners,
    residual,
    second_derivatives,
    vjp,
)
from hesstheory.estimators import (
    BlockSeparatedTrace,
    Estimate,
    HadamardColumns,
    LayerwiseTrace,
    Probe,
    Rademacher,
    check_choices,
    check_num_probes,
)
from hesstheory.execution import full_precision
from hesstheory.loss_root import cheapest_root, loss_root
from hesstheory.problem import Batch, Problem, graph_nodes
from hesstheory.rows import Trial, apart_by_graph, generic

if TYPE_CHECKING:
    import pandas as pd

# Per-sample squared norms of the gradients of a module's tensors, summed over the columns that lead the slopes at its
# output.
Norms = Callable[[Tensor], dict[str, Float[Tensor, " samples"]]]

_CHUNK_BYTES = 256 * 2**20  # of per-sample gradients held at once
_LITTLE = 16 * 2**20  # bytes that are there without a look
_LARGE = 100_000  # parameters from which on a vector of them costs as much as a pass of one sample
_TRIED = 3  # samples on which the rules and the premise of equal traces are tried
_FEW = 8  # samples up to which a backward pass for each costs less than vmap
_KEPT = 3  # times the values of the forward graph that are held at most: these, the slopes, patches and Gram matrices


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
        if type(module) in _RULES and "forward" not in vars(module):  # nor a patched one
            handles.append(module.register_forward_hook(hook(name), prepend=True))  # before what other hooks make of it
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Linearised:
    """Outputs of one batch with their graph, and how the gradients of single samples are found for every tensor."""

    problem: Problem
    batch: Batch
    outputs: Tensor
    edges: tuple[GradientEdge, ...]
    norms: tuple[Norms, ...]
    ruled: tuple[tuple[str, ...], ...]  # by rule: the tensors that it covers
    others: tuple[str, ...]

    def with_rules_for(self, trusted: frozenset[str]) -> Linearised:
        """The same with rules for trusted tensors alone."""
        kept = [i for i, names in enumerate(self.ruled) if not trusted.isdisjoint(names)]
        return replace(
            self,
            edges=tuple(self.edges[i] for i in kept),
            norms=tuple(self.norms[i] for i in kept),
            ruled=tuple(tuple(name for name in self.ruled[i] if name in trusted) for i in kept),
            others=(*self.others, *(name for names in self.ruled for name in names if name not in trusted)),
        )

    def trusted(self) -> frozenset[str]:
        """Tensors whose rule gives the squared gradients of single rows of the outputs, tried beside plain gradients.

        One row tells; another one is tried for tensors whose gradient is zero there, and what no row tells is not
        trusted.
        """
        untold, right = {name for names in self.ruled for name in names}, set[str]()
        for row in range(len(self.outputs))[: -_TRIED - 1 : -1]:
            told = self._told_by(row) if untold else {}
            right |= {name for name in untold & told.keys() if told[name]}
            untold -= told.keys()
        return frozenset(right)

    def _told_by(self, row: int) -> dict[str, bool]:
        """Whether the rule is right about one row of the outputs, for the tensors that have a gradient there."""
        alone = torch.zeros_like(self.outputs)
        alone[row] = generic(alone[row])
        names = [name for names in self.ruled for name in names]
        inputs: Any = [*self.edges, *(self.problem.params[name] for name in names)]
        found = torch.autograd.grad(self.outputs, inputs, alone, retain_graph=True, allow_unused=True)
        by_rule = self._summed([None if slope is None else slope[None] for slope in found[: len(self.edges)]])
        none, wrong = alone.new_zeros(len(alone)), alone.new_full((len(alone),), math.nan)
        rows = [by_rule.get(name, none) for name in names]
        squares = torch.stack([row if row.shape == none.shape else wrong for row in rows])
        plain = torch.stack([none[0] if g is None else _square(g) for g in found[len(self.edges) :]])
        expected = torch.zeros_like(squares)
        expected[:, row] = plain
        bound = torch.finfo(alone.dtype).eps ** 0.5 * plain
        right = ((squares - expected).abs().amax(1) <= bound).tolist()
        told = ((squares != 0).any(1) | (plain != 0)).tolist()
        return {name: is_right for name, is_right, is_told in zip(names, right, told, strict=True) if is_told}

    def squared_norms(self, cotangent: Tensor) -> dict[str, Float[Tensor, " samples"]]:
        """‖J_nᵀ u_n‖² of every sample n and tensor, for cotangents u of the shape of the outputs."""
        return self.squared_norms_of_all(cotangent[None])

    def squared_norms_of_all(self, cotangents: Float[Tensor, "columns ..."]) -> dict[str, Float[Tensor, " samples"]]:
        """Σ_k ‖J_nᵀ u_kn‖² of every sample n and tensor; many columns go through a small graph at once.

        A tensor whose module gets slopes that do not go by rows is measured as one without a rule.
        """
        found, coupled = self._ruled(cotangents)
        if not (slow := (*self.others, *coupled)):
            return found
        line = replace(self, others=slow)
        alone = None if coupled else self._alone
        for cotangent in cotangents:
            _add(found, line._one_by_one(cotangent) if alone is None else alone(cotangent))
        return found

    def _ruled(self, cotangents: Float[Tensor, "columns ..."]) -> tuple[dict[str, Tensor], list[str]]:
        """What the rules give, and the tensors for which none holds."""
        found, columns, K = dict[str, Tensor](), cotangents, len(cotangents)
        if not self.edges or K == 0:
            return found, []
        trial = None if self.apart else Trial(cotangents, len(self.edges))
        if trial is not None:
            columns = torch.cat([cotangents, trial.combination[None]])
        for part in chunks(len(columns), self.pushed_values):
            slopes = vjp([self.outputs], [columns[part]], self.edges)
            if trial is not None:
                slopes = trial.seen(part, slopes)
            if part.start < K:
                _add(found, self._summed([None if slope is None else slope[: K - part.start] for slope in slopes]))
        coupled = [name for number in trial.coupled() for name in self.ruled[number]] if trial is not None else []
        return {name: squares for name, squares in found.items() if name not in coupled}, coupled

    @cached_property
    def apart(self) -> bool:
        """Whether the graph shows that the slopes at the outputs of the modules go by rows."""
        return apart_by_graph(self.outputs)

    def _summed(self, slopes: Sequence[Tensor | None]) -> dict[str, Float[Tensor, " samples"]]:
        """What the rules make of the slopes at the outputs of their modules."""
        found = dict[str, Tensor]()
        for norms, names, slope in zip(self.norms, self.ruled, slopes, strict=True):
            if slope is not None:
                found |= {name: squares for name, squares in norms(slope).items() if name in names}
        return found

    @cached_property
    def pushed_values(self) -> int:
        """Values of the graph that a backward pass goes through, but for parameters and their transposes."""
        nodes = list(graph_nodes(self.outputs))
        leaves = {node for node in nodes if hasattr(node, "variable")}
        values = (
            math.prod(metadata.shape)
            for node in nodes
            if node not in leaves and not {parent for parent, _ in node.next_functions} <= leaves
            for metadata in getattr(node, "_input_metadata", ())
        )
        return sum(values)

    def squared_norm_of_sum(self, cotangent: Tensor) -> dict[str, Tensor]:
        """‖Σ_n J_nᵀ u_n‖² of every tensor, from one ordinary backward pass."""
        return {name: _square(row) for name, row in self._rows(tuple(self.problem.params), cotangent).items()}

    def _rows(self, names: Sequence[str], cotangent: Tensor) -> dict[str, Tensor]:
        """Σ_n J_nᵀ u_n of the tensors that the outputs depend on."""
        params = [self.problem.params[name] for name in names]
        rows = torch.autograd.grad(self.outputs, params, cotangent, retain_graph=True, allow_unused=True)
        return {name: row for name, row in zip(names, rows, strict=True) if row is not None}

    @cached_property
    def _alone(self) -> Callable[[Tensor], dict[str, Tensor]] | None:
        """The same for tensors without a rule: every sample through the model by itself, side by side by vmap.

        None for few samples and where the model cannot go through vmap, or is not the same function of samples by
        themselves: then one backward pass of the batch for every sample.
        """
        problem, inputs, outputs = self.problem, self.batch[0], self.outputs.detach()
        if len(outputs) <= _FEW:
            return None
        fixed = {name: p.detach() for name, p in problem.params.items()}
        others = {name: fixed[name] for name in self.others}
        of_samples = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) and leaf.ndim else None, inputs)

        def slope(tensors: dict[str, Tensor], sample: Any, u: Tensor) -> tuple[Tensor, Tensor]:
            one = tree_map(lambda leaf: leaf[None] if isinstance(leaf, Tensor) and leaf.ndim else leaf, sample)
            output = problem.outputs_at({**fixed, **tensors}, one)[0]
            return (output * u).sum(), output

        def squared(tensors: dict[str, Tensor], sample: Any, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            row, output = grad(slope, has_aux=True)(tensors, sample, u)
            return {name: g.square().sum() for name, g in row.items()}, output

        size = max(_CHUNK_BYTES // sum(p.numel() * p.itemsize for p in others.values()), 1)
        each = vmap(squared, (None, of_samples, 0), chunk_size=size)
        u = generic(outputs)

        def combined(tensors: dict[str, Tensor]) -> Tensor:
            return vmap(slope, (None, of_samples, 0))(tensors, inputs, u)[0].sum()

        try:
            squares, found = each(others, inputs, u)
            sums = grad(combined)(others)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever an operation without a batching rule, or a model for whole batches, makes of it
            return None
        eps = torch.finfo(outputs.dtype).eps
        if found.shape != outputs.shape or not bool(((found - outputs).abs() <= eps**0.5 * outputs.abs().max()).all()):
            return None
        in_batch = self._rows(self.others, u)
        right = all(
            (sums[name] - row).norm() <= 1e3 * eps * squares[name].sum().sqrt() for name, row in in_batch.items()
        )
        return (lambda cotangent: each(others, inputs, cotangent)[0]) if right else None

    def _one_by_one(self, cotangent: Tensor) -> dict[str, Tensor]:
        """The same by one backward pass for every sample.

        Tensors for which a generic sum over the samples is zero have a zero gradient in every sample.
        """
        found = {name: cotangent.new_zeros(len(cotangent)) for name in self.others}
        weights = 1.5 + generic(cotangent.new_empty(len(cotangent), *[1] * (cotangent.ndim - 1)))
        alive = [name for name, row in self._rows(self.others, weights * cotangent).items() if bool(row.any())]
        for n in range(len(cotangent) if alive else 0):
            alone = torch.zeros_like(cotangent)
            alone[n] = cotangent[n]
            for name, row in self._rows(alive, alone).items():
                found[name][n] = _square(row)
        return found


def _add(found: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, squares in more.items():
        found[name] = found[name] + squares if name in found else squares


def _square(row: Tensor) -> Tensor:
    """‖row‖², line by line, which is faster by far than the norm of all."""
    lines = row.reshape(len(row) if row.ndim > 1 else 1, -1)
    square: Tensor = torch.linalg.vector_norm(lines, dim=1).square().sum()
    return square


def linearised(problem: Problem, batch: Batch, trusted: frozenset[str] | None = None) -> Linearised:
    """One forward pass; a tensor has a rule if one call of one module is its only use and the rule is `trusted`."""
    line = _by_rules(problem, batch)
    return line.with_rules_for(rules_that_hold(problem) if trusted is None else trusted)


@full_precision()
def rules_that_hold(problem: Problem) -> frozenset[str]:
    """Tensors whose rule gives the squared gradients of single rows of the outputs, tried beside plain gradients.

    A rule takes the rows of a module's input for those of the outputs and the module's output for W·x + b. A model that
    folds, transposes, averages or broadcasts the batch, a hook, a patched `forward` or a weight used elsewhere breaks
    that.
    """
    return _first_samples(problem).trusted()


def _first_samples(problem: Problem) -> Linearised:
    """The first few samples of the largest batch, or all of it where the model takes no fewer."""
    if not isinstance(problem, Problem):
        raise TypeError(f"pass a Problem, not a {type(problem).__name__}: Problem(model, loss_fn, batches)")
    largest = problem.largest()
    try:
        few = largest.head(_TRIED)
        return _by_rules(few, few.batches[0])
    except (RuntimeError, ValueError, IndexError):
        return _by_rules(largest, largest.batches[0])


def _by_rules(problem: Problem, batch: Batch) -> Linearised:
    keep_freed_memory()
    with _recorded(problem.model) as calls:
        outputs = problem.outputs(batch)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the model returns a {type(outputs).__name__}: wrap it so that it returns one tensor")
    if outputs.ndim == 0:
        raise ValueError("the model returns a scalar: let it keep the axis of the samples, as squeeze(-1) does")
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
    return Linearised(problem, batch, outputs, tuple(edges), tuple(rules), tuple(ruled), tuple(reached))


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
    A, inside = A.reshape(B, groups, I // groups, T), I // groups

    def cut(slope: Float[Tensor, "samples out positions"]) -> Tensor:
        return slope.reshape(B, groups, -1, T)

    if T == 1:
        squares = A.square().sum((2, 3))
        return lambda slope: (cut(slope).square().sum((2, 3)) * squares).sum(1)
    if inside > T and 4 * num_out // groups * inside >= T * T:
        gram = A.mT @ A  # all that is kept of A
        return lambda slope: ((cut(slope).mT @ cut(slope)) * gram).sum((1, 2, 3))

    def by_gradient(slope: Tensor) -> Tensor:
        size = max(_CHUNK_BYTES // (slope[0].numel() // T * inside * A.element_size()), 1)
        parts = zip(torch.split(cut(slope), size), torch.split(A, size), strict=True)
        return torch.cat([(d @ a.mT).square().sum((1, 2, 3)) for d, a in parts])

    return by_gradient


def _linear(module: nn.Linear, x: Tensor, names: dict[str, str]) -> Norms | None:
    if x.ndim == 2:
        sizes = {"weight": torch.linalg.vector_norm(x, dim=1).square(), "bias": x.new_ones(len(x))}
        factors = {name: sizes[attribute] for attribute, name in names.items()}

        def of_rows(slopes: Tensor) -> dict[str, Tensor]:
            squares = torch.linalg.vector_norm(slopes, dim=2).square().sum(0)
            return {name: squares * factor for name, factor in factors.items()}

        return of_rows
    if x.ndim < 2:
        return None
    of_weight = _of_products(x.reshape(len(x), -1, x.shape[-1]).mT, module.out_features)

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        # Columns lie side by side as further outputs.
        D = slopes.reshape(len(slopes), len(x), -1, slopes.shape[-1]).permute(1, 0, 3, 2).flatten(1, 2)
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

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        found = {}
        if "weight" in names:
            if not of_weight:
                of_weight.append(_of_kernel(module, x, math.prod(slopes.shape[3:])))
            found[names["weight"]] = reduce(add, map(of_weight[0], slopes))
        if "bias" in names:
            found[names["bias"]] = slopes.flatten(3).sum(3).square().sum((0, 2))
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

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        found, rows = dict[str, Tensor](), (len(slopes), *x.shape[:2], -1)
        of_bias = slopes.reshape(rows).sum(3)
        if "weight" in names:
            # Σ δ·(x − mean)/deviation, without holding the normalised input of every batch norm.
            of_weight = ((slopes * x).reshape(rows).sum(3) - mean * of_bias) * scale
            found[names["weight"]] = of_weight.square().sum((0, 2))
        if "bias" in names:
            found[names["bias"]] = of_bias.square().sum((0, 2))
        return found

    return norms


def _embedding(module: nn.Embedding, x: Tensor, names: dict[str, str]) -> Norms | None:
    if x.ndim < 1:
        return None
    tokens = x.reshape(len(x), -1)
    same = (tokens[:, :, None] == tokens[:, None]).to(module.weight.dtype)
    if module.padding_idx is not None:
        same = same * (tokens != module.padding_idx)[:, None]

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        D = slopes.reshape(len(slopes), *tokens.shape, -1)
        return {names["weight"]: ((D @ D.mT) * same).sum((0, 2, 3))}

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
    """The outputs are not known to be piecewise linear in every single parameter: tr H_ll may not be tr G_ll (G3)."""


def _check_piecewise_linear(line: Linearised) -> None:
    if line.outputs.grad_fn is None or obstacle(line.outputs) is None:
        return
    problem = line.problem
    with owners(problem.model) as owner:
        found = obstacle(problem.outputs(line.batch))
    assert found is not None
    node, reason = found
    where = owner.get(node, "")
    kind = type(problem.model.get_submodule(where)).__name__
    raise NotPiecewiseLinear(
        f"tr H may not be tr G: in module {where!r} ({kind}), {reason}; pass target='ggn' for the exact Gauss-Newton "
        "traces, or estimate tr H"
    )


def _check_no_bend(line: Linearised) -> None:
    """∂²⟨u, f⟩/∂θ_i² = 0 up to rounding for a generic u, at three parameters of a small network and at one, amid
    the tensors, of a large one, where a second derivative costs as much as a gradient: what the graph does not show
    may show here."""
    params, spans = list(line.problem.params.values()), list(line.problem.offsets.values())
    P, u, eps = line.problem.num_params, generic(line.outputs), torch.finfo(line.problem.dtype).eps
    tried = {P // 4, P // 2, 3 * P // 4} if P < _LARGE else {sum(spans[len(spans) // 2]) // 2}
    for i in sorted(tried):
        p, start = next((p, start) for p, (start, stop) in zip(params, spans, strict=True) if i < stop)
        with second_derivatives():
            (g,) = torch.autograd.grad(line.outputs, [p], u, create_graph=True, allow_unused=True)
        if g is None or not g.requires_grad:
            continue
        (row,) = vjp([g.reshape(-1)[i - start]], [g.new_ones(1)], [p])
        if row is None:
            continue
        slope, bend = float(g.detach().reshape(-1)[i - start]), float(row.reshape(-1)[i - start])
        # Over the length of the parameters a bend of rounding changes the slope by rounding.
        if bend and abs(bend) > max(eps**0.5 * _largest(row), 32 * eps * abs(slope) / (_largest(p) or 1.0)):
            raise NotPiecewiseLinear(
                f"tr H may not be tr G although the graph looks piecewise linear: in parameter {i} a combination of "
                f"the outputs of the first samples has the slope {slope:.3g} and the second derivative {bend:.3g}; "
                "pass target='ggn', or estimate tr H"
            )


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max())


# --- traces -----------------------------------------------------------------------------------------------------------


@full_precision()
def exact_traces(problem: Problem, target: str = "hessian") -> pd.Series[float]:
    """Exact traces by block, tr G_ll = Σ_b (n_b/N) Σ_n ‖S_nᵀ J_nl‖², in as many backward passes as S has columns.

    With `target="hessian"` the premise that tr H_ll = tr G_ll is verified on the graph of every batch and by second
    derivatives (claims G1, G3); `target="ggn"` needs no premise. The name of the Series says which matrix it is. TF32,
    PyTorch's default for convolutions on a GPU, is off meanwhile: its three digits would not be exact.

    Raises `NotPiecewiseLinear`, which names the module where the premise is not known to hold, for "hessian" alone;
    for both `NotConvex` where the loss is not convex in the outputs, `NotTwiceDifferentiable` where it has no second
    derivative, ValueError where it couples samples and MemoryError where a single sample is too large.
    """
    of_tensor: dict[str, float] = {}
    for weight, _, found in _squared_norms(problem, target):
        sums = torch.stack(list(found.values())).sum(1, dtype=torch.float64).tolist() if found else []
        for name, square in zip(found, sums, strict=True):
            of_tensor[name] = of_tensor.get(name, 0.0) + weight * square
    return _by_block(problem, of_tensor, f"tr {'H' if target == 'hessian' else 'G'}")


@full_precision()
def sample_traces(problem: Problem, target: str = "hessian") -> pd.DataFrame:
    """Exact traces by sample and block, N times what each sample adds to `exact_traces`, at the cost of these.

    Samples are numbered through the batches; the mean over them is `exact_traces`. Where the loss is a plain mean they
    are the traces of the loss of every sample alone, and what varies from one to the next is the noise that probes
    cannot lower. `target` and errors are those of `exact_traces`; ValueError where an output row is no sample.
    """
    import pandas as pd

    parts = []
    for weight, rows, found in _squared_norms(problem, target):
        if rows != (size := round(weight * problem.num_samples)):
            raise ValueError(
                f"the model returns {rows} rows for {size} samples: let it return one for each, such as (N, T, C)"
            )
        of_block = torch.zeros(rows, len(problem.partition.blocks), dtype=torch.float64)
        for column, tensors in zip(of_block.unbind(1), problem.partition.blocks.values(), strict=True):
            column += sum(rows * found[name].double().cpu() for name in tensors if name in found)
        parts.append(of_block)
    columns = pd.Index(list(problem.partition.blocks), dtype=object)
    return pd.DataFrame(torch.cat(parts).numpy(), columns=columns).rename_axis("sample")


def _squared_norms(problem: Problem, target: str) -> Iterator[tuple[float, int, dict[str, Tensor]]]:
    """Of every batch its weight, the number of its samples, and their shares of its mean traces by tensor."""
    if target not in ("hessian", "ggn"):
        raise ValueError(f"target is {target!r}: pass 'hessian' or 'ggn'")
    few = _first_samples(problem)
    problem, trusted = fitted(problem, few), few.trusted()
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        line = linearised(problem, batch, trusted)
        if target == "hessian":
            _check_piecewise_linear(line)
        columns = cheapest_root(problem, line.outputs, batch, no_penalty=target == "hessian").movedim(2, 0)
        yield weight, len(line.outputs), line.squared_norms_of_all(columns.reshape(-1, *line.outputs.shape))
    if target == "hessian":
        _check_no_bend(few)


def fitted(problem: Problem, few: Linearised | None = None) -> Problem:
    """The same risk in batches that half of the free memory holds together with what a trace keeps of them.

    Judged by the first samples of the largest batch: all samples are taken to be of their size. Raises MemoryError,
    with the bytes, where a single sample is too large.
    """
    few = _first_samples(problem) if few is None else few
    one = few.outputs[:1]

    def bytes_of(values: int) -> int:
        """Of so many values of a graph, and of the loss Hessian of a sample in its outputs with its root."""
        return _KEPT * (problem.dtype.itemsize * max(values, 1) + 8 * one.numel() ** 2)

    at_most = bytes_of(few.pushed_values) * max(problem.batch_sizes)
    if at_most <= _LITTLE or at_most <= (budget := free_memory(problem.device) // 2):
        return problem
    try:
        one, two = (head.outputs(head.batches[0]) for head in map(problem.largest().head, (1, 2)))
    except (RuntimeError, ValueError, IndexError):  # a model for whole batches alone cannot be cut
        return problem
    if one.numel() == two.numel():
        return problem
    # A second sample adds its own values; what stays are the parameters, which lie there already.
    of_sample = bytes_of(graph_values(two) - graph_values(one))
    if of_sample > budget:
        raise MemoryError(
            f"a single sample takes about {of_sample:,} bytes and {budget:,} may be used: free memory, or "
            "use smaller inputs or a smaller dtype"
        )
    size = budget // of_sample
    if size >= max(problem.batch_sizes):
        return problem
    parts = problem.rebatched(size)
    if not apart_by_graph(few.outputs):
        _check_same_in_parts(problem, parts)
    return parts


def _check_same_in_parts(problem: Problem, parts: Problem) -> None:
    """Raises MemoryError where smaller batches have other outputs."""
    with torch.no_grad():
        whole, cut = (torch.cat([each.outputs(batch) for batch in each.batches]) for each in (problem, parts))
    if not bool(((whole - cut).abs() <= torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max()).all()):
        raise MemoryError(
            f"batches of {max(problem.batch_sizes)} samples take too much memory, and cut into parts of "
            f"{max(parts.batch_sizes)} the model gives other outputs: free memory, or use a smaller dtype"
        )


def _by_block(problem: Problem, of_tensor: dict[str, float], name: str) -> pd.Series[float]:
    import pandas as pd

    blocks = problem.partition.blocks
    sums = [sum(of_tensor.get(t, 0.0) for t in tensors) for tensors in blocks.values()]
    return pd.Series(np.array(sums), pd.Index(list(blocks), dtype=object), name=name)


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
        check_choices(self.probe)
        if isinstance(self.probe, HadamardColumns):
            raise ValueError(
                "every sample needs an ε of its own, and Hadamard columns depend on one another: pass Rademacher()"
            )

    @full_precision()
    def __call__(self, problem: Problem, generator: torch.Generator | None = None) -> Estimate:
        """Estimates with ε drawn from the generator, for every sample of its own."""
        import pandas as pd

        if not isinstance(generator, torch.Generator):
            raise TypeError("pass a torch.Generator (torch.Generator().manual_seed(...)): no global randomness")
        few = _first_samples(problem)
        problem, names = fitted(problem, few), list(problem.params)
        trusted = few.trusted() if self.per_sample else frozenset[str]()
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
        check_choices(self.probe)

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
