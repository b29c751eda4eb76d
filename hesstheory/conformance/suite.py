"""Runs the checks on one estimator and says what they found, with the mistakes that look alike."""

from __future__ import annotations

import json
import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hesstheory.conformance.checks import CHECKS
from hesstheory.conformance.contract import Estimator, Misuse, as_estimator
from hesstheory.conformance.isolation import CAN_FORK, Lost, forked, here, in_child, patience
from hesstheory.conformance.named import load
from hesstheory.conformance.registry import ConformanceCheck
from hesstheory.conformance.session import (
    BLOCKED,
    FAILED,
    INCONCLUSIVE,
    PASSED,
    SKIPPED,
    Finding,
    Session,
)
from hesstheory.conformance.snapshots import global_state, restore
from hesstheory.conformance.subjects.peers import PEERS, distribution_of, installed

XFAILED = "xfailed"
PROFILES = ("smoke", "ci", "full")
SIGNATURES = "signatures.json"
TIME_LIMIT = 300.0  # seconds per check


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check: passed, failed, skipped, blocked, xfailed or inconclusive.

    `suspects` are the known mistakes that show the same pattern, likeliest first; `reproduce` is a command; `stale` is
    one that failed only in that a failure was expected and nothing failed.
    """

    check: str
    status: str
    detail: str
    suspects: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    reproduce: str = ""
    stale: bool = False

    @property
    def signature(self) -> frozenset[str]:
        """What failed where, and in which direction."""
        return frozenset(
            f"{self.check}@{f.problem}{f.sign}" for f in self.findings if f.status == FAILED
        )


def check_estimator(
    estimator: Estimator | str,
    profile: str = "ci",
    *,
    num_probes: int = 32,
    seed: int = 0,
    expected_failed_checks: Mapping[str, str] | None = None,
    checks: Sequence[str] | None = None,
    probe: Any = None,
    time_limit: float = TIME_LIMIT,
    isolate: bool = False,
    on_result: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Checks a trace estimator: is it right, and if not, which mistake does it look like?

    `estimator(problem, *, num_probes, generator)` returns an `Estimate`, {block: trace}, {block: (trace, stderr)} or
    the full trace; or give its name, `package.module:name`. `probe` declares its distribution, as an attribute does.
    `time_limit` is in seconds per check; `isolate` runs each check in a child process that may hang or crash.
    The nominal level of a whole call is 1e-6: it rests on the laws of means of runs (see `runs`). Raises `Misuse`.
    """
    chosen = _chosen(checks, profile)
    course = Course(
        estimator, profile=profile, num_probes=num_probes, seed=seed, probe=probe, expected=expected_failed_checks,
        time_limit=time_limit, isolate=isolate,
    )  # fmt: skip
    for name in chosen:
        result = course.decided(name)
        if on_result:
            on_result(result)
    return [course.result(name) for name in chosen]


def check_apart(
    estimator: str,
    profile: str = "ci",
    *,
    checks: Sequence[str] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    time_limit: float = TIME_LIMIT,
    on_result: Callable[[CheckResult], None] | None = None,
    **options: Any,
) -> list[CheckResult]:
    """`check_estimator` in a forked process: what ends it, or swallows what would stop it, must not end or stop ours.

    The checks after such a one are blocked. Where the platform cannot fork, all runs here.
    """
    chosen, expected, done = (
        _chosen(checks, profile),
        read_expected(expected_failed_checks),
        list[CheckResult](),
    )

    def work(send: Callable[[CheckResult], None]) -> list[CheckResult]:
        return check_estimator(
            estimator, profile, checks=checks, expected_failed_checks=expected, time_limit=time_limit, on_result=send,
            **options,
        )  # fmt: skip

    def decided(result: CheckResult) -> None:
        done.append(result)
        if on_result:
            on_result(result)

    if not CAN_FORK:
        return work(decided)
    try:
        return list(forked(work, patience(time_limit) + 60, decided))
    except Lost as lost:
        rest, options = chosen[len(done) :], {**options, "isolate": True}
        command = _command(estimator, profile=profile, time_limit=time_limit, **options)
        for fatal in rest[:1]:
            decided(CheckResult(fatal, FAILED, str(lost), reproduce=f"{command} --check {fatal}"))
        for name in rest[1:]:
            decided(CheckResult(name, BLOCKED, f"{rest[0]} ended the process: --isolate goes on"))
    return [_with_expectation(result, expected, profile) for result in done]


