"""What is aimed at, on reports that are made up."""

from __future__ import annotations

import pytest

from hesstheory import bench
from hesstheory.bench.marks import peers_work


def ways(**work):
    kinds = {"exact_traces": "ours", "plain torch": "plain"}
    return {
        name: {
            "kind": kinds.get(name, "peer"), "work_to_1_percent": value, "once": value,
            "judged_on": "the total trace alone" if name == "PyHessian" else "every layer",
        }
        for name, value in work.items()
    }  # fmt: skip


def test_the_best_peer_answers_for_every_layer():
    found = {
        "ways": ways(exact_traces=5.0, **{"plain torch": 2000.0}, PyHessian=10.0, curvlinops=1000.0)
    }
    cost_of_exact, less_work = bench.marks({"mlp": found})
    assert cost_of_exact == {
        "mark": "mlp: gradients of exact_traces",
        "limit": 4.0,
        "measured": 5.0,
        "met": False,
    }
    assert "than by curvlinops" in less_work["mark"]
    assert (less_work["measured"], less_work["met"]) == (200.0, True)
    assert less_work["ratios"] == {"curvlinops": 200.0, "plain torch": 400.0}


def test_best_of_the_others_comes_first():
    work = peers_work({"ways": ways(exact_traces=1.0, PyHessian=2.0, b=30.0, a=20.0)})
    assert list(work.items()) == [("a", 20.0), ("b", 30.0)]


def dense(times_ours):
    return {"dense": {"ways": {"torch.func.hessian": {"times_ours": times_ours}}}}


@pytest.mark.parametrize(("times", "met"), [(4.0, [True]), (3.9, [False]), (None, [])])
def test_a_mark_that_could_not_be_measured_is_left_out(times, met):
    assert [mark["met"] for mark in bench.marks(dense(times))] == met
