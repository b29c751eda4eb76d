"""Full-vector probes on real networks: what needs no probe, intervals and rankings."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from hesstheory import theory
from hesstheory.curvature.matrix import ggn, hessian
from hesstheory.studies import full_vector_probes as study
from hesstheory.studies import own_blocks
from hesstheory.studies.probe_errors import variance_interval
from hesstheory.studies.probe_rankings import rankings
from hesstheory.studies.probe_samples import KINDS, Setting, network, sizes
from hesstheory.studies.study import call_study

_SIZES = {"width": 1, "samples": 3, "probes": 8, "together": 4, "rank_from": 4, "redraws": 3}
_TINY = Setting(**_SIZES)


@pytest.fixture(scope="module")
def tiny():
    """After a few steps, in double precision, with blocks that can be held."""
    return network(_TINY, 2)[0].double()


def test_variances_without_probes_are_those_of_the_dense_blocks(tiny):
    own = own_blocks.own_blocks(tiny)
    blocks = list(tiny.partition.blocks)
    for block in ("conv1", "layer1.0.bn1", "layer2.0.conv1", "fc"):
        H_ll = hessian(tiny).block(block, block)
        assert own["trace"][block] == pytest.approx(float(H_ll.trace()), rel=1e-10)
        assert own["norm4"][block] == pytest.approx(float((H_ll @ H_ll).square().sum()), rel=1e-10)
        for kurtosis in (1.0, 3.0):
            expected = float(theory.probe_variance(H_ll, (), kurtosis))
            assert own_blocks.separated_variance(own, kurtosis)[block] == pytest.approx(
                expected, rel=1e-10
            )
    crossed = sum(float(ggn(tiny).block("bn1", m).square().sum()) for m in blocks if m != "bn1")
    assert own["cross_ggn"]["bn1"] == pytest.approx(crossed, rel=1e-10)


def test_dual_factors_may_be_found_in_parts(tiny, monkeypatch):
    whole = own_blocks.own_blocks(tiny)
    monkeypatch.setattr(own_blocks, "HELD", 10_000)
    groups = list(own_blocks.grouped(tiny))
    assert len(groups) > 1
    assert [block for group in groups for block in group] == list(tiny.partition.blocks)
    pd.testing.assert_frame_equal(own_blocks.own_blocks(tiny), whole, rtol=1e-12)


def test_training_lowers_the_risk_and_repeats():
    setting = Setting(width=4, samples=16)
    first, losses = network(setting, 30)
    again, _ = network(setting, 30)
    assert losses["risk after"] < losses["risk before"] - 0.5
    assert not first.model.training
    for p, q in zip(first.params.values(), again.params.values(), strict=True):
        assert torch.equal(p, q)


def test_interval_of_a_variance_covers_it(generator):
    """Normal samples: the interval is that of χ², but for the bootstrap.

    Columns are scaled apart.
    """
    samples = pd.DataFrame(
        torch.randn(400, 2, generator=generator).numpy() * [1.0, 10.0], columns=["a", "b"]
    )
    interval = variance_interval(samples, generator)
    variance = samples.var()
    assert (interval["low"] < variance).all()
    assert (interval["high"] > variance).all()
    half = 1.96 * math.sqrt(2 / 400)  # of the relative error of s²
    np.testing.assert_allclose((interval["high"] - interval["low"]) / variance, 2 * half, rtol=0.25)


@pytest.mark.parametrize(("noise", "wrong"), [(1e-6, 0.0), (1e6, 1.0)])
def test_rankings_are_wrong_where_noise_makes_them_so(tiny, generator, noise, wrong):
    blocks = list(tiny.partition.blocks)
    traces = sizes(tiny) * pd.Series(range(1, len(blocks) + 1), index=blocks, dtype=float)
    draws = torch.randn(12, len(blocks), generator=generator).numpy()
    samples = traces + pd.DataFrame(draws, columns=blocks) * noise * sizes(tiny)
    found = rankings(tiny, traces, samples, _TINY, generator)
    for groups in (found["groups apart"], found["groups drawn"]):
        assert groups["groups"] == 3
        assert groups["order wrong"] == groups["top five wrong"] == wrong
        assert groups["all ranks inside"] == 1
        assert (groups["least tau"] == 1) == (wrong == 0)
        assert groups["width of the intervals"] == pytest.approx(
            wrong * (len(blocks) - 1), rel=0.01
        )
    assert (found["probes that would decide the order"] < 4) == (wrong == 0)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The record of a tiny network in two states."""
    file = tmp_path_factory.mktemp("study") / "found.json"
    options = [f"--{name.replace('_', '-')}={size}" for name, size in _SIZES.items()]
    assert call_study(study.STUDY, [*options, "--steps", "0", "2", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_the_study_is_written_state_by_state(record):
    assert record["setting"]["probes"] == 8
    assert [state["steps"] for state in record["states"]] == [0, 2]
    for state in record["states"]:
        assert len(state["layers"]) == state["summary"]["layers"] == 41
        assert state["rankings"]["convolutions and head"]["full"]["layers"] == 21
        assert state["summary"]["two routes to the trace, relative difference"] < 1e-3
        assert set(state["a probe, gradients"]) == set(KINDS)
    assert record["states"][0]["layers"][-3]["layer"] == "layer4.1.conv2"


def test_a_spot_check_repeats_the_untrained_state(record):
    """Traces and risk, to rounding; another number is noticed."""
    assert study.spot_check(record).holds
    record["states"][0]["layers"][0]["trace"] *= 1.1
    assert not study.spot_check(record).holds


def test_layers_are_shown(record):
    """One row each."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(study.shown(record["states"][0]))
    assert "layer4.1.conv2" in console.export_text()
