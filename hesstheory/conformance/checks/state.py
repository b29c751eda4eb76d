"""Checks of state: legal answers, the generator, and what an estimate must leave alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hesstheory.conformance.contract import TOTAL, Answer, IllegalAnswer
from hesstheory.conformance.measures import ROUNDING, distinct, is_exact, relative_difference
from hesstheory.conformance.places import raised
from hesstheory.conformance.problems.reference import Reference
from hesstheory.conformance.problems.registry import references
from hesstheory.conformance.registry import check
from hesstheory.conformance.session import Finding, OutOfTime, Session
from hesstheory.conformance.snapshots import differences, global_state, state_of
from hesstheory.evidence.checks import Status


@check()
def check_answers_are_legal(session: Session) -> Iterator[Finding]:
    """Is there a finite, real trace of every block, for every problem?"""
    for name in references():
        reference = session.reference(name)
        illegal = _illegal(session, reference, session.num_probes)
        if illegal:
            session.illegal[name] = illegal
        yield Finding.of(name, illegal)


@check("flat", "smooth_mlp", needs=["check_answers_are_legal"])
def check_one_probe(session: Session) -> Iterator[Finding]:
    """Does one probe suffice for an answer, and does it depend on the generator?"""
    for reference in session.legal("flat", "smooth_mlp"):
        text = _illegal(session, reference, 1)
        if not text and reference.name == "smooth_mlp":
            text = _mistake_of_one_probe(session, reference)
        yield Finding.of(reference.name, text)


def _mistake_of_one_probe(session: Session, reference: Reference) -> str:
    """An answer that is no draw, or an error that nobody can know."""
    one, other = (
        session.ask(reference.problem, session.generator(name), num_probes=1) for name in "ab"
    )
    if is_exact(one, reference):
        return ""
    if one.stderr is not None and not all(one.stderr.values()):
        return "one probe claims the standard error 0: nothing is known of its spread, return NaN"
    if relative_difference(one.values, other.values) == 0:
        return "two generators give the same answer of one probe, and it is not the trace"
    return ""


def _illegal(session: Session, reference: Reference, num_probes: int) -> str:
    """Why there is no legal answer, or nothing."""
    try:
        session.ask(reference.problem, session.generator(reference.name), num_probes=num_probes)
    except IllegalAnswer as error:
        return str(error)
    except OutOfTime:
        raise
    except (Exception, SystemExit) as error:
        return f"{raised(error)} on {reference.problem}"
    return ""


_RANDOM = ("coupled", "smooth_mlp")


@check(*_RANDOM, needs=["check_answers_are_legal"])
def check_same_state_same_answer(session: Session) -> Iterator[Finding]:
    """Does an equal generator state give an equal answer?"""
    for reference in session.legal(*_RANDOM):
        one, two = (session.ask(reference.problem, session.generator("same")) for _ in range(2))
        apart = relative_difference(one.values, two.values)
        text = (
            f"two calls from one generator state differ by {apart:.3g} of the trace: draw from "
            "`generator` alone"
        )
        yield Finding.of(reference.name, text if apart else "")


@check(*_RANDOM, needs=["check_answers_are_legal"])
def check_other_state_other_answer(session: Session) -> Iterator[Finding]:
    """Does another generator state give another answer, and a generator that was used a new one?"""
    for reference in session.legal(*_RANDOM):
        going_on = session.generator("used")
        first, second = (session.ask(reference.problem, going_on) for _ in range(2))
        other = session.ask(reference.problem, session.generator("other"))
        if is_exact(first, reference) and is_exact(second, reference):
            text = "no randomness: the answer is exact"
            yield Finding(reference.name, Status.PASSED, text)
        else:
            yield Finding.of(reference.name, _repetition(first, second, other))
    if session.profile != "smoke":
        yield from (_many_states(session, reference) for reference in session.legal("smooth_mlp"))


def _repetition(first: Answer, second: Answer, other: Answer) -> str:
    """Which of the later answers is the first one again."""
    later = {"another seed": other, "a generator that was used": second}
    repeats = [
        what
        for what, answer in later.items()
        if relative_difference(first.values, answer.values) == 0
    ]
    if not repeats:
        return ""
    return f"{' and '.join(repeats)} gives the same numbers: averaging such calls averages nothing"


# Of 2^b streams, 256 states show b up to 12: P(no pair is equal) ≈ exp(−256²/2 / 4096) = 3e-4.
NUM_STATES = 256
# Sums of twelve probes take so many values that equal ones are no chance, see `distinct`.
_PROBES_OF_STATE = 12


def _many_states(session: Session, reference: Reference) -> Finding:
    """Equal answers from different generator states."""
    totals = session.runs(reference, _PROBES_OF_STATE).values(NUM_STATES)[TOTAL]
    if totals.std() <= ROUNDING * np.abs(totals).max():
        return Finding(reference.name, Status.PASSED, "no randomness")
    same = NUM_STATES - len(distinct(totals[:, None]))
    text = (
        f"{same} of {NUM_STATES} generator states give an answer that another one gave: few random "
        "streams are used"
    )
    return Finding.of(reference.name, text if same else "")


_TOUCHED = ("smooth_mlp", "batch_norm", "tied", "frozen")


@check(*_TOUCHED, needs=["check_answers_are_legal"])
def check_leaves_model_untouched(session: Session) -> Iterator[Finding]:
    """Are parameters, gradients, buffers, modes, hooks and data as before?"""
    for reference in session.legal(*_TOUCHED):
        problem = reference.build()
        for parameter in list(problem.model.parameters())[:1]:
            parameter.grad = torch.ones_like(parameter)  # a gradient that training will want
        before = state_of(problem)
        session.ask(problem, session.generator("state"))
        changed = differences(before, state_of(problem))
        text = f"changes {', '.join(changed)} of the model: work on copies, or put everything back"
        yield Finding.of(reference.name, text if changed else "")


@check("smooth_mlp", "coupled", needs=["check_answers_are_legal"])
def check_leaves_globals_untouched(session: Session) -> Iterator[Finding]:
    """Are the global random streams, the default dtype, grad mode and threads as before?"""
    for reference in session.legal("smooth_mlp", "coupled"):
        before = global_state()
        session.ask(reference.problem, session.generator("globals"))
        changed = differences(before, global_state())
        text = (
            f"changes {', '.join(changed)}: draw from `generator`, and set nothing for the process"
        )
        yield Finding.of(reference.name, text if changed else "")
