"""Is the user's estimator right?

Reference problems with certified answers, and checks with known error rates.
"""

from hesstheory.conformance.checks import CHECKS
from hesstheory.conformance.contract import Answer, IllegalAnswer, Misuse
from hesstheory.conformance.expectations import read_xfails
from hesstheory.conformance.named import load
from hesstheory.conformance.problems import Reference, references
from hesstheory.conformance.results import CheckResult, exit_code, to_json, to_junit
from hesstheory.conformance.scoreboard import scoreboard
from hesstheory.conformance.selection import full_name
from hesstheory.conformance.session import Finding
from hesstheory.conformance.settings import Settings
from hesstheory.conformance.suite import check_apart, check_estimator

__all__ = [
    "CHECKS",
    "Answer",
    "CheckResult",
    "Finding",
    "IllegalAnswer",
    "Misuse",
    "Reference",
    "Settings",
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
