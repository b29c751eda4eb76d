"""Exact traces of a network, whatever way leads to them."""

from __future__ import annotations

from collections.abc import Callable

from hesstheory.curvature.matrix import hessian
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

# Parameters up to which dense diagonal blocks are a plan: at 10,000 one block takes 800 MB in
# float64 and as many products as a long run of probes.
_SMALL = 10_000

# What `exact_traces` and `dense_traces` raise for a network, a loss or a dtype that they refuse.
REFUSALS = (ValueError, TypeError, RuntimeError)


def dense_traces(problem: Problem) -> Estimate:
    """Exact traces of any network from its dense diagonal blocks.

    It costs a product for every parameter: it is for small networks.
    """
    return Estimate.exact(hessian(problem).trace_by_block(), problem.num_params, "tr H")


def ways_without_probes(problem: Problem) -> list[Callable[[Problem], Estimate]]:
    """The exact ways that are worth a try, the cheapest first."""
    return [exact_traces, dense_traces] if problem.num_params <= _SMALL else [exact_traces]
