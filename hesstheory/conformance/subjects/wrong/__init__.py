"""Would the suite notice? Wrong estimators as a user would bring them, named by their sin.

`WRONG` holds them by name. Each is called as `estimator(problem, *, num_probes, generator)`, some
also take `probes=`. Each is the right estimator with one step replaced. The first line of a
docstring is the sin.
"""

# The order of the imports is the order of the mutants in the kill matrix and its figure.
# isort: off
from hesstheory.conformance.subjects.wrong import draws as draws
from hesstheory.conformance.subjects.wrong import risks as risks
from hesstheory.conformance.subjects.wrong import parameters as parameters
from hesstheory.conformance.subjects.wrong import answers as answers
from hesstheory.conformance.subjects.wrong import effects as effects
from hesstheory.conformance.subjects.wrong import oversights as oversights

# isort: on
from hesstheory.conformance.subjects.wrong.steps import WRONG, BlackBox

__all__ = ["WRONG"]


def __getattr__(name: str) -> BlackBox:
    """Every mutant can be named as `hesstheory.conformance.subjects.wrong:name`."""
    if name in WRONG:
        return WRONG[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
