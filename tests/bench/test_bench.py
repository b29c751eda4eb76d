"""Guards of the benchmark: its arithmetic on made-up costs, its report, and that no library is missed or believed."""

from __future__ import annotations

import json
import mmap
import os
import statistics
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from hesstheory import Problem, bench, cli, hessian
from hesstheory.bench import cost, dense, problems
from hesstheory.run import memory

RELATIVE = pd.Series({"first": 0.02, "last": 0.1})


# --- arithmetic -------------------------------------------------------------------------------------------------------


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
    assert cost.work_to(0.01, 3.0, 2.0, cost.Spread(RELATIVE, "made up")) == 3 + 2 * 100


def test_work_of_blocks_apart_is_the_sum_of_what_each_needs():
    once, per_probe = pd.Series({"first": 3.0, "last": 1.0}), pd.Series({"first": 2.0, "last": 0.5})
    assert cost.work_to(0.01, once, per_probe, cost.Spread(RELATIVE, "made up")) == (3 + 2 * 4) + (
        1 + 0.5 * 100
    )


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


# --- variance ---------------------------------------------------------------------------------------------------------


def test_sign_variances_need_no_product_by_block(build, generator):
    model = build(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    batch = torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)
    problem = Problem(model, F.cross_entropy, [batch])
    found = cost.sign_variances(problem, 2000, generator)
    for block, estimate in found.items():
        H = hessian(problem).block(block, block)
        assert estimate == pytest.approx(
            2 * float(H.square().sum() - H.diagonal().square().sum()), rel=0.15
        )


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch):
    """Few ways, measured in this process, which is faster; no library is installed."""
    monkeypatch.setattr(
        cost, "in_a_process", lambda function, *arguments, **environment: function(*arguments)
    )
    monkeypatch.setattr(bench.peers, "installed", lambda: {})
    few = replace(
        problems.SETTINGS["mlp"], ways=("LayerwiseTrace", *OTHERS), counts=(2, 4), draws=10
    )
    monkeypatch.setitem(problems.SETTINGS, "mlp", few)


OTHERS = (
    "plain torch",
    "exact_traces",
    "LogitProbeTrace",
    "PyHessian",
    "curvlinops",
    "hessian-eigenthings",
)
KEYS = {
    "kind", "once", "per_probe", "gradients_at_num_probes", "work_to_1_percent", "judged_on", "peak_bytes",
    "worst_relative_spread_of_one_probe", "relative_spread_of_one_probe", "spread_found_by", "peak_in_training_steps",
}  # fmt: skip


def test_the_command_measures_writes_and_draws(here, tmp_path):
    result = CliRunner().invoke(
        cli.app, ["bench", "mlp", "--tiny", "--repeats", "1", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "reports" / "bench.json").read_text(encoding="utf-8"))
    assert {"device", "threads", "versions", "commit", "torch", "problems", "marks"} <= set(report)
    found = report["problems"]["mlp"]
    assert found["num_params"] == 785 * 8 + 9 * 8 + 9 * 10
    assert found["dtype"] == "float32"
    assert found["loss"] < 0.5 * found["untrained_loss"]
    assert found["gradient_seconds"] > 0
    assert set(found["absent"]) == {"PyHessian", "curvlinops", "hessian-eigenthings"}
    assert "PyHessian is absent: not installed" in result.output
    assert set(found["ways"]) == {"LayerwiseTrace", *OTHERS[:3]}
    for name, way in found["ways"].items():
        assert way["work_to_1_percent"] > 0
        if name != "exact_traces":
            assert set(way) == KEYS
            assert set(way["relative_spread_of_one_probe"]) == set(found["traces"])
    assert (
        found["ways"]["plain torch"]["spread_found_by"]
        == "10 draws of LayerwiseTrace, the same estimator"
    )
    assert [mark["mark"].partition(":")[0] for mark in report["marks"]] == ["mlp", "mlp"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"frontier.{s}" for s in ("svg", "png", "csv")
    }
    shown = pd.read_csv(tmp_path / "figures" / "frontier.csv")
    assert len(shown) == len(found["frontier"])
    assert shown["drawn"].all()


def test_dense_hessians_agree(here):
    (report,) = bench.run(["dense"], tiny=True)
    found = report["problems"]["dense"]
    assert set(found["ways"]) == set(dense.DENSE) - {"curvlinops"}
    assert found["ways"]["hessian(problem).to_dense()"]["times_ours"] == 1.0
    assert [mark["mark"] for mark in report["marks"]] == [
        "dense Hessian: times faster than torch.func.hessian"
    ]


def test_a_library_that_fails_is_listed_with_what_it_says(monkeypatch):
    def broken(problem, *, num_probes, generator):
        raise RuntimeError("no such operation\nat length")

    monkeypatch.setattr(bench.peers, "installed", lambda: {"pyhessian": "0"})
    monkeypatch.setitem(bench.peers.PEERS, "pyhessian.all_probes", broken)
    found, absent = bench.available(bench.SETTINGS["mlp"])
    kept = bench.warmed(
        bench.SETTINGS["mlp"].build(True, False), {"PyHessian": found["PyHessian"]}, absent, print
    )
    assert kept == {}
    assert absent["PyHessian"] == "failed: RuntimeError: no such operation"
    assert set(absent) == {"PyHessian", "curvlinops", "hessian-eigenthings"}


def test_a_process_of_its_own_has_its_own_environment():
    assert cost.in_a_process(os.getenv, "HESSTHEORY_TEST", HESSTHEORY_TEST="there") == "there"
    assert "HESSTHEORY_TEST" not in os.environ


def test_a_process_that_is_killed_is_told_from_an_answer():
    with pytest.raises(MemoryError, match="runs out of memory"):
        cost.in_a_process(os._exit, 1)


@pytest.mark.skipif(memory.resident_now() is None, reason="the peak cannot be read without /proc")
def test_memory_counts_what_is_held_at_once():
    before = memory.resident_now()
    with mmap.mmap(
        -1, 2**26
    ) as held:  # pages of its own, where torch might take what an earlier test gave back
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert memory.resident_peak() - before >= 0.9 * len(held)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["resnet"],
            "no problem 'resnet': choose from mlp, mlp-tanh, cnn, resnet18, resnet18-as-built, dense",
        ),
        (["mlp", "--repeats", "0"], "--repeats 0: pass one round or more"),
        (
            ["mlp", "--json", "nowhere/found.json"],
            "--json nowhere/found.json: the folder does not exist",
        ),
    ],
)
def test_misuse_costs_no_time_and_names_the_cure(arguments, says, tmp_path):
    result = CliRunner().invoke(cli.app, ["bench", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []
