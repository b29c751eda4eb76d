"""The studies measure what they say: their estimators are those of the library, drawn and multiplied otherwise."""

import importlib.util
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer

from hesstheory import (
    BlockSeparatedTrace,
    Gaussian,
    LayerwiseTrace,
    Rademacher,
    ggn,
    hessian,
    theory,
)
from hesstheory.cli import app
from hesstheory.conformance.problems import references
from hesstheory.harness.subject import Settings


def _study(name):
    spec = importlib.util.spec_from_file_location(
        name, Path(__file__).parent / "studies" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


study = _study("conformance_error_rates")
probes = _study("full_vector_probes")
full_scale = _study("full_scale_records")


# --- error rates of the conformance suite -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("signs", LayerwiseTrace(16, Rademacher())),
        ("normal", LayerwiseTrace(16, Gaussian())),
        ("block-separated", BlockSeparatedTrace(16, Rademacher())),
    ],
)
def test_estimators_with_a_held_hessian_give_what_the_library_gives(name, twin):
    for reference in ("smooth_mlp", "tied", "layouts"):
        problem = references()[reference].build()
        found = study.RIGHT[name](
            problem, num_probes=16, generator=torch.Generator().manual_seed(3)
        )
        expected = twin(problem, torch.Generator().manual_seed(3))
        for block, (value, error) in found.items():
            assert value == pytest.approx(expected.value[block], rel=1e-10)
            assert error == pytest.approx(expected.stderr[block], rel=1e-8)


def test_the_held_hessian_follows_the_parameters():
    problem = references()["smooth_mlp"].build()
    before = study.held(problem)
    with torch.no_grad():
        next(iter(problem.params.values())).mul_(0.5)
    assert not torch.equal(study.held(problem), before)


def test_a_run_is_recorded_and_rated():
    right, wrong = study.one_run(("total only", 5)), study.one_run(("total only, 1 % too large", 5))
    assert (right["code"], wrong["code"]) == (0, 1), right
    rates = study.rates([right, wrong])
    assert rates["total only"]["accepted"] == rates["total only, 1 % too large"]["rejected"] == 1


# --- full-vector probes on real networks ------------------------------------------------------------------------------

_SIZES = {"width": 1, "samples": 3, "probes": 8, "together": 4, "rank_from": 4, "redraws": 3}
_TINY = probes.Setting(**_SIZES)


@pytest.fixture(scope="module")
def tiny():
    """After a few steps, in double precision, with blocks that can be held."""
    return probes.network(_TINY, 2)[0].double()


def test_variances_without_probes_are_those_of_the_dense_blocks(tiny):
    own, blocks = probes.own_blocks(tiny), list(tiny.partition.blocks)
    for block in ("conv1", "layer1.0.bn1", "layer2.0.conv1", "fc"):
        H_ll = hessian(tiny).block(block, block)
        assert own["trace"][block] == pytest.approx(float(H_ll.trace()), rel=1e-10)
        assert own["norm4"][block] == pytest.approx(float((H_ll @ H_ll).square().sum()), rel=1e-10)
        for kurtosis in (1.0, 3.0):
            expected = float(theory.probe_variance(H_ll, (), kurtosis))
            assert probes.separated_variance(own, kurtosis)[block] == pytest.approx(
                expected, rel=1e-10
            )
    crossed = sum(float(ggn(tiny).block("bn1", m).square().sum()) for m in blocks if m != "bn1")
    assert own["cross_ggn"]["bn1"] == pytest.approx(crossed, rel=1e-10)


def test_dual_factors_may_be_found_in_parts(tiny, monkeypatch):
    whole = probes.own_blocks(tiny)
    monkeypatch.setattr(probes, "_HELD", 10_000)
    groups = list(probes.grouped(tiny))
    assert len(groups) > 1
    assert [block for group in groups for block in group] == list(tiny.partition.blocks)
    pd.testing.assert_frame_equal(probes.own_blocks(tiny), whole, rtol=1e-12)


def test_training_lowers_the_risk_and_repeats():
    setting = probes.Setting(width=4, samples=16)
    (first, losses), (again, _) = (probes.network(setting, 30) for _ in range(2))
    assert losses["risk after"] < losses["risk before"] - 0.5
    assert not first.model.training
    for p, q in zip(first.params.values(), again.params.values(), strict=True):
        assert torch.equal(p, q)


