"""Checks of state: legal answers, the generator, and what an estimate must leave alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hesstheory.conformance.contract import TOTAL, IllegalAnswer, raised
from hesstheory.conformance.measures import distinct, is_exact, relative_difference
from hesstheory.conformance.problems import Reference, references
from hesstheory.conformance.registry import check
from hesstheory.conformance.session import FAILED, PASSED, Finding, OutOfTime, Session
from hesstheory.conformance.snapshots import differences, global_state, state_of


@check()
def check_answers_are_legal(session: Session) -> Iterator[Finding]:
    """Is there a finite, real trace of every block, for every problem?"""
    for name in references():
        reference = session.reference(name)
        if illegal := _illegal(session, reference, session.num_probes):
            session.illegal[name] = illegal
            yield Finding(name, FAILED, illegal)
        else:
            yield Finding(name, PASSED, "")


@check("flat", "smooth_mlp", needs=["check_answers_are_legal"])
def check_one_probe(session: Session) -> Iterator[Finding]:
    """Does one probe suffice for an answer, and does it depend on the generator?"""
    for reference in session.legal("flat", "smooth_mlp"):
        text = _illegal(session, reference, 1)
        if not text and reference.name == "smooth_mlp":
            one, other = (
                session.ask(reference.problem, session.generator(name), num_probes=1)
                for name in "ab"
            )
            if relative_difference(one.values, other.values) == 0 and not is_exact(one, reference):
                text = "two generators give the same answer of one probe, and it is not the trace"
            if (
                one.stderr is not None
                and not all(one.stderr.values())
                and not is_exact(one, reference)
            ):
                text = "one probe claims the standard error 0: nothing is known of its spread, return NaN"
        yield Finding(reference.name, FAILED if text else PASSED, text)


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
        text = f"two calls from one generator state differ by {apart:.3g} of the trace: draw from `generator` alone"
        yield Finding(reference.name, FAILED if apart else PASSED, text if apart else "")


@check(*_RANDOM, needs=["check_answers_are_legal"])
def check_other_state_other_answer(session: Session) -> Iterator[Finding]:
    """Does another generator state give another answer, and a generator that was used a new one?"""
    for reference in session.legal(*_RANDOM):
        going_on = session.generator("used")
        first, second = (session.ask(reference.problem, going_on) for _ in range(2))
        other = session.ask(reference.problem, session.generator("other"))
        if is_exact(first, reference) and is_exact(second, reference):
            yield Finding(reference.name, PASSED, "no randomness: the answer is exact")
            continue
        repeats = [what for what, x in (("another seed", other), ("a generator that was used", second))
                   if relative_difference(first.values, x.values) == 0]  # fmt: skip
        yield Finding(
            reference.name, FAILED if repeats else PASSED,
            f"{' and '.join(repeats)} gives the same numbers: averaging such calls averages nothing" if repeats else "",
        )  # fmt: skip
    if session.profile != "smoke":
        yield from (_many_states(session, reference) for reference in session.legal("smooth_mlp"))


NUM_STATES = 256


def _many_states(session: Session, reference: Reference) -> Finding:
    """Equal answers from different generator states; of 2^b streams, 256 states show b up to 12 almost surely."""
    totals = session.runs(reference, 12).values(NUM_STATES)[TOTAL]
    if totals.std() <= 1e-12 * np.abs(totals).max():
        return Finding(reference.name, PASSED, "no randomness")
    same = NUM_STATES - len(distinct(totals[:, None]))
    text = f"{same} of {NUM_STATES} generator states give an answer that another one gave: few random streams are used"
    return Finding(reference.name, FAILED if same else PASSED, text if same else "")


@check("smooth_mlp", "batch_norm", "tied", "frozen", needs=["check_answers_are_legal"])
def check_leaves_model_untouched(session: Session) -> Iterator[Finding]:
    """Are parameters, gradients, buffers, modes, hooks and data as before?"""
    for reference in session.legal("smooth_mlp", "batch_norm", "tied", "frozen"):
        problem = reference.build()
        for parameter in list(problem.model.parameters())[:1]:
            parameter.grad = torch.ones_like(parameter)  # a gradient that training will want
        before = state_of(problem)
        session.ask(problem, session.generator("state"))
        changed = differences(before, state_of(problem))
        yield Finding(
            reference.name, FAILED if changed else PASSED,
            f"changes {', '.join(changed)} of the model: work on copies, or put everything back" if changed else "",
        )  # fmt: skip


@check("smooth_mlp", "coupled", needs=["check_answers_are_legal"])
def check_leaves_globals_untouched(session: Session) -> Iterator[Finding]:
    """Are the global random streams, the default dtype, grad mode and threads as before?"""
    for reference in session.legal("smooth_mlp", "coupled"):
        before = global_state()
        session.ask(reference.problem, session.generator("globals"))
        changed = differences(before, global_state())
        yield Finding(
            reference.name, FAILED if changed else PASSED,
            f"changes {', '.join(changed)}: draw from `generator`, and set nothing for the process" if changed else "",
        )  # fmt: skip