class Course:
    """The checks of one estimator, each run when it is asked for, its prerequisites first; runs are shared."""

    def __init__(
        self, estimator: Estimator | str, *, profile: str = "ci", num_probes: int = 32, seed: int = 0,
        probe: Any = None, expected: Mapping[str, str] | None = None, time_limit: float = TIME_LIMIT,
        isolate: bool = False,
    ) -> None:  # fmt: skip
        subject = load(estimator) if isinstance(estimator, str) else as_estimator(estimator)
        if not isinstance(num_probes, int) or num_probes < 2:
            raise Misuse(
                f"num_probes is {num_probes!r}: pass a whole number of at least 2, better 32 or more"
            )
        if profile not in PROFILES:
            raise Misuse(f"profile is {profile!r}: choose from {', '.join(PROFILES)}")
        if isolate and not CAN_FORK:
            raise Misuse("this platform cannot fork: leave isolate out")
        self.command = _command(
            estimator, profile=profile, num_probes=num_probes, seed=seed, probe=probe, time_limit=time_limit,
            isolate=isolate,
        )  # fmt: skip
        self.session = Session(subject, profile, num_probes, seed, probe)
        self.expected = read_expected(expected)
        self.time_limit, self.isolate = time_limit, isolate
        self.done: dict[str, CheckResult] = {}

    def decided(self, name: str) -> CheckResult:
        """The outcome as it is, whatever was expected."""
        if name not in self.done:
            for need in CHECKS[name].needs:
                self.decided(need)
            self.done[name] = replace(self._decide(CHECKS[name]), reproduce=self._reproducing(name))
        return self.done[name]

    def _reproducing(self, name: str) -> str:
        if self.command:
            return f"{self.command} --check {name}"
        session = self.session
        return (
            f"in Python, for the command line cannot name it: check_estimator(…, {session.profile!r}, "
            f"num_probes={session.num_probes}, seed={session.seed}, checks=[{name!r}])"
        )

    def result(self, name: str) -> CheckResult:
        """The outcome with suspects, by all that was decided so far, and with what was expected."""
        self.decided(name)
        ranked = suspects({line for result in self.done.values() for line in result.signature})
        return _with_expectation(
            _with_suspects(self.done[name], ranked), self.expected, self.session.profile
        )

    def _decide(self, check: ConformanceCheck) -> CheckResult:
        if PROFILES.index(check.profile) > PROFILES.index(self.session.profile):
            return CheckResult(check.name, SKIPPED, f"belongs to the {check.profile} profile")
        start = time.monotonic()
        if blocked := _blocked(check, self.session, self.done):
            return CheckResult(check.name, BLOCKED, blocked)
        run = in_child if self.isolate else here
        self.session.refresh()
        with _settings_restored():
            status, detail, findings = run(check, self.session, self.time_limit)
        self.session.hung |= any(finding.detail.startswith("hangs") for finding in findings)
        return CheckResult(check.name, status, detail, (), findings, time.monotonic() - start)


def checks_of(profile: str) -> list[str]:
    """Names of the checks of a profile."""
    return [c.name for c in CHECKS.values() if PROFILES.index(c.profile) <= PROFILES.index(profile)]


def exit_code(results: Sequence[CheckResult]) -> int:
    """0 right, 1 wrong, 3 not decidable at this budget."""
    statuses = {result.status for result in results}
    if FAILED in statuses:
        return 1
    return 3 if statuses & {INCONCLUSIVE, BLOCKED} or not statuses & {PASSED, XFAILED} else 0


def _command(
    estimator: Any, *, profile: str, num_probes: int = 32, seed: int = 0, probe: Any = None,
    time_limit: float = TIME_LIMIT, isolate: bool = False,
) -> str:  # fmt: skip
    """The command that checks the same, or nothing where there is none."""
    if not (words := _words(estimator)):
        return ""
    options = ["--profile", profile, "--num-probes", str(num_probes), "--seed", str(seed)]
    options += ["--probe", type(probe).__name__] if probe is not None else []
    options += ["--time-limit", f"{time_limit:g}"] if time_limit != TIME_LIMIT else []
    return shlex.join(
        ["hesstheory", "check", *words, *options, *(["--isolate"] if isolate else [])]
    )


def _words(estimator: Any) -> list[str]:
    """What names an estimator on the command line; nothing for what is local, bound or configured."""
    if isinstance(estimator, str):
        return [estimator]
    if peers := [name for name, peer in PEERS.items() if peer is estimator]:
        return ["peers", "--peer", peers[0]]
    module: Any = sys.modules.get(getattr(estimator, "__module__", None) or "")
    if not hasattr(module, "__file__"):
        return []
    where = module.__file__ if module.__name__ == "__main__" else module.__name__
    return [f"{where}:{name}" for name, value in vars(module).items() if value is estimator][:1]


