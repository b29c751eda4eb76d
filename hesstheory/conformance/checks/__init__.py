"""The checks, by what they look at; imported in the order in which they run."""

# isort: off
from hesstheory.conformance.checks import state as state
from hesstheory.conformance.checks import identities as identities
from hesstheory.conformance.checks import mean as mean
from hesstheory.conformance.checks import spread as spread
from hesstheory.conformance.checks import draws as draws

# isort: on
from hesstheory.conformance.registry import CHECKS

__all__ = ["CHECKS"]
