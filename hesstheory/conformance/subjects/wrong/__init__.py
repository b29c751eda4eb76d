"""Would the conformance suite notice? Wrong estimators as a user would bring them, each named by its sin.

`WRONG` holds them by name. Each is called as `estimator(problem, *, num_probes, generator)`, some also take `probes=`,
and is the right estimator with one step replaced. The first line of a docstring is the sin.
"""

from hesstheory.conformance.subjects.wrong import mistakes, oversights
from hesstheory.conformance.subjects.wrong.steps import WRONG, BlackBox

__all__ = ["WRONG", "mistakes", "oversights"]


def __getattr__(name: str) -> BlackBox:
    """Every mutant can be named as `hesstheory.conformance.subjects.wrong:name`."""
    if name in WRONG:
        return WRONG[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
