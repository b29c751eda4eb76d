"""Where does a check run? Here, under a time limit, or in a forked process, which may die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar, cast

import torch

from hesstheory.conformance.contract import Misuse
from hesstheory.conformance.places import raised
from hesstheory.conformance.registry import ConformanceCheck
from hesstheory.conformance.session import Finding, OutOfTime, Session
from hesstheory.evidence.checks import Status

# Status, details and findings of one check.
Decided = tuple[Status, str, tuple[Finding, ...]]

Made = tuple[str, str, str]

Answer = TypeVar("Answer")
Message = TypeVar("Message")

CAN_FORK = "fork" in multiprocessing.get_all_start_methods()

_LONGEST = 1e7  # seconds that an alarm can be set to

# What a busy machine may make of a call: so many times as long as alone, and some seconds in any
# case, since a loaded scheduler gives a process its first share late.
_SLOWEST = 4
_LEAST_WALL = 20.0
# A process that works for less than this share of the time waits for something. It is judged after
# so many seconds: a machine with a load of 20 on two cores has given it a tenth by then.
_RESTS = 0.02
_FAIR_AFTER = 2.0


class Lost(Exception):
    """A process ended, or was silent for too long, before its answer: the message says how."""


# --- here -----------------------------------------------------------------------------------------


def here(check: ConformanceCheck, session: Session, time_limit: float) -> Decided:
    """What a check finds here; only code that swallows every exception outlasts the limit."""
    findings: list[Finding] = []
    session.check = check.name
    session.deadline = time.monotonic() + time_limit
    try:
        with _alarm(_allowance(time_limit)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # One by one: what was found before an alarm stands.
            for finding in check.decide(session):
                findings.append(finding)
    except OutOfTime:
        text = (
            f"not decided within {time_limit:g} s: pass a longer --time-limit or --num-probes with "
            "batched probes"
        )
        findings.append(Finding("", Status.INCONCLUSIVE, text))
    except _Alarm:
        findings.append(Finding.of("", f"hangs: one call gave no answer within {time_limit:g} s"))
    except (Exception, SystemExit) as error:
        findings.append(Finding.of("", raised(error)))
    finally:
        session.deadline = float("inf")
    return _summary(findings)


# The worst comes first.
_RANKING = (Status.FAILED, Status.INCONCLUSIVE, Status.PASSED, Status.SKIPPED)


def _summary(findings: Sequence[Finding]) -> Decided:
    """The worst status, and the details that bear it out."""
    for status in _RANKING:
        of = [finding for finding in findings if finding.status == status]
        if of:
            details = dict.fromkeys(
                f"{f.problem}: {f.detail}" if f.problem else f.detail for f in of if f.detail
            )
            return status, "; ".join(details), tuple(findings)
    return Status.SKIPPED, "nothing to check", tuple(findings)


class _Alarm(BaseException):
    """Raised inside a call that does not come back; not an Exception, so that few swallow it."""


def _allowance(time_limit: float) -> float:
    """Seconds of work after which one call counts as hanging: checks stop by themselves before."""
    return 1.5 * time_limit + 1


def _wall(seconds: float) -> float:
    """Seconds on the clock that work of so many seconds may take on a busy machine."""
    return max(_SLOWEST * seconds, _LEAST_WALL)


def patience(time_limit: float) -> float:
    """Seconds after which a process that should have said that a call hangs is given up."""
    return _wall(_allowance(time_limit)) + 5


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises in what works for so many seconds of processor time, rests, or takes far too long."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(signal, "setitimer"):
        yield
        return

    start = time.monotonic()
    worked = time.process_time()

    def ring(*_: object) -> None:
        passed = time.monotonic() - start
        work = time.process_time() - worked
        rests = passed >= max(seconds, _FAIR_AFTER) and work < _RESTS * passed
        if work >= seconds or rests or passed >= _wall(seconds):
            raise _Alarm
        # Not before the work can be done; often enough to notice rest.
        signal.setitimer(signal.ITIMER_REAL, min(max(seconds - work, 0.1), _LONGEST))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, _LONGEST))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- in a forked process --------------------------------------------------------------------------


def in_child(check: ConformanceCheck, session: Session, time_limit: float) -> Decided:
    """The same in a forked process, which may hang or die."""

    def work(send: Callable[[object], None]) -> tuple[Decided, dict[str, str], set[Made]]:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        decided = here(check, session, time_limit)
        return decided, session.illegal, session.tests_made

    try:
        decided, session.illegal, session.tests_made = forked(work, patience(time_limit))
    except Lost as lost:
        return _summary([Finding.of("", str(lost))])
    return decided


def forked(
    work: Callable[[Callable[[Message], None]], Answer],
    patience: float,
    on_message: Callable[[Message], None] | None = None,
) -> Answer:
    """What `work(send)` returns in a forked process; what it sends goes to `on_message`.

    Raises
    ------
    Misuse
        `work` raised it.
    Lost
        The process died, or said nothing for `patience` seconds.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        with suppress(KeyboardInterrupt):  # it reaches our parent too, who says so
            try:
                answer = work(lambda message: sender.send(("message", message)))
                sender.send(("answer", answer))
            except Misuse as error:
                sender.send(("misuse", error))

    child = context.Process(target=run)
    with warnings.catch_warnings():
        # Of threads, which the child does without.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    sender.close()
    try:
        return cast(Answer, _answer(child, receiver, patience, on_message))
    except EOFError:
        child.join(5)
        raise Lost(f"kills its process ({_ending(child.exitcode)})") from None
    except KeyboardInterrupt:
        _interrupt(child)
        raise
    finally:
        child.kill()
        child.join()


def _answer(
    child: BaseProcess,
    receiver: Connection,
    patience: float,
    on_message: Callable[[Message], None] | None,
) -> object:
    """What a child answers; EOFError when it ends before."""
    while receiver.poll(min(patience, _LONGEST)):
        kind, content = receiver.recv()
        if kind == "answer":
            child.join(5)
            answer: object = content
            return answer
        if kind == "misuse":
            raise content
        if on_message:
            on_message(content)
    raise Lost(f"hangs: no answer within {patience:g} s, the process was killed")


def _interrupt(child: BaseProcess) -> None:
    """Lets it end children of its own first."""
    if child.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGINT)
    child.join(1)


def _ending(code: int | None) -> str:
    """How a process ended."""
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
