"""Runs the checks on one estimator and says what they found, with the mistakes that look alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from hesstheory.conformance.checks import CHECKS
from hesstheory.conformance.contract import Estimator, as_estimator
from hesstheory.conformance.expectations import read_expected, with_expectation
from hesstheory.conformance.isolation import CAN_FORK, Lost, forked, here, in_child, patience
from hesstheory.conformance.named import load
from hesstheory.conformance.registry import ConformanceCheck, budget
from hesstheory.conformance.results import CheckResult
from hesstheory.conformance.selection import belongs, chosen
from hesstheory.conformance.session import Session
from hesstheory.conformance.settings import TIME_LIMIT, Settings
from hesstheory.conformance.snapshots import global_state, restore
from hesstheory.conformance.suspects import suspects, with_suspects
from hesstheory.estimators.probes import Probe
from hesstheory.evidence.checks import Status

OnResult = Callable[[CheckResult], None]

# What a child has, beyond the limit of a check, to import the estimator: seconds.
_TO_IMPORT = 60


def check_estimator(
    estimator: Estimator | str,
    profile: str = "ci",
    *,
    num_probes: int = 32,
    seed: int = 0,
    expected_failed_checks: Mapping[str, str] | None = None,
    checks: Sequence[str] | None = None,
    probe: Probe | None = None,
    time_limit: float = TIME_LIMIT,
    isolate: bool = False,
    on_result: OnResult | None = None,
) -> list[CheckResult]:
    """Checks a trace estimator: is it right, and if not, which mistake does it look like?

    The nominal level of a whole call is 1e-6. It rests on the laws of means of runs, see
    `hesstheory.conformance.runs`.

    Parameters
    ----------
    estimator
        Called as `estimator(problem, *, num_probes, generator)`. It returns an `Estimate`,
        {block: trace}, {block: (trace, stderr)} or the full trace. Or its name,
        `package.module:name`; a class is built without arguments.
    profile
        "smoke" (seconds, wide margins, no spread), "ci" or "full".
    num_probes
        Probes of a call.
    seed
        Seed of all random streams.
    expected_failed_checks
        Reasons of failures that are expected, by check.
    checks
        Only these, with their prerequisites; `check_` may be left out.
    probe
        Declares the distribution of the probes, as an attribute `variance_law` declares a law.
    time_limit
        Seconds per check.
    isolate
        Whether each check runs in a child process that may hang or crash.
    on_result
        Called with each result as it is decided, before suspects and expectations.

    Returns
    -------
    list of CheckResult
        In the order of the checks.

    Raises
    ------
    Misuse
        The suite cannot start: the message names the cure.

    Examples
    --------
    >>> from hesstheory import LayerwiseTrace, check_estimator
    >>> results = check_estimator(LayerwiseTrace(), "smoke", checks=["same_state_same_answer"])
    >>> [str(result.status) for result in results]
    ['passed', 'passed']
    """
    names = chosen(checks, profile)
    settings = Settings(profile, num_probes, seed, probe, time_limit, isolate)
    course = Course(estimator, settings, expected_failed_checks)
    for name in names:
        result = course.decided(name)
        if on_result:
            on_result(result)
    return [course.result(name) for name in names]


def check_apart(
    estimator: str,
    profile: str = "ci",
    *,
    num_probes: int = 32,
    seed: int = 0,
    expected_failed_checks: Mapping[str, str] | None = None,
    checks: Sequence[str] | None = None,
    probe: Probe | None = None,
    time_limit: float = TIME_LIMIT,
    isolate: bool = False,
    on_result: OnResult | None = None,
) -> list[CheckResult]:
    """`check_estimator` in a forked process.

    What ends it, or swallows what would stop it, must not end or stop ours. The checks after such a
    one are blocked. Where the platform cannot fork, all runs here.
    """
    names = chosen(checks, profile)
    settings = Settings(profile, num_probes, seed, probe, time_limit, isolate)
    expected = read_expected(expected_failed_checks)
    done: list[CheckResult] = []

    def work(send: OnResult) -> list[CheckResult]:
        course = Course(estimator, settings, expected)
        for name in names:
            send(course.decided(name))
        return [course.result(name) for name in names]

    def decided(result: CheckResult) -> None:
        done.append(result)
        if on_result:
            on_result(result)

    if not CAN_FORK:
        return work(decided)
    try:
        return forked(work, patience(settings.time_limit) + _TO_IMPORT, decided)
    except Lost as lost:
        for result in _after_loss(names[len(done) :], str(lost), estimator, settings):
            decided(result)
    return [with_expectation(result, expected, settings.profile) for result in done]


def _after_loss(
    rest: Sequence[str], lost: str, estimator: str, settings: Settings
) -> Iterator[CheckResult]:
    """The check that ended its process has failed, those after it are blocked."""
    command = replace(settings, isolate=True).command(estimator)
    for fatal in rest[:1]:
        reproduce = f"{command} --check {fatal}"
        yield CheckResult(fatal, Status.FAILED, lost, reproduce=reproduce)
    for name in rest[1:]:
        text = f"{rest[0]} ended the process: --isolate goes on"
        yield CheckResult(name, Status.BLOCKED, text)


class Course:
    """The checks of one estimator, each run when it is asked for, its prerequisites first.

    Runs are shared between the checks.
    """

    def __init__(
        self,
        estimator: Estimator | str,
        settings: Settings | None = None,
        expected: Mapping[str, str] | None = None,
    ) -> None:
        subject = load(estimator) if isinstance(estimator, str) else as_estimator(estimator)
        self.settings = settings or Settings()
        self.command = self.settings.command(estimator)
        self.session = Session(
            subject,
            budget().alpha,
            self.settings.profile,
            self.settings.num_probes,
            self.settings.seed,
            self.settings.probe,
        )
        self.expected = read_expected(expected)
        self.done: dict[str, CheckResult] = {}

    def decided(self, name: str) -> CheckResult:
        """The outcome as it is, whatever was expected."""
        if name not in self.done:
            for need in CHECKS[name].needs:
                self.decided(need)
            self.done[name] = replace(self._decide(CHECKS[name]), reproduce=self._reproducing(name))
        return self.done[name]

    def result(self, name: str) -> CheckResult:
        """The outcome with suspects, by all that was decided so far, and with what was expected."""
        self.decided(name)
        ranked = suspects({line for result in self.done.values() for line in result.signature})
        result = with_suspects(self.done[name], ranked)
        return with_expectation(result, self.expected, self.settings.profile)

    def _reproducing(self, name: str) -> str:
        """What runs a check again."""
        if self.command:
            return f"{self.command} --check {name}"
        settings = self.settings
        return (
            "in Python, for the command line cannot name it: "
            f"check_estimator(…, {settings.profile!r}, num_probes={settings.num_probes}, "
            f"seed={settings.seed}, checks=[{name!r}])"
        )

    def _decide(self, check: ConformanceCheck) -> CheckResult:
        """Runs a check, if it can be asked."""
        if not belongs(check.name, self.settings.profile):
            text = f"belongs to the {check.profile} profile"
            return CheckResult(check.name, Status.SKIPPED, text)
        if blocked := self._blocked(check):
            return CheckResult(check.name, Status.BLOCKED, blocked)
        start = time.monotonic()
        run = in_child if self.settings.isolate else here
        self.session.refresh()
        with _settings_restored():
            status, detail, findings = run(check, self.session, self.settings.time_limit)
        self.session.hung |= any(finding.detail.startswith("hangs") for finding in findings)
        return CheckResult(check.name, status, detail, (), findings, time.monotonic() - start)

    def _blocked(self, check: ConformanceCheck) -> str:
        """What keeps a check from being asked, or nothing."""
        if self.session.hung:
            return "an earlier call gave no answer"
        if check.problems and not self.session.legal(*check.problems):
            return f"check_answers_are_legal failed on {', '.join(check.problems)}"
        bad = (Status.FAILED, Status.BLOCKED, Status.INCONCLUSIVE)
        for need in check.needs:
            # An answer is asked of the problems that have legal ones, whatever the others do.
            if need != "check_answers_are_legal" and self.done[need].status in bad:
                return f"{need} {self.done[need].status}"
        return ""


@contextmanager
def _settings_restored() -> Iterator[None]:
    """Gives back the settings of the process that a check may find changed."""
    before = global_state()
    try:
        yield
    finally:
        restore(before)
