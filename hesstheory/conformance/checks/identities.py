"""Checks of identities: what must hold whatever the probes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hesstheory.conformance.measures import (
    ENUMERATED,
    LOWER_PRECISION,
    SAME,
    percent,
    relative_difference,
    sign_of,
    targets_of,
)
from hesstheory.conformance.problems.reference import Reference
from hesstheory.conformance.registry import check, tests_of_blocks
from hesstheory.conformance.runs import LAST_LOOK, looks
from hesstheory.conformance.session import Finding, Session
from hesstheory.estimators.enumerations import hadamard_columns
from hesstheory.evidence.checks import Status
from hesstheory.evidence.intervals import mean_interval
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory.run.streams import stream

# A quantity by block, as a function of the generator's state.
Side = Callable[[torch.Generator], Mapping[str, float]]
Change = Callable[[Problem], Problem]


def _in_place(problem: Problem) -> Problem:
    """Other parameters, by arithmetic in place."""
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.mul_(0.75)
    return problem


def _through_data(problem: Problem) -> Problem:
    """Other parameters, by their `data`."""
    for parameter in problem.model.parameters():
        parameter.data.mul_(0.75)  # autograd counts no version of this
    return problem


def _of_buffers(problem: Problem) -> Problem:
    """Other running statistics."""
    for buffer in problem.model.buffers():
        if buffer.is_floating_point():
            buffer.mul_(0.75)
    return problem


def _of_partition(problem: Problem) -> Problem:
    """The blocks in another order."""
    blocks = reversed(list(problem.partition.blocks.items()))
    return problem.with_partition(Partition(dict(blocks)))


_CHANGES: dict[str, tuple[tuple[str, Change], ...]] = {
    "smooth_mlp": (
        ("the parameters", _in_place),
        ("the data of the parameters", _through_data),
        ("the batches", lambda problem: problem.with_batches(problem.batches[:1])),
        ("the order of the blocks", _of_partition),
    ),
    "coupled": (("the parameters", _in_place),),
    "batch_norm": (("the running statistics", _of_buffers),),
}


@check(*_CHANGES, needs=["check_answers_are_legal", "check_same_state_same_answer"])
def check_follows_parameters(session: Session) -> Iterator[Finding]:
    """Does the answer follow when parameters, buffers, data or blocks of a problem change?"""
    for reference in session.legal(*_CHANGES):
        for what, change in _CHANGES[reference.name]:
            problem = reference.build()
            session.ask(problem, session.generator("follow"))
            moved, fresh = (
                session.ask(changed, session.generator("follow")).values
                for changed in (change(problem), change(reference.build()))
            )
            stale = relative_difference(fresh, moved)
            text = (
                f"after a change of {what} the answer is {stale:.3g} off that of a fresh problem: "
                "something is cached"
            )
            yield Finding.of(reference.name, text if stale > SAME else "")


# Each run asks twice and more: a quarter of the runs of other checks is what time allows.
_LAST_LOOK = LAST_LOOK // 4
# A right estimator whose draws depend on the way of writing passes by its mean. This margin, of
# Σ|tr H_ll|, shows a factor 3 or a dropped batch, which is what the checks are for.
_LEAST_MARGIN = 0.2


@dataclass(frozen=True)
class _Sides:
    """Two ways of writing one quantity, by block."""

    what: str
    left: Side
    right: Side
    # Whether every estimator, be it nonlinear in the matrix, has left = right at equal draws.
    is_exact: bool = False

    def gap(self, reference: Reference, states: Sequence[torch.Generator]) -> dict[str, float]:
        """left − right by block, relative to Σ|tr H_ll|."""
        x = self.left(states[0])
        y = self.right(states[1])
        return {block: (x[block] - y[block]) / reference.size for block in x}


def _agrees(session: Session, reference: Reference, sides: _Sides) -> Finding:
    """left = right at equal generator states, or in the mean where writing moves the draws."""
    what = sides.what
    apart = relative_difference(
        sides.left(session.generator(what)), sides.right(session.generator(what))
    )
    if apart <= SAME:
        return Finding.of(reference.name, "")
    if apart < LOWER_PRECISION and sides.is_exact:
        text = f"{what}: the answer moves by {apart:.3g}, more than rounding in float64 explains"
        return Finding.of(reference.name, text)
    return _agrees_in_the_mean(session, reference, sides)


def _agrees_in_the_mean(session: Session, reference: Reference, sides: _Sides) -> Finding:
    """left = right in the mean over runs, each side with draws of its own."""
    what = sides.what
    margin = max(session.margin(reference), _LEAST_MARGIN)
    gaps: list[dict[str, float]] = []
    counts = looks()
    for count in (n for n in counts if n <= _LAST_LOOK):
        while len(gaps) < count:
            names = (what, reference.name, str(len(gaps)))
            gaps.append(sides.gap(reference, [stream(session.seed, *names) for _ in range(2)]))
        found = {
            block: mean_interval(
                np.array([gap[block] for gap in gaps]),
                session.level(reference, block, len(counts)),
            )
            for block in gaps[0]
        }
        for block, interval in found.items():
            if interval.low > 0 or interval.high < 0:
                text = f"{what}: {block} moves by {percent(interval)} of Σ|tr H_ll|"
                return Finding.of(reference.name, text, sign_of(interval.effect))
        if all(max(abs(f.low), abs(f.high)) <= margin for f in found.values()):
            return Finding(reference.name, Status.PASSED, "in the mean")
    text = f"{what}: too noisy to tell at {_LAST_LOOK} runs"
    return Finding(reference.name, Status.INCONCLUSIVE, text)


def _with_loss(problem: Problem, factor: float) -> Problem:
    """The problem with its loss times a factor."""
    other = copy.copy(problem)
    loss_fn = problem.loss_fn
    other.loss_fn = lambda outputs, targets: factor * loss_fn(outputs, targets)
    return other


def _values(session: Session, problem: Problem, factor: float = 1.0) -> Side:
    """The answer to a problem, times a factor, as a function of the generator."""

    def of(generator: torch.Generator) -> dict[str, float]:
        return {
            block: factor * value for block, value in session.ask(problem, generator).values.items()
        }

    return of


_NEEDS = ("check_answers_are_legal", "check_same_state_same_answer")


@check("smooth_mlp", "coupled", needs=_NEEDS, tests=tests_of_blocks)
def check_scales_with_loss(session: Session) -> Iterator[Finding]:
    """Does three times the loss give three times the trace, to the rounding of float64?"""
    for reference in session.legal("smooth_mlp", "coupled"):
        tripled = _values(session, _with_loss(reference.problem, 3.0))
        times_three = _values(session, reference.problem, 3.0)
        yield _agrees(session, reference, _Sides("loss × 3", tripled, times_three, is_exact=True))


@check("smooth_mlp", "ragged", needs=_NEEDS, tests=tests_of_blocks)
def check_batch_order(session: Session) -> Iterator[Finding]:
    """Is the order of the batches without influence?"""
    for reference in session.legal("smooth_mlp", "ragged"):
        turned = reference.problem.with_batches(reference.problem.batches[::-1])
        sides = (_values(session, turned), _values(session, reference.problem))
        yield _agrees(session, reference, _Sides("batches reversed", *sides))


@check("smooth_mlp", "ragged", needs=_NEEDS, tests=tests_of_blocks)
def check_additivity(session: Session) -> Iterator[Finding]:
    """Is the trace over two batches the mean of theirs, weighted by samples?"""
    for reference in session.legal("smooth_mlp", "ragged"):
        sides = (_values(session, reference.problem), _weighted(session, reference.problem))
        yield _agrees(session, reference, _Sides("batches joined", *sides))


def _weighted(session: Session, problem: Problem) -> Side:
    """The mean of the answers to single batches, all from one generator state."""
    parts = [problem.with_batches([batch]) for batch in problem.batches]

    def of(generator: torch.Generator) -> dict[str, float]:
        state = generator.get_state()
        answers = [session.ask(part, _restored(state)).values for part in parts]
        pairs = list(zip(problem.weights, answers, strict=True))
        return {block: sum(w * values[block] for w, values in pairs) for block in answers[0]}

    return of


def _restored(state: torch.Tensor) -> torch.Generator:
    """A generator in this state."""
    generator = torch.Generator()
    generator.set_state(state)
    return generator


_ENUMERATED = (
    "ragged",
    "negative",
    "unequal",
    "coupled",
    "smooth_mlp",
    "tied",
    "autoencoder",
    "batch_norm",
    "unreached",
    "layouts",
    "frozen",
)


@check(*_ENUMERATED, needs=["check_answers_are_legal"])
def check_given_probes(session: Session) -> Iterator[Finding]:
    """Do all Hadamard columns, or orthogonal ones, handed over as probes=, give the exact traces?"""  # noqa: E501
    if not session.takes_probes:
        text = "no keyword probes=: with it, unbiasedness is decided without sampling"
        yield Finding("", Status.SKIPPED, text)
        return
    for reference in session.legal(*_ENUMERATED):
        yield _enumerated(session, reference, hadamard_columns(reference.problem.num_params))
    for reference in session.legal("layouts"):  # entries that are no signs
        P = reference.problem.num_params
        drawn = torch.randn(P, P, generator=session.generator("orthogonal"), dtype=torch.float64)
        yield _enumerated(session, reference, P**0.5 * torch.linalg.qr(drawn).Q)


def _enumerated(session: Session, reference: Reference, Z: torch.Tensor) -> Finding:
    """Σ_k z_k z_kᵀ/K = I, so that the mean of the forms is the trace."""
    answer = session.ask(reference.problem, session.generator("given"), Z, Z.shape[1])
    target = targets_of(answer, reference)
    gaps = {b: (answer.values[b] - target[b]) / reference.size for b in target}
    worst = max(gaps, key=lambda block: abs(gaps[block]))
    if abs(gaps[worst]) <= ENUMERATED * reference.problem.num_params**0.5:
        return Finding.of(reference.name, "")
    text = f"{worst}: {answer.values[worst]:.10g}, exactly {target[worst]:.10g}; {reference.hunts}"
    return Finding.of(reference.name, text, sign_of(gaps[worst]))
