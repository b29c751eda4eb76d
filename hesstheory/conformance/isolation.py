"""Where does a check run? Here, under a time limit; or in a forked process, which may hang or die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from hesstheory.conformance.contract import Misuse, raised
from hesstheory.conformance.registry import ConformanceCheck
from hesstheory.conformance.session import (
    FAILED,
    INCONCLUSIVE,
    PASSED,
    SKIPPED,
    Finding,
    OutOfTime,
    Session,
)

Decided = tuple[str, str, tuple[Finding, ...]]

CAN_FORK = "fork" in multiprocessing.get_all_start_methods()

_LONGEST = 1e7  # seconds that an alarm can be set to

_SLOWEST = 4  # times as long as alone: what a busy machine may make of a call

_RESTS = 0.05  # of the time: a process that works less waits for something


class Lost(Exception):
    """A process ended, or was silent for too long, before its answer: the message says how."""


# --- here -----------------------------------------------------------------------------------------------------------
def here(check: ConformanceCheck, session: Session, time_limit: float) -> Decided:
    """What a check finds in this process; only code that swallows every exception outlasts the time limit."""
    findings: list[Finding] = []
    session.deadline = time.monotonic() + time_limit
    try:
        with _alarm(_allowance(time_limit)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for finding in check.decide(session):
                findings.append(finding)
    except OutOfTime:
        text = f"not decided within {time_limit:g} s: pass a longer --time-limit or --num-probes with batched probes"
        findings.append(Finding("", INCONCLUSIVE, text))
    except _Alarm:
        findings.append(
            Finding("", FAILED, f"hangs: one call gave no answer within {time_limit:g} s")
        )
    except (Exception, SystemExit) as error:
        findings.append(Finding("", FAILED, raised(error)))
    finally:
        session.deadline = float("inf")
    return _summary(findings)


def _summary(findings: Sequence[Finding]) -> Decided:
    """The worst status, and the details that bear it out."""
    for status in (FAILED, INCONCLUSIVE, PASSED, SKIPPED):
        of = [finding for finding in findings if finding.status == status]
        if of:
            details = dict.fromkeys(
                f"{f.problem}: {f.detail}" if f.problem else f.detail for f in of if f.detail
            )
            return status, "; ".join(details), tuple(findings)
    return SKIPPED, "nothing to check", tuple(findings)


class _Alarm(BaseException):
    """Raised inside a call that does not come back; not an Exception, so that few estimators swallow it."""


def _allowance(time_limit: float) -> float:
    """Seconds of work after which one call counts as hanging: checks stop by themselves between calls before that."""
    return 1.5 * time_limit + 1


def patience(time_limit: float) -> float:
    """Seconds after which a process that should have said that one of its calls hangs is given up."""
    return _SLOWEST * _allowance(time_limit) + 5


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises in what works for so many seconds, or rests; on a busy machine work takes up to four times as long."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    start, worked = time.monotonic(), time.process_time()

    def ring(*_: Any) -> None:
        passed, work = time.monotonic() - start, time.process_time() - worked
        if _RESTS * passed < work < seconds and passed < _SLOWEST * seconds:
            signal.setitimer(signal.ITIMER_REAL, max(seconds - work, 0.1))
        else:
            raise _Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, _LONGEST))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- in a forked process --------------------------------------------------------------------------------------------
def in_child(check: ConformanceCheck, session: Session, time_limit: float) -> Decided:
    """The same in a forked process, which may hang or die."""

    def work(send: Callable[[Any], None]) -> tuple[Decided, dict[str, str]]:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        return here(check, session, time_limit), session.illegal

    try:
        decided, session.illegal = forked(work, patience(time_limit))
    except Lost as lost:
        return _summary([Finding("", FAILED, str(lost))])
    return decided  # type: ignore[no-any-return]


def forked(
    work: Callable[[Callable[[Any], None]], Any],
    patience: float,
    on_message: Callable[[Any], None] | None = None,
) -> Any:
    """What `work(send)` returns in a forked process; what it sends goes to `on_message`.

    Raises the `Misuse` that it raises, and `Lost` when it dies or says nothing for `patience` seconds.
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
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of threads, which the child does without
        child.start()
    sender.close()
    try:
        while receiver.poll(min(patience, _LONGEST)):
            kind, content = receiver.recv()
            if kind == "answer":
                child.join(5)
                return content
            if kind == "misuse":
                raise content
            if on_message:
                on_message(content)
        raise Lost(f"hangs: no answer within {patience:g} s, the process was killed")
    except EOFError:
        child.join(5)
        raise Lost(f"kills its process ({_ending(child.exitcode)})") from None
    except KeyboardInterrupt:
        _interrupt(child)
        raise
    finally:
        child.kill()
        child.join()


def _interrupt(child: BaseProcess) -> None:
    """Lets it end children of its own first."""
    if child.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGINT)
    child.join(1)


def _ending(code: int | None) -> str:
    return (
        f"signal {signal.Signals(-code).name}"
        if code is not None and code < 0
        else f"exit code {code}"
    )
