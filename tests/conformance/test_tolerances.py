"""What the tolerances of the checks lie between: rounding below, the mistakes to be seen above."""

from __future__ import annotations

import pytest
import torch

from hesstheory.conformance.checks.identities import _ENUMERATED, _with_loss
from hesstheory.conformance.contract import ask
from hesstheory.conformance.measures import (
    ENUMERATED,
    EXACT,
    LOWER_PRECISION,
    ROUNDING,
    SAME,
    SAME_IN_FLOAT32,
    is_exact,
    relative_difference,
)
from hesstheory.conformance.problems import references
from hesstheory.conformance.subjects.right import RIGHT
from hesstheory.conformance.subjects.wrong import WRONG
from hesstheory.estimators.enumerations import hadamard_columns

# Importing torch.func compiles something the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

# A tolerance is this far from what it must let pass, and from what it must not.
ROOM = 5
SINGLE = "single_precision_inside"


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _moved_by_writing(estimator, name):
    """How far three times the loss is from three times the trace, at equal draws."""
    problem = references()[name].problem
    tripled = ask(estimator, _with_loss(problem, 3.0), 32, _generator()).values
    once = ask(estimator, problem, 32, _generator()).values
    return relative_difference(tripled, {block: 3 * value for block, value in once.items()})


@pytest.mark.parametrize("name", ["smooth_mlp", "coupled"])
@pytest.mark.parametrize(
    "right", ["layerwise", "forward_over_reverse", "signs_all_at_once", "block_separated", "exact"]
)
def test_ways_of_writing_differ_by_rounding(right, name):
    assert _moved_by_writing(RIGHT[right], name) < ROUNDING / ROOM < SAME / ROOM


def test_single_precision_inside_moves_an_answer():
    moved = _moved_by_writing(WRONG[SINGLE], "smooth_mlp")
    assert ROOM * SAME < moved < LOWER_PRECISION / ROOM


@pytest.mark.parametrize("num_probes", [12, 32, 1000])
@pytest.mark.parametrize("name", ["smooth_mlp", "coupled"])
def test_other_draws_are_other_answers(name, num_probes):
    problem = references()[name].problem
    answers = [ask(RIGHT["layerwise"], problem, num_probes, _generator(s)).values for s in (1, 2)]
    apart = relative_difference(*answers)
    assert apart > ROOM * max(LOWER_PRECISION, EXACT, ROUNDING)


def test_exact_answers_are_exact_in_any_precision():
    reference = references()["smooth_mlp"]
    for estimator in (RIGHT["exact"], WRONG["exact_in_single_precision"]):
        answer = ask(estimator, reference.problem, 4, _generator())
        assert relative_difference(answer.values, reference.traces) < EXACT / ROOM
        assert is_exact(answer, reference)
    assert not is_exact(ask(RIGHT["layerwise"], reference.problem, 4, _generator()), reference)


@pytest.mark.parametrize("name", _ENUMERATED)
def test_all_columns_give_the_traces_up_to_rounding(name):
    reference = references()[name]
    Z = hadamard_columns(reference.problem.num_params)
    limit = ENUMERATED * reference.problem.num_params**0.5
    gaps = {}
    for kind, estimator in (("right", RIGHT["layerwise"]), ("float32", WRONG[SINGLE])):
        values = ask(estimator, reference.problem, Z.shape[1], _generator(), Z).values
        gaps[kind] = max(abs(values[b] - t) for b, t in reference.traces.items()) / reference.size
    assert gaps["right"] < limit / ROOM
    # Springs are small multiples of powers of two, which float32 holds exactly.
    assert gaps["float32"] == 0 or gaps["float32"] > ROOM * limit


def test_answers_to_float32_problems_err_by_their_rounding():
    reference = references()["float32"]
    eps = torch.finfo(torch.float32).eps
    rounding = reference.problem.num_params**0.5 * eps
    assert 2 * rounding < SAME_IN_FLOAT32 < ROOM * rounding
    values = ask(RIGHT["exact"], reference.problem, 4, _generator()).values
    gaps = [abs(values[block] - trace) for block, trace in reference.traces.items()]
    assert max(gaps) / reference.size < SAME_IN_FLOAT32 / ROOM
