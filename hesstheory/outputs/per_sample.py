"""Squared norms of the gradients of single samples, from the slopes at the outputs of modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from hesstheory.autograd.graph import differentiating, pushed_values, uses_of_leaves
from hesstheory.autograd.products import chunks, vjp
from hesstheory.autograd.rows import Trial, apart_by_graph, generic
from hesstheory.curvature.limits import check_finite
from hesstheory.curvature.linearised import checked_outputs
from hesstheory.outputs.calls import Call, recorded_calls
from hesstheory.outputs.rules import tied_norms
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
class Rule:
    """How squared gradients of some tensors follow from slopes.

    Parameters
    ----------
    names
        The tensors.
    edges
        Where the slopes are found, at the outputs of the modules that use the tensors.
    norms
        Of the slopes at these edges, None for zero: the squares by tensor.
    """

    names: tuple[str, ...]
    edges: tuple[GradientEdge, ...]
    norms: Callable[[Sequence[Tensor | None]], dict[str, Tensor]]

    def covering(self, names: frozenset[str]) -> Rule:
        """The same rule for some of its tensors alone."""
        return replace(self, names=tuple(name for name in self.names if name in names))


@dataclass(frozen=True)
class Linearised:
    """Outputs of one batch with their graph, and how single samples' gradients are found.

    Parameters
    ----------
    problem, batch
        What was linearised.
    outputs
        Of the batch, with their graph.
    rules
        The rules that fit.
    others
        Tensors without a rule.
    """

    problem: Problem
    batch: Batch
    outputs: Tensor
    rules: tuple[Rule, ...]
    others: tuple[str, ...]

    @property
    def edges(self) -> tuple[GradientEdge, ...]:
        """Where the slopes are found that the rules need, in their order."""
        return tuple(edge for rule in self.rules for edge in rule.edges)

    @property
    def ruled(self) -> tuple[str, ...]:
        """Names of the tensors that have a rule."""
        return tuple(name for rule in self.rules for name in rule.names)

    def with_rules_for(self, trusted: frozenset[str]) -> Linearised:
        """The same with rules for trusted tensors alone."""
        kept = [rule.covering(trusted) for rule in self.rules]
        untrusted = [name for name in self.ruled if name not in trusted]
        return replace(
            self,
            rules=tuple(rule for rule in kept if rule.names),
            others=(*self.others, *untrusted),
        )

    def trusted(self) -> frozenset[str]:
        """Tensors whose rule gives the squared gradients of single rows of the outputs.

        The rules are tried beside plain gradients. One row tells; another one is tried for tensors
        whose gradient is zero there. What no row tells is not trusted.
        """
        untold = set(self.ruled)
        right = set[str]()
        for row in range(len(self.outputs))[: -_TRIED - 1 : -1]:
            told = _told_by(self, row) if untold else {}
            right |= {name for name in untold & told.keys() if told[name]}
            untold -= told.keys()
        return frozenset(right)

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
        edges = self.edges
        if not edges or K == 0:
            return found, []
        trial = None
        columns = cotangents
        if not self.apart:
            trial = Trial(cotangents, len(edges), stream(0, "proportions of rows"))
            columns = torch.cat([cotangents, trial.combination[None]])
        for part in chunks(len(columns), self.pushed_values):
            slopes = vjp([self.outputs], [columns[part]], edges)
            if trial is not None:
                slopes = trial.seen(part, slopes)
            # The trial's combination, which comes last, is no column of the sum.
            own = [None if slope is None else slope[: K - part.start] for slope in slopes]
            if part.start < K:
                _add(found, self.summed(own))
        numbers = set[int]() if trial is None else trial.coupled()
        owners = [rule.names for rule in self.rules for _ in rule.edges]
        coupled = [name for number in sorted(numbers) for name in owners[number]]
        return {name: squares for name, squares in found.items() if name not in coupled}, coupled

    @cached_property
    def apart(self) -> bool:
        """Whether the graph shows that the slopes at the outputs of the modules go by rows."""
        return apart_by_graph(self.outputs)

    def summed(self, slopes: Sequence[Tensor | None]) -> dict[str, Float[Tensor, " samples"]]:
        """What the rules make of the slopes at the outputs of their modules."""
        found = dict[str, Tensor]()
        rest = iter(slopes)
        for rule in self.rules:
            own = [next(rest) for _ in rule.edges]
            if any(slope is not None for slope in own):
                found |= {name: s for name, s in rule.norms(own).items() if name in rule.names}
        return found

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


def _told_by(line: Linearised, row: int) -> dict[str, bool]:
    """Whether the rule is right about one row, for the tensors that have a gradient there."""
    alone = torch.zeros_like(line.outputs)
    alone[row] = generic(alone[row])
    names = list(line.ruled)
    inputs: list[GradientEdge | Tensor] = [*line.edges]
    inputs += [line.problem.params[name] for name in names]
    found = torch.autograd.grad(
        line.outputs,
        inputs,  # type: ignore[arg-type]
        alone,
        retain_graph=True,
        allow_unused=True,
    )
    num_edges = len(line.edges)
    slopes = [None if slope is None else slope[None] for slope in found[:num_edges]]
    by_rule = line.summed(slopes)
    plain = dict(zip(names, found[num_edges:], strict=True))
    return _agreement(by_rule, plain, row, alone)


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
    rules = [rule for call in calls.values() if (rule := _rule(problem, call, uses))]
    rules += _rules_of_ties(problem, list(calls.values()), uses)
    covered = {name for rule in rules for name in rule.names}
    reached = [name for name, p in problem.params.items() if uses.get(id(p), 0)]
    others = tuple(name for name in reached if name not in covered)
    return Linearised(problem, batch, outputs, tuple(rules), others)


def _rule(problem: Problem, call: Call, uses: Mapping[int, int]) -> Rule | None:
    """The rule for the tensors whose only use is a call; None where none fits."""
    wanted = _covered(problem, call, uses)
    norms = call.norms(wanted) if wanted else None
    if norms is None:
        return None

    def of_slopes(slopes: Sequence[Tensor | None]) -> dict[str, Tensor]:
        (slope,) = slopes
        return {} if slope is None else norms(slope)

    return Rule(tuple(wanted.values()), (call.edge,), of_slopes)


def _rules_of_ties(
    problem: Problem, calls: Sequence[Call], uses: Mapping[int, int]
) -> Iterator[Rule]:
    """Rules for matrices whose two uses are an embedding and a linear layer without bias."""
    heads = {id(call.module.weight): call for call in calls if type(call.module) is nn.Linear}
    names = {id(p): name for name, p in problem.params.items()}
    for call in calls:
        key = id(call.module.weight)
        if not isinstance(call.module, nn.Embedding) or key not in heads or key not in names:
            continue
        head = heads[key]
        assert isinstance(head.module, nn.Linear)
        fits = call.is_as_recorded and head.is_as_recorded and uses.get(key, 0) == 2
        if not fits or head.module.bias is not None:
            continue
        norms = tied_norms(call.module, call.inputs, head.module, head.inputs, names[key])
        if norms is not None:
            yield Rule((names[key],), (call.edge, head.edge), norms)


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
