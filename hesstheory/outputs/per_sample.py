"""Squared norms of the gradients of single samples, from the slopes at the outputs of modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from hesstheory.autograd.graph import pushed_values, uses_of_leaves
from hesstheory.autograd.products import chunks, vjp
from hesstheory.autograd.rows import Trial, apart_by_graph, generic
from hesstheory.outputs.rules import CHUNK_BYTES, NORM_RULES, Norms
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import keep_freed_memory
from hesstheory.run.precision import full_precision
from hesstheory.run.streams import stream

_TRIED = 3  # samples on which the rules and the premise of equal traces are tried

_FEW = 8  # samples up to which a backward pass for each costs less than vmap


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
            elif (
                len(args) == 1
                and isinstance(args[0], Tensor)
                and isinstance(output, Tensor)
                and output.requires_grad
            ):
                calls[name] = _Call(
                    module, args[0].detach(), args[0]._version, get_gradient_edge(output)
                )

        return record

    for name, module in model.named_modules():
        if type(module) in NORM_RULES and "forward" not in vars(module):  # nor a patched one
            handles.append(
                module.register_forward_hook(hook(name), prepend=True)
            )  # before what other hooks make of it
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
            others=(
                *self.others,
                *(name for names in self.ruled for name in names if name not in trusted),
            ),
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
        found = torch.autograd.grad(
            self.outputs, inputs, alone, retain_graph=True, allow_unused=True
        )
        by_rule = self._summed(
            [None if slope is None else slope[None] for slope in found[: len(self.edges)]]
        )
        none, wrong = alone.new_zeros(len(alone)), alone.new_full((len(alone),), math.nan)
        rows = [by_rule.get(name, none) for name in names]
        squares = torch.stack([row if row.shape == none.shape else wrong for row in rows])
        plain = torch.stack(
            [none[0] if g is None else _square(g) for g in found[len(self.edges) :]]
        )
        expected = torch.zeros_like(squares)
        expected[:, row] = plain
        bound = torch.finfo(alone.dtype).eps ** 0.5 * plain
        right = ((squares - expected).abs().amax(1) <= bound).tolist()
        told = ((squares != 0).any(1) | (plain != 0)).tolist()
        return {
            name: is_right
            for name, is_right, is_told in zip(names, right, told, strict=True)
            if is_told
        }

    def squared_norms(self, cotangent: Tensor) -> dict[str, Float[Tensor, " samples"]]:
        """‖J_nᵀ u_n‖² of every sample n and tensor, for cotangents u of the shape of the outputs."""
        return self.squared_norms_of_all(cotangent[None])

    def squared_norms_of_all(
        self, cotangents: Float[Tensor, "columns ..."]
    ) -> dict[str, Float[Tensor, " samples"]]:
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

    def _ruled(
        self, cotangents: Float[Tensor, "columns ..."]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """What the rules give, and the tensors for which none holds."""
        found, columns, K = dict[str, Tensor](), cotangents, len(cotangents)
        if not self.edges or K == 0:
            return found, []
        trial = (
            None
            if self.apart
            else Trial(cotangents, len(self.edges), stream(0, "proportions of rows"))
        )
        if trial is not None:
            columns = torch.cat([cotangents, trial.combination[None]])
        for part in chunks(len(columns), self.pushed_values):
            slopes = vjp([self.outputs], [columns[part]], self.edges)
            if trial is not None:
                slopes = trial.seen(part, slopes)
            if part.start < K:
                _add(
                    found,
                    self._summed(
                        [None if slope is None else slope[: K - part.start] for slope in slopes]
                    ),
                )
        coupled = (
            [name for number in trial.coupled() for name in self.ruled[number]]
            if trial is not None
            else []
        )
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
        return pushed_values(self.outputs)

    def squared_norm_of_sum(self, cotangent: Tensor) -> dict[str, Tensor]:
        """‖Σ_n J_nᵀ u_n‖² of every tensor, from one ordinary backward pass."""
        return {
            name: _square(row)
            for name, row in self._rows(tuple(self.problem.params), cotangent).items()
        }

    def _rows(self, names: Sequence[str], cotangent: Tensor) -> dict[str, Tensor]:
        """Σ_n J_nᵀ u_n of the tensors that the outputs depend on."""
        params = [self.problem.params[name] for name in names]
        rows = torch.autograd.grad(
            self.outputs, params, cotangent, retain_graph=True, allow_unused=True
        )
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
        of_samples = tree_map(
            lambda leaf: 0 if isinstance(leaf, Tensor) and leaf.ndim else None, inputs
        )

        def slope(tensors: dict[str, Tensor], sample: Any, u: Tensor) -> tuple[Tensor, Tensor]:
            one = tree_map(
                lambda leaf: leaf[None] if isinstance(leaf, Tensor) and leaf.ndim else leaf, sample
            )
            output = problem.outputs_at({**fixed, **tensors}, one)[0]
            return (output * u).sum(), output

        def squared(
            tensors: dict[str, Tensor], sample: Any, u: Tensor
        ) -> tuple[dict[str, Tensor], Tensor]:
            row, output = grad(slope, has_aux=True)(tensors, sample, u)
            return {name: g.square().sum() for name, g in row.items()}, output

        size = max(CHUNK_BYTES // sum(p.numel() * p.itemsize for p in others.values()), 1)
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
        if found.shape != outputs.shape or not bool(
            ((found - outputs).abs() <= eps**0.5 * outputs.abs().max()).all()
        ):
            return None
        in_batch = self._rows(self.others, u)
        right = all(
            (sums[name] - row).norm() <= 1e3 * eps * squares[name].sum().sqrt()
            for name, row in in_batch.items()
        )
        return (lambda cotangent: each(others, inputs, cotangent)[0]) if right else None

    def _one_by_one(self, cotangent: Tensor) -> dict[str, Tensor]:
        """The same by one backward pass for every sample.

        Tensors for which a generic sum over the samples is zero have a zero gradient in every sample.
        """
        found = {name: cotangent.new_zeros(len(cotangent)) for name in self.others}
        weights = 1.5 + generic(cotangent.new_empty(len(cotangent), *[1] * (cotangent.ndim - 1)))
        alive = [
            name
            for name, row in self._rows(self.others, weights * cotangent).items()
            if bool(row.any())
        ]
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
    return first_samples(problem).trusted()


def first_samples(problem: Problem) -> Linearised:
    """The first few samples of the largest batch, or all of it where the model takes no fewer."""
    if not isinstance(problem, Problem):
        raise TypeError(
            f"pass a Problem, not a {type(problem).__name__}: Problem(model, loss_fn, batches)"
        )
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
        raise TypeError(
            f"the model returns a {type(outputs).__name__}: wrap it so that it returns one tensor"
        )
    if outputs.ndim == 0:
        raise ValueError(
            "the model returns a scalar: let it keep the axis of the samples, as squeeze(-1) does"
        )
    names, uses = {id(p): name for name, p in problem.params.items()}, uses_of_leaves(outputs)
    edges, rules, ruled = list[GradientEdge](), list[Norms](), list[tuple[str, ...]]()
    for call in calls.values():
        own = {
            attribute: names.get(id(getattr(call.module, attribute, None)))
            for attribute in ("weight", "bias")
        }
        wanted = {attribute: name for attribute, name in own.items() if name is not None}
        once = all(uses.get(id(problem.params[name]), 0) == 1 for name in wanted.values())
        if not wanted or not once or call.count > 1 or call.inputs._version != call.version:
            continue
        if (norms := NORM_RULES[type(call.module)](call.module, call.inputs, wanted)) is None:
            continue
        edges.append(call.edge)
        rules.append(norms)
        ruled.append(tuple(wanted.values()))
    covered = {name for some in ruled for name in some}
    reached = [
        name for name, p in problem.params.items() if uses.get(id(p), 0) and name not in covered
    ]
    return Linearised(
        problem, batch, outputs, tuple(edges), tuple(rules), tuple(ruled), tuple(reached)
    )
