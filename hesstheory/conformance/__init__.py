"""Is the user's estimator right? Reference problems with certified answers, and checks with known error rates."""

from hesstheory.conformance.checks import CHECKS
from hesstheory.conformance.contract import Answer, IllegalAnswer, Misuse
from hesstheory.conformance.named import load
from hesstheory.conformance.problems import Reference, references
from hesstheory.conformance.session import Finding
from hesstheory.conformance.suite import (
    CheckResult,
    check_apart,
    check_estimator,
    exit_code,
    full_name,
    read_xfails,
    scoreboard,
    to_json,
    to_junit,
)

__all__ = [
    "CHECKS",
    "Answer",
    "CheckResult",
    "Finding",
    "IllegalAnswer",
    "Misuse",
    "Reference",
    "check_apart",
    "check_estimator",
    "exit_code",
    "full_name",
    "load",
    "read_xfails",
    "references",
    "scoreboard",
    "to_json",
    "to_junit",
]
