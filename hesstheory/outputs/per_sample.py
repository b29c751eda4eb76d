"""Squared norms of the gradients of single samples, from the slopes at the outputs of modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesstheory.autograd.graph import differentiating, pushed_values, uses_of_leaves
from hesstheory.autograd.products import chunks, vjp
from hesstheory.autograd.rows import Trial, apart_by_graph, generic
from hesstheory.curvature.limits import check_finite
from hesstheory.curvature.linearised import checked_outputs
from hesstheory.outputs.calls import Call, recorded_calls
from hesstheory.outputs.rules import Norms
from hesstheory.outputs.separable import SeparableRoot, separable_root
from hesstheory.outputs.sample_gradients import one_by_one, pulled_back, side_by_side, square
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import keep_freed_memory
from hesstheory.run.precision import full_precision
from hesstheory.run.streams import stream

# Samples on which the rules and the premise of equal traces are tried: one row tells of most
# tensors, a ReLU may hide a tensor from one row and rarely from three.
_TRIED = 3


@dataclass(frozen=True)
class Linearised:
    """Outputs of one batch with their graph, and how single samples' gradients are found.

    Parameters
    ----------
    problem, batch
        What was linearised.
    outputs
        Of the batch, with their graph.
    edges
        By rule: where the slope at the output of its module is found.
    norms
        The rules.
    ruled
        By rule: the tensors that it covers.
    others
        Tensors without a rule.
    """

    problem: Problem
    batch: Batch
    outputs: Tensor
    edges: tuple[GradientEdge, ...]
    norms: tuple[Norms, ...]
    ruled: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]

    def with_rules_for(self, trusted: frozenset[str]) -> Linearised:
        """The same with rules for trusted tensors alone."""
        kept = [i for i, names in enumerate(self.ruled) if not trusted.isdisjoint(names)]
        untrusted = [name for names in self.ruled for name in names if name not in trusted]
        return replace(
            self,
            edges=tuple(self.edges[i] for i in kept),
            norms=tuple(self.norms[i] for i in kept),
            ruled=tuple(tuple(name for name in self.ruled[i] if name in trusted) for i in kept),
            others=(*self.others, *untrusted),
        )

    def trusted(self) -> frozenset[str]:
        """Tensors whose rule gives the squared gradients of single rows of the outputs.

        The rules are tried beside plain gradients. One row tells; another one is tried for tensors
        whose gradient is zero there. What no row tells is not trusted.
        """
        untold = {name for names in self.ruled for name in names}
        right = set[str]()
        for row in range(len(self.outputs))[: -_TRIED - 1 : -1]:
            told = self._told_by(row) if untold else {}
            right |= {name for name in untold & told.keys() if told[name]}
            untold -= told.keys()
        return frozenset(right)

    def _told_by(self, row: int) -> dict[str, bool]:
        """Whether the rule is right about one row, for the tensors that have a gradient there."""
        alone = torch.zeros_like(self.outputs)
        alone[row] = generic(alone[row])
        names = [name for names in self.ruled for name in names]
        inputs: list[GradientEdge | Tensor] = [*self.edges]
        inputs += [self.problem.params[name] for name in names]
        found = torch.autograd.grad(
            self.outputs,
            inputs,  # type: ignore[arg-type]
            alone,
            retain_graph=True,
            allow_unused=True,
        )
        slopes = found[: len(self.edges)]
        by_rule = self._summed([None if slope is None else slope[None] for slope in slopes])
        plain = dict(zip(names, found[len(self.edges) :], strict=True))
        return _agreement(by_rule, plain, row, alone)

    def squared_norms(self, cotangent: Tensor) -> dict[str, Float[Tensor, " samples"]]:
        """‖J_nᵀ u_n‖² of every sample n and tensor, for cotangents u like the outputs."""
        return self.squared_norms_of_all(cotangent[None])

    def squared_norms_of_all(
        self, cotangents: Float[Tensor, "columns ..."]
    ) -> dict[str, Float[Tensor, " samples"]]:
        """Σ_k ‖J_nᵀ u_kn‖² of every sample n and tensor.

        Many columns go through a small graph at once. A tensor whose module gets slopes that do not
        go by rows is measured as one without a rule.
        """
        found, coupled = self.by_rules(cotangents)
        slow = {name: self.problem.params[name] for name in (*self.others, *coupled)}
        if slow:
            together = None if coupled else self.side_by_side
            for cotangent in cotangents:
                if together is None:
                    _add(found, one_by_one(self.outputs, slow, cotangent))
                else:
                    _add(found, together(cotangent))
        for squares in found.values():
            check_finite(squares)
        return found

    def by_rules(
        self, cotangents: Float[Tensor, "columns ..."]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """What the rules give, and the tensors whose slopes do not go by rows."""
        found = dict[str, Tensor]()
        K = len(cotangents)
        if not self.edges or K == 0:
            return found, []
        trial = None
        columns = cotangents
        if not self.apart:
            trial = Trial(cotangents, len(self.edges), stream(0, "proportions of rows"))
            columns = torch.cat([cotangents, trial.combination[None]])
        for part in chunks(len(columns), self.pushed_values):
            slopes = vjp([self.outputs], [columns[part]], self.edges)
            if trial is not None:
                slopes = trial.seen(part, slopes)
            # The trial's combination, which comes last, is no column of the sum.
            own = [None if slope is None else slope[: K - part.start] for slope in slopes]
            if part.start < K:
                _add(found, self._summed(own))
        numbers = set[int]() if trial is None else trial.coupled()
        coupled = [name for number in numbers for name in self.ruled[number]]
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
    def root(self) -> SeparableRoot | None:
        """The root of the loss Hessian position by position; None where a dense one serves."""
        return separable_root(self.problem, self.outputs, self.batch)

    @cached_property
    def pushed_values(self) -> int:
        """Values that a backward pass goes through."""
        return pushed_values(self.outputs)

    @cached_property
    def side_by_side(self) -> Callable[[Tensor], dict[str, Tensor]] | None:
        """The squares of tensors without a rule, all samples at once; None where that is wrong."""
        own = {name: self.problem.params[name] for name in self.others}
        return side_by_side(self.problem, self.batch[0], self.outputs, own)

    def squared_norm_of_sum(self, cotangent: Tensor) -> dict[str, Tensor]:
        """‖Σ_n J_nᵀ u_n‖² of every tensor, from one ordinary backward pass."""
        rows = pulled_back(self.outputs, self.problem.params, cotangent)
        squares = {name: square(row) for name, row in rows.items()}
        for found in squares.values():
            check_finite(found)
        return squares


def _agreement(
    by_rule: Mapping[str, Tensor], plain: Mapping[str, Tensor | None], row: int, like: Tensor
) -> dict[str, bool]:
    """Whether rule and plain gradient agree, by tensor; what both take for zero is left out."""
    none = like.new_zeros(len(like))
    # A rule that gives something else than a number per row is wrong: NaN agrees with nothing.
    wrong = like.new_full((len(like),), math.nan)
    rows = [by_rule.get(name, none) for name in plain]
    squares = torch.stack([found if found.shape == none.shape else wrong for found in rows])
    gradients = torch.stack([none[0] if g is None else square(g) for g in plain.values()])
    expected = torch.zeros_like(squares)
    expected[:, row] = gradients
    # Half of the digits: a wrong rule errs in the leading ones.
    bound = torch.finfo(like.dtype).eps ** 0.5 * gradients
    right = ((squares - expected).abs().amax(1) <= bound).tolist()
    told = ((squares != 0).any(1) | (gradients != 0)).tolist()
    verdicts = zip(plain, right, told, strict=True)
    return {name: is_right for name, is_right, is_told in verdicts if is_told}


def _add(found: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Adds up squares by tensor."""
    for name, squares in more.items():
        found[name] = found[name] + squares if name in found else squares


