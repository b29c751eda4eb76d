"""Do they agree? Four kinds of check, strongest first: symbolic, exact, statistical, empirical."""

from hesstheory.evidence.budget import Budget
from hesstheory.evidence.checks import Check, Kind, Rows, Status, Verdict, empirical, holds, verdict
from hesstheory.evidence.exact import exact
from hesstheory.evidence.intervals import (
    Interval,
    clopper_pearson,
    degrees_of_freedom,
    mean_interval,
    satterthwaite,
    variance_ratio,
)
from hesstheory.evidence.sequential import SequentialTest, Tail, statistical
from hesstheory.evidence.symbolic import symbolic

__all__ = [
    "Budget",
    "Check",
    "Interval",
    "Kind",
    "Rows",
    "SequentialTest",
    "Status",
    "Tail",
    "Verdict",
    "clopper_pearson",
    "degrees_of_freedom",
    "empirical",
    "exact",
    "holds",
    "mean_interval",
    "satterthwaite",
    "statistical",
    "symbolic",
    "variance_ratio",
    "verdict",
]