def full_name(check: str) -> str:
    """The name of a check, whose prefix `check_` may be left out."""
    return check if check in CHECKS else f"check_{check}"


def _chosen(names: Sequence[str] | None, profile: str) -> list[str]:
    """The named checks with their prerequisites, or all of the profile, in their order."""
    if profile not in PROFILES:
        raise Misuse(f"profile is {profile!r}: choose from {', '.join(PROFILES)}")
    if unknown := [name for name in names or () if full_name(name) not in CHECKS]:
        raise Misuse(f"no check {unknown[0]!r}; the checks are {', '.join(CHECKS)}")
    wanted: set[str] = set()

    def want(name: str) -> None:
        wanted.add(name)
        for need in CHECKS[name].needs:
            want(need)

    for name in names or checks_of(profile):
        want(full_name(name))
    return [name for name in CHECKS if name in wanted]


# --- one check ------------------------------------------------------------------------------------------------------


def _blocked(check: ConformanceCheck, session: Session, done: Mapping[str, CheckResult]) -> str:
    if session.hung:
        return "an earlier call gave no answer"
    if check.problems and not session.legal(*check.problems):
        return f"check_answers_are_legal failed on {', '.join(check.problems)}"
    for need in check.needs:
        if need != "check_answers_are_legal" and done[need].status in (
            FAILED,
            BLOCKED,
            INCONCLUSIVE,
        ):
            return f"{need} {done[need].status}"
    return ""


@contextmanager
def _settings_restored() -> Iterator[None]:
    """Gives back the settings of the process that a check may find changed."""
    before = global_state()
    try:
        yield
    finally:
        restore(before)


# --- expected failures ----------------------------------------------------------------------------------------------


