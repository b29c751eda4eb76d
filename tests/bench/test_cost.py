"""The arithmetic of costs, on costs that are made up."""

from __future__ import annotations

import statistics

import pandas as pd
import pytest

from hesstheory.bench import cost

RELATIVE = pd.Series({"first": 0.02, "last": 0.1})
SPREAD = cost.Spread(RELATIVE, "made up")


@pytest.mark.parametrize(
    ("gradients", "once", "per_probe"),
    [
        ((25.0, 85.0), 5.0, 2.0),
        ((20.0, 80.0), 0.0, 2.0),
        ((10.0, 80.0), 0.0, 2.0),
        ((30.0, 28.0), 0.0, 0.7),
    ],
    ids=["a line", "nothing paid once", "noise: less than nothing", "noise: falling"],
)
def test_cost_is_the_line_through_two_numbers_of_probes(gradients, once, per_probe):
    line = cost.Cost.from_two((10, 40), gradients)
    assert (line.once, line.per_probe) == pytest.approx((once, per_probe))


def test_probes_to_one_percent_by_layer():
    assert cost.probes_to(0.01, RELATIVE).to_dict() == {"first": 4, "last": 100}
    assert cost.probes_to(0.5, RELATIVE).to_dict() == {"first": 1, "last": 1}
    assert cost.probes_to(0.01, RELATIVE, group=10).to_dict() == {"first": 10, "last": 100}


def test_work_is_that_of_the_worst_layer_where_a_probe_serves_all():
    assert cost.work_to(0.01, cost.Cost(3.0, 2.0), SPREAD) == 3 + 2 * 100


def test_work_of_blocks_apart_is_the_sum_of_what_each_needs():
    once = pd.Series({"first": 3.0, "last": 1.0})
    per_probe = pd.Series({"first": 2.0, "last": 0.5})
    first, last = 3 + 2 * 4, 1 + 0.5 * 100
    assert cost.work_to(0.01, cost.CostByBlock(once, per_probe), SPREAD) == first + last


def test_the_frontier_starts_at_one_probe_and_meets_one_percent():
    rows = cost.frontier(lambda error: 1 / error, worst=2.0)
    errors = [row["error"] for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == 2.0
    assert 0.01 in errors
    assert errors[-1] == pytest.approx(cost.LEAST)
    assert cost.frontier(lambda error: 1.0, worst=1e-5) == [{"work": 1.0, "error": 1e-5}]


def test_rounds_alternate_and_medians_are_taken():
    asked = []
    noise = iter([0.0, 0.0, 0.0, 0.0, 100.0, 100.0, 100.0, 100.0, 1.0, 1.0, 1.0, 1.0])

    def clock(call):
        call()
        return asked[-1][1] + next(noise)

    calls = {way: lambda k, way=way: asked.append((way, k)) for way in ("a", "b")}
    found = cost.cost_in_rounds(clock, calls, (2, 10), repeats=3)
    assert asked == 3 * [("a", 2), ("a", 10), ("b", 2), ("b", 10)]
    assert found == {
        way: (statistics.median([2, 102, 3]), statistics.median([10, 110, 11])) for way in calls
    }
