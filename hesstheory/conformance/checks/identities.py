"""Checks of identities: what must hold whatever the probes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from hesstheory.conformance.measures import SAME, percent, relative_difference, sign_of, targets_of
from hesstheory.conformance.problems import Reference
from hesstheory.conformance.registry import check
from hesstheory.conformance.runs import LAST_LOOK, looks
from hesstheory.conformance.session import FAILED, INCONCLUSIVE, PASSED, SKIPPED, Finding, Session
from hesstheory.evidence.intervals import mean_interval
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory.run.streams import stream

Change = Callable[[Problem], Problem]


def _in_place(problem: Problem) -> Problem:
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.mul_(0.75)
    return problem


def _through_data(problem: Problem) -> Problem:
    for parameter in problem.model.parameters():
        parameter.data.mul_(0.75)  # autograd counts no version of this
    return problem


def _of_buffers(problem: Problem) -> Problem:
    for buffer in problem.model.buffers():
        if buffer.is_floating_point():
            buffer.mul_(0.75)
    return problem


def _of_partition(problem: Problem) -> Problem:
    return problem.with_partition(Partition(dict(reversed(list(problem.partition.blocks.items())))))


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
            text = f"after a change of {what} the answer is {stale:.3g} off that of a fresh problem: something is cached"
            yield Finding(
                reference.name, FAILED if stale > SAME else PASSED, text if stale > SAME else ""
            )


def _agrees(
    session: Session, reference: Reference, what: str, left: Callable[[torch.Generator], Mapping[str, float]],
    right: Callable[[torch.Generator], Mapping[str, float]],
) -> Finding:  # fmt: skip
    """left = right at equal generator states; where draws depend on the way of writing, in the mean over runs."""
    a, b = left(session.generator(what)), right(session.generator(what))
    apart = relative_difference(a, b)
    if apart <= SAME:
        return Finding(reference.name, PASSED, "")
    if (
        apart < 1e-4 and what == "loss × 3"
    ):  # else the answer need not be linear in the matrix: deflation is not
        return Finding(
            reference.name,
            FAILED,
            f"{what}: the answer moves by {apart:.3g}, more than rounding in float64 explains",
        )
    gaps: list[dict[str, float]] = []
    margin = max(session.margin(reference), 0.2)
    size = sum(abs(trace) for trace in reference.traces.values()) or 1.0
    for count in (n for n in looks() if n <= LAST_LOOK // 4):
        while len(gaps) < count:
            states = [stream(session.seed, what, reference.name, str(len(gaps))) for _ in range(2)]
            x, y = left(states[0]), right(states[1])
            gaps.append({block: (x[block] - y[block]) / size for block in x})
        intervals = [
            (
                block,
                mean_interval(np.array([gap[block] for gap in gaps]), session.alpha / len(looks())),
            )
            for block in gaps[0]
        ]
        for block, found in intervals:
            if found.low > 0 or found.high < 0:
                text = f"{what}: {block} moves by {percent(found)} of Σ|tr H_ll|"
                return Finding(reference.name, FAILED, text, sign_of(found.effect))
        if all(max(abs(found.low), abs(found.high)) <= margin for _, found in intervals):
            return Finding(reference.name, PASSED, "in the mean")
    return Finding(
        reference.name, INCONCLUSIVE, f"{what}: too noisy to tell at {LAST_LOOK // 4} runs"
    )


def _with_loss(problem: Problem, factor: float) -> Problem:
    other, loss_fn = copy.copy(problem), problem.loss_fn
    other.loss_fn = lambda outputs, targets: factor * loss_fn(outputs, targets)
    return other


def _values(
    session: Session, problem: Problem, factor: float = 1.0
) -> Callable[[torch.Generator], dict[str, float]]:
    def of(generator: torch.Generator) -> dict[str, float]:
        return {
            block: factor * value for block, value in session.ask(problem, generator).values.items()
        }

    return of


@check("smooth_mlp", "coupled", needs=["check_answers_are_legal", "check_same_state_same_answer"])
def check_scales_with_loss(session: Session) -> Iterator[Finding]:
    """Does three times the loss give three times the trace, to the rounding of float64?"""
    for reference in session.legal("smooth_mlp", "coupled"):
        tripled = _with_loss(reference.problem, 3.0)
        yield _agrees(
            session,
            reference,
            "loss × 3",
            _values(session, tripled),
            _values(session, reference.problem, 3.0),
        )


@check("smooth_mlp", "ragged", needs=["check_answers_are_legal", "check_same_state_same_answer"])
def check_batch_order(session: Session) -> Iterator[Finding]:
    """Is the order of the batches without influence?"""
    for reference in session.legal("smooth_mlp", "ragged"):
        turned = reference.problem.with_batches(reference.problem.batches[::-1])
        yield _agrees(
            session,
            reference,
            "batches reversed",
            _values(session, turned),
            _values(session, reference.problem),
        )


@check("smooth_mlp", "ragged", needs=["check_answers_are_legal", "check_same_state_same_answer"])
def check_additivity(session: Session) -> Iterator[Finding]:
    """Is the trace over two batches the mean of theirs, weighted by samples?"""
    for reference in session.legal("smooth_mlp", "ragged"):
        problem = reference.problem
        parts = [problem.with_batches([batch]) for batch in problem.batches]

        def weighted(
            generator: torch.Generator, parts: list[Problem] = parts, problem: Problem = problem
        ) -> dict[str, float]:
            state = generator.get_state()
            answers = [session.ask(part, _restored(state)).values for part in parts]
            return {
                block: sum(
                    w * values[block] for w, values in zip(problem.weights, answers, strict=True)
                )
                for block in answers[0]
            }

        yield _agrees(session, reference, "batches joined", _values(session, problem), weighted)


def _restored(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


_ENUMERATED = ("ragged", "negative", "unequal", "coupled", "smooth_mlp", "tied", "autoencoder", "batch_norm",
               "unreached", "layouts", "frozen")  # fmt: skip


@check(*_ENUMERATED, needs=["check_answers_are_legal"])
def check_given_probes(session: Session) -> Iterator[Finding]:
    """Do all Hadamard columns, or orthogonal ones, handed over as probes=, give the exact traces?"""
    from hesstheory.estimators.enumerations import hadamard_columns

    if not session.takes_probes:
        yield Finding(
            "", SKIPPED, "no keyword probes=: with it, unbiasedness is decided without sampling"
        )
        return
    for reference in session.legal(*_ENUMERATED):
        yield _enumerated(session, reference, hadamard_columns(reference.problem.num_params))
    for reference in session.legal("layouts"):  # entries that are no signs
        P = reference.problem.num_params
        Q = torch.linalg.qr(
            torch.randn(P, P, generator=session.generator("orthogonal"), dtype=torch.float64)
        ).Q
        yield _enumerated(session, reference, P**0.5 * Q)


def _enumerated(session: Session, reference: Reference, Z: torch.Tensor) -> Finding:
    """Σ_k z_k z_kᵀ/K = I, so that the mean of the forms is the trace."""
    answer = session.ask(reference.problem, session.generator("given"), Z, Z.shape[1])
    size = sum(map(abs, reference.traces.values())) or 1.0
    target = targets_of(answer, reference)
    gaps = {block: (answer.values[block] - target[block]) / size for block in target}
    worst = max(gaps, key=lambda block: abs(gaps[block]))
    off = abs(gaps[worst]) > 1e-10 * reference.problem.num_params**0.5
    return Finding(
        reference.name, FAILED if off else PASSED,
        f"{worst}: {answer.values[worst]:.10g}, exactly {target[worst]:.10g}; {reference.hunts}" if off else "",
        sign_of(gaps[worst]) if off else "",
    )  # fmt: skip