def test_interval_of_a_variance_covers_it(generator):
    """Normal samples: the interval is that of χ², but for the bootstrap, and columns are scaled apart."""
    samples = pd.DataFrame(
        torch.randn(400, 2, generator=generator).numpy() * [1.0, 10.0], columns=["a", "b"]
    )
    interval, variance = probes.variance_interval(samples, generator), samples.var()
    assert (interval["low"] < variance).all()
    assert (interval["high"] > variance).all()
    half = 1.96 * math.sqrt(2 / 400)  # of the relative error of s²
    np.testing.assert_allclose((interval["high"] - interval["low"]) / variance, 2 * half, rtol=0.25)


@pytest.mark.parametrize(("noise", "wrong"), [(1e-6, 0.0), (1e6, 1.0)])
def test_rankings_are_wrong_where_noise_makes_them_so(tiny, generator, noise, wrong):
    blocks = list(tiny.partition.blocks)
    traces = probes.sizes(tiny) * pd.Series(range(1, len(blocks) + 1), index=blocks, dtype=float)
    draws = torch.randn(12, len(blocks), generator=generator).numpy()
    samples = traces + pd.DataFrame(draws, columns=blocks) * noise * probes.sizes(tiny)
    found = probes.rankings(tiny, traces, samples, _TINY, generator)
    for groups in (found["groups apart"], found["groups drawn"]):
        assert groups["groups"] == 3
        assert groups["order wrong"] == groups["top five wrong"] == wrong
        assert groups["all ranks inside"] == 1
        assert (groups["least tau"] == 1) == (wrong == 0)
        assert groups["width of the intervals"] == pytest.approx(
            wrong * (len(blocks) - 1), rel=0.01
        )
    assert (found["probes that would decide the order"] < 4) == (wrong == 0)


def test_the_study_is_written_state_by_state(tmp_path, capsys):
    file = tmp_path / "found.json"
    sizes = [f"--{name.replace('_', '-')}={size}" for name, size in _SIZES.items()]
    probes.main([*sizes, "--steps", "0", "2", "--json", str(file)])
    record = json.loads(file.read_text())
    assert record["setting"]["probes"] == 8
    assert [state["steps"] for state in record["states"]] == [0, 2]
    for state in record["states"]:
        assert len(state["layers"]) == state["summary"]["layers"] == 41
        assert state["rankings"]["convolutions and head"]["full"]["layers"] == 21
        assert state["summary"]["two routes to the trace, relative difference"] < 1e-3
        assert set(state["a probe, gradients"]) == set(probes.KINDS)
    assert "layer4.1.conv2" in capsys.readouterr().out


# --- records of full-scale runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_records_are_runs_that_the_command_takes(device):
    command = typer.main.get_command(app).commands["harness"]
    runs = full_scale.records(device)
    settings = [command.make_context("harness", list(options)).params for options in runs.values()]
    found = [
        Settings(**{name: chosen[name] for name in asdict(Settings()) if name != "root"})
        for chosen in settings
    ]
    assert len(set(found)) == len(runs)
    assert {s.device for s in found} == ({"cuda"} if device == "cuda" else {"auto"})
    assert {s.model for s in found} == {"resnet18", "resnet34", "vgg11"}
    assert {s.num_classes for s in found} == {10, 100}


def test_records_are_made_once_and_kept(tmp_path, monkeypatch, capfd):
    tiny = "--model vgg11 --width 1 --batch 2 --probes 2"
    monkeypatch.setattr(full_scale, "_DIGITS", {"tiny": tiny, "wrong": "--model vgg12"})
    monkeypatch.setattr(full_scale, "_CIFAR", {})
    monkeypatch.setattr(
        sys, "argv", ["records", f"--json={tmp_path / 'kept'}", f"--out={tmp_path / 'runs'}"]
    )
    for again in (False, True):
        with pytest.raises(SystemExit) as stop:
            full_scale.main()
        assert stop.value.code == 1
        said = capfd.readouterr().out
        assert ("hesstheory harness --model vgg11" in said) is not again
        assert "failed: wrong" in said
    kept = json.loads((tmp_path / "kept" / "tiny.json").read_text())
    assert (
        kept["provenance"]["command"]
        == f"hesstheory harness {tiny} --out {tmp_path / 'runs' / 'tiny'}"
    )
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seconds=0", "wrong"])
    with pytest.raises(SystemExit) as stop:
        full_scale.main()
    assert stop.value.code == 0
    assert "wrong: not started" in capfd.readouterr().out


def test_the_table_of_the_readme_is_that_of_the_records():
    root = Path(__file__).parents[1]
    found = full_scale.table(root / "reports" / "harness")
    text = (root / "README.md").read_text(encoding="utf-8")
    assert found.rpartition("\n\n")[0] in text
    assert found.rpartition("\n\n")[2] in text.replace("\n", " ")