def linearised(problem: Problem, batch: Batch, trusted: frozenset[str] | None = None) -> Linearised:
    """One forward pass.

    A tensor has a rule if one call of one module is its only use and the rule is `trusted` (by
    default: holds on the first samples).
    """
    line = _forward(problem, batch)
    return line.with_rules_for(rules_that_hold(problem) if trusted is None else trusted)


@full_precision()
@differentiating()
def rules_that_hold(problem: Problem) -> frozenset[str]:
    """Tensors whose rule gives the squared gradients of single rows of the outputs.

    They are tried beside plain gradients. A rule takes the rows of a module's input for those of
    the outputs, and the module's output for W·x + b. Several things break that: a model that folds,
    transposes, averages or broadcasts the batch, a hook, a patched `forward`, or a weight used
    elsewhere.
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
        return _forward(few, few.batches[0])
    except (RuntimeError, ValueError, IndexError):
        return _forward(largest, largest.batches[0])


def _forward(problem: Problem, batch: Batch) -> Linearised:
    """One forward pass, with every rule that fits."""
    keep_freed_memory()
    with recorded_calls(problem.model) as calls:
        outputs = checked_outputs(problem.outputs(batch))
    if outputs.ndim == 0:
        raise ValueError(
            "the model returns a scalar: let it keep the axis of the samples, as squeeze(-1) does"
        )
    uses = uses_of_leaves(outputs)
    edges = list[GradientEdge]()
    rules = list[Norms]()
    ruled = list[tuple[str, ...]]()
    for call in calls.values():
        wanted = _covered(problem, call, uses)
        norms = call.norms(wanted) if wanted else None
        if norms is not None:
            edges.append(call.edge)
            rules.append(norms)
            ruled.append(tuple(wanted.values()))
    covered = {name for names in ruled for name in names}
    reached = [name for name, p in problem.params.items() if uses.get(id(p), 0)]
    others = tuple(name for name in reached if name not in covered)
    return Linearised(problem, batch, outputs, tuple(edges), tuple(rules), tuple(ruled), others)


def _covered(problem: Problem, call: Call, uses: Mapping[int, int]) -> dict[str, str]:
    """Tensors {attribute: name} of a call for which a rule may hold: this is their only use."""
    names = {id(p): name for name, p in problem.params.items()}
    wanted = {}
    for attribute in ("weight", "bias"):
        name = names.get(id(getattr(call.module, attribute, None)))
        if name is not None:
            wanted[attribute] = name
    once = all(uses.get(id(problem.params[name]), 0) == 1 for name in wanted.values())
    return wanted if once and call.is_as_recorded else {}
