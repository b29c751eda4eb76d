"""Outcomes of checks, and what others read of them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from hesstheory.conformance.session import Finding
from hesstheory.evidence.checks import Status


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Parameters
    ----------
    check
        Name of the check.
    status
        Passed, failed, skipped, blocked, xfailed or inconclusive.
    detail
        What was seen.
    suspects
        Known mistakes that show the same pattern, likeliest first.
    findings
        What was found on each reference problem.
    seconds
        How long it took.
    reproduce
        A command that runs it again.
    stale
        It failed only in that a failure was expected and nothing failed.

    Examples
    --------
    >>> from hesstheory import CheckResult
    >>> from hesstheory.evidence import Status
    >>> result = CheckResult("check_signs", Status.FAILED, "hill: +6, exactly -288")
    >>> result.status == "failed"
    True
    """

    check: str
    status: Status
    detail: str
    suspects: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    reproduce: str = ""
    stale: bool = False

    @property
    def signature(self) -> frozenset[str]:
        """What failed where, and in which direction."""
        failed = (f for f in self.findings if f.status == Status.FAILED)
        return frozenset(f"{self.check}@{f.problem}{f.sign}" for f in failed)


def exit_code(results: Sequence[CheckResult]) -> int:
    """0 right, 1 wrong, 3 not decidable at this budget.

    Examples
    --------
    >>> from hesstheory.conformance import CheckResult, exit_code
    >>> from hesstheory.evidence import Status
    >>> exit_code([CheckResult("check_signs", Status.PASSED, "")])
    0
    """
    statuses = {result.status for result in results}
    if Status.FAILED in statuses:
        return 1
    if statuses & {Status.INCONCLUSIVE, Status.BLOCKED}:
        return 3
    return 0 if statuses & {Status.PASSED, Status.XFAILED} else 3


def to_json(estimator: str, results: Sequence[CheckResult]) -> dict[str, object]:
    """{"estimator", "passed", "checks": [{"check", "status", "detail", "suspects", …}]}."""
    return {
        "estimator": estimator,
        "passed": exit_code(results) == 0,
        "checks": [
            {
                "check": result.check,
                "status": result.status,
                "detail": result.detail,
                "suspects": list(result.suspects),
                "seconds": round(result.seconds, 3),
                "reproduce": result.reproduce,
            }
            for result in results
        ],
    }


# What JUnit counts as a failure, and as skipped.
_FAILURES = (Status.FAILED, Status.INCONCLUSIVE)
_SKIPS = (Status.SKIPPED, Status.BLOCKED, Status.XFAILED)


def to_junit(estimator: str, results: Sequence[CheckResult]) -> str:
    """A JUnit XML report: one test case per check."""
    counts = {
        "tests": len(results),
        "errors": 0,
        "failures": sum(result.status in _FAILURES for result in results),
        "skipped": sum(result.status in _SKIPS for result in results),
    }
    document = ET.Element("testsuites")
    attributes = {
        "name": f"hesstheory check {estimator}",
        "time": f"{sum(result.seconds for result in results):.3f}",
        **{name: str(count) for name, count in counts.items()},
    }
    suite = ET.SubElement(document, "testsuite", attributes)
    for result in results:
        _add_case(suite, estimator, result)
    return ET.tostring(document, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ET.Element, estimator: str, result: CheckResult) -> None:
    """One test case."""
    case = ET.SubElement(
        suite, "testcase", classname=estimator, name=result.check, time=f"{result.seconds:.3f}"
    )
    if result.status in _FAILURES:
        suspects = [f"looks like {name}" for name in result.suspects]
        text = "\n".join([result.detail, *suspects, result.reproduce])
        message = _xml_safe(result.detail)
        ET.SubElement(case, "failure", message=message, type=result.status).text = _xml_safe(text)
    elif result.status != Status.PASSED:
        ET.SubElement(case, "skipped", message=_xml_safe(f"{result.status}: {result.detail}"))


def _xml_safe(text: str) -> str:
    """The text without the control characters that XML forbids."""
    # Space is the first character that is none.
    return "".join(c if c in "\t\n" or c >= " " else "?" for c in text)