def read_xfails(path: Path, today: date | None = None) -> dict[str, str]:
    """Expected failures of a TOML file: check = "reason", or [check] with `reason` and optionally `expires` (a date).

    Raises Misuse for a file that does not parse, an unknown check, a missing reason and an entry that has expired.
    """
    entries = _toml(path)
    return _entries(entries.get("expected_failed_checks", entries), path, today)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Misuse(f"--xfails {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misuse(f"--xfails {path} is no TOML: {error}") from error


def _entries(entries: Mapping[str, Any], path: Path, today: date | None = None) -> dict[str, str]:
    """Checks with their reasons; an expectation that is no table and no text has none."""
    found = {}
    for check, entry in entries.items():
        table = entry if isinstance(entry, dict) else {"reason": entry}
        expires = table.get("expires")
        if isinstance(expires, str):
            try:
                expires = date.fromisoformat(expires)
            except ValueError as error:
                raise Misuse(
                    f"--xfails {path}: {check} expires on {expires!r}, which is no date: 2030-12-31"
                ) from error
        if isinstance(expires, datetime):
            expires = expires.date()
        if expires is not None and expires < (today or date.today()):
            raise Misuse(
                f"--xfails {path}: the entry of {check} expired on {expires}: mend the estimator, or renew it"
            )
        found[check] = table.get("reason")
    return read_expected(found, f"--xfails {path}: ")


def read_expected(
    entries: Mapping[str, Any] | None, where: str = "expected_failed_checks: "
) -> dict[str, str]:
    """Expected failures with their reasons; raises Misuse for an unknown check or a missing reason."""
    found: dict[str, str] = {}
    for check, reason in (entries or {}).items():
        if full_name(check) not in CHECKS:
            raise Misuse(f"{where}no check is named {check!r}; the checks are {', '.join(CHECKS)}")
        if not isinstance(reason, str) or not reason.strip():
            raise Misuse(f"{where}{check} has no reason: say why the failure is expected")
        if full_name(check) in found:
            raise Misuse(
                f"{where}{full_name(check)} is named twice, with and without `check_`: remove one"
            )
        found[full_name(check)] = reason
    return found


def _with_expectation(
    result: CheckResult, expected: Mapping[str, str], profile: str
) -> CheckResult:
    reason = expected.get(result.check)
    if reason is None:
        return result
    if result.status == FAILED:
        return replace(result, status=XFAILED, detail=f"expected ({reason}): {result.detail}")
    if result.status == PASSED:
        text = f"passes, although it is expected to fail ({reason}): remove the entry"
        return replace(result, status=FAILED, detail=text, stale=True)
    if result.status == SKIPPED and result.check in checks_of(profile):
        text = f"skipped ({result.detail}), so that no failure can be expected: remove the entry"
        return replace(result, status=FAILED, detail=text, stale=True)
    return replace(result, detail=f"{result.detail}; expected to fail ({reason})")


# --- suspects -------------------------------------------------------------------------------------------------------


@cache
def signatures() -> Mapping[str, frozenset[str]]:
    """What each known mistake makes fail, and in which direction, in the ci profile."""
    path = files("hesstheory.conformance") / SIGNATURES
    if not path.is_file():
        return {}
    return {
        name: frozenset(lines)
        for name, lines in json.loads(path.read_text(encoding="utf-8")).items()
    }


def suspects(found: set[str], most: int = 3) -> list[str]:
    """Known mistakes by the likeness of their failures to these: shared lines over all lines (Jaccard 1901)."""
    scores = {
        name: len(found & known) / len(found | known)
        for name, known in signatures().items()
        if found & known
    }
    return sorted(scores, key=lambda name: (-scores[name], name))[:most]


def _with_suspects(result: CheckResult, ranked: Sequence[str]) -> CheckResult:
    if result.status != FAILED:
        return result
    alike = [
        name
        for name in ranked
        if any(line.startswith(f"{result.check}@") for line in signatures()[name])
    ]
    return replace(result, suspects=tuple(alike))


# --- what others read -----------------------------------------------------------------------------------------------


def to_json(estimator: str, results: Sequence[CheckResult]) -> dict[str, Any]:
    """{"estimator", "passed", "checks": [{"check", "status", "detail", "suspects"}]}."""
    return {
        "estimator": estimator,
        "passed": exit_code(results) == 0,
        "checks": [
            {"check": r.check, "status": r.status, "detail": r.detail, "suspects": list(r.suspects),
             "seconds": round(r.seconds, 3), "reproduce": r.reproduce}
            for r in results
        ],
    }  # fmt: skip


def to_junit(estimator: str, results: Sequence[CheckResult]) -> str:
    """A JUnit XML report: one test case per check."""
    import xml.etree.ElementTree as ET

    failures = sum(r.status in (FAILED, INCONCLUSIVE) for r in results)
    skipped = sum(r.status in (SKIPPED, BLOCKED, XFAILED) for r in results)
    suite = ET.Element("testsuite", name=f"hesstheory check {estimator}", tests=str(len(results)), errors="0",
                       failures=str(failures), skipped=str(skipped),
                       time=f"{sum(r.seconds for r in results):.3f}")  # fmt: skip
    for r in results:
        case = ET.SubElement(
            suite, "testcase", classname=estimator, name=r.check, time=f"{r.seconds:.3f}"
        )
        if r.status in (FAILED, INCONCLUSIVE):
            text = "\n".join(
                [r.detail, *(f"looks like {name}" for name in r.suspects), r.reproduce]
            )
            ET.SubElement(
                case, "failure", message=_xml_safe(r.detail), type=r.status
            ).text = _xml_safe(text)
        elif r.status != PASSED:
            ET.SubElement(case, "skipped", message=_xml_safe(f"{r.status}: {r.detail}"))
    document = ET.Element("testsuites")
    document.append(suite)
    return ET.tostring(document, encoding="unicode", xml_declaration=True) + "\n"


def _xml_safe(text: str) -> str:
    """The text without the control characters that XML forbids."""
    return "".join(c if c in "\t\n" or ord(c) >= 32 else "?" for c in text)


def scoreboard(
    profile: str = "ci", *, names: Sequence[str] | None = None, num_probes: int = 32, seed: int = 0,
    time_limit: float = TIME_LIMIT, checks: Sequence[str] | None = None, xfails: Path | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> dict[str, list[CheckResult]]:  # fmt: skip
    """Peer libraries that are installed, checked; `xfails` is a TOML file with a table of reasons for each."""
    if unknown := [name for name in names or () if name not in PEERS]:
        raise Misuse(f"no peer {unknown[0]!r}; the peers are {', '.join(PEERS)}")
    present, expected = installed(), _tables(xfails, PEERS) if xfails else {}
    if missing := [name for name in names or () if distribution_of(name) not in present]:
        raise Misuse(f"{missing[0]} is not installed: pip install -c constraints.txt -e '.[peers]'")
    return {
        name: check_estimator(
            PEERS[name], profile, num_probes=num_probes, seed=seed, checks=checks, time_limit=time_limit,
            expected_failed_checks=expected.get(name), on_result=on_result,
        )
        for name in names or PEERS
        if distribution_of(name) in present
    }  # fmt: skip


def _tables(path: Path, peers: Iterable[str]) -> dict[str, dict[str, str]]:
    """Expected failures of each peer, from `[peer]` tables."""
    tables = _toml(path)
    if unknown := [name for name in tables if name not in peers]:
        raise Misuse(f"--xfails {path}: no peer {unknown[0]!r}; the peers are {', '.join(peers)}")
    return {name: _entries(table, path) for name, table in tables.items()}
