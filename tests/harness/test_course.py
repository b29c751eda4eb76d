"""A full-scale run: its report, its folder, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from full_scale_runs import TINY, command, command_here, quiet

from hesstheory import harness
from hesstheory.harness.course import run
from hesstheory.harness.stages import rows
from hesstheory.harness.stages.registry import STAGES
from hesstheory.harness.subject import Settings

LAYER = {"exact", "estimate", "stderr", "z", "variance_ratio", "k_star"}
REPORT = {
    "model",
    "data",
    "device",
    "dtype",
    "batch",
    "layers",
    "checks",
    "seconds",
    "peak_memory_bytes",
    "passed",
}


# --- the report -----------------------------------------------------------------------------------


def test_the_report_has_what_others_rely_on(finished):
    folder, report = finished
    assert report["passed"]
    assert report.keys() >= REPORT
    assert all(values.keys() >= LAYER for values in report["layers"].values())
    assert json.loads((folder / "harness.json").read_text()) == json.loads(json.dumps(report))
    assert {check["status"] for check in report["checks"].values()} == {"passed", "reported"}
    assert len(report["layers"]) == 17


def test_table_figure_and_page_show_the_report(finished):
    folder, report = finished
    with open(folder / "layers.csv") as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    assert {layer: float(row["exact"]) for layer, row in rows.items()} == {
        layer: values["exact"] for layer, values in report["layers"].items()
    }
    page = (folder / "index.html").read_text()
    assert "All held." in page
    assert all(name in page for name in report["checks"])
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert (folder / "figures" / "layers.png").stat().st_size > 10_000


def test_a_finished_run_is_read_back(finished, monkeypatch):
    folder, report = finished
    monkeypatch.setattr(
        "hesstheory.harness.course.built", lambda *_: pytest.fail("it was built again")
    )
    assert run(TINY, folder, resume=True, say=quiet)["layers"] == report["layers"]


def test_a_smooth_network_is_measured_by_its_gauss_newton_matrix(tmp_path):
    report = run(
        Settings(model="resnet18", batch=3, probes=2, width=1, activation="silu"),
        tmp_path,
        say=quiet,
    )
    assert report["matrix"] == "G"
    assert report["passed"]
    assert "G by rows, probe by probe" in report["checks"]


def test_many_samples_are_sketched(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_ROWS", 30)
    report = run(TINY, tmp_path, say=quiet)
    assert report["found"]["dual"]["sketched"]
    assert report["passed"]
    assert report["checks"]["estimates are forms of products"]["status"] == "passed"
    assert report["checks"]["logit probes"]["status"] == "passed"


def test_traces_and_their_spread_do_not_depend_on_the_sketch(tmp_path, monkeypatch):
    whole = run(TINY, tmp_path / "whole", say=quiet)
    monkeypatch.setattr(rows, "MOST_ROWS", 30)
    sketched = run(TINY, tmp_path / "sketched", say=quiet)
    for layer, row in whole["layers"].items():
        for name in ("exact", "sample_trace_sd", "estimate", "logit_estimate"):
            assert sketched["layers"][layer][name] == row[name]
        # That of 3 of 4 samples, for 4: of the same size.
        assert sketched["layers"][layer]["logit_sd"] == pytest.approx(row["logit_sd"], rel=0.5)


def test_the_stages_are_in_the_order_of_their_needs():
    assert harness.STAGES is STAGES
    assert list(STAGES)[:2] == ["gradient", "kinks"]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "resnet50"), "model is 'resnet50': choose from resnet18, resnet34, vgg11"),
        (("--device", "cuda"), "no CUDA device is available"),
        (("--batch", "1"), "batch is 1: pass a whole number from 2"),
        (("--batch", "5000"), "batch is 5000: digits has 1797 images, pass that many or fewer"),
        (
            ("--classes", "20000"),
            "classes is 20000: digits has 10, pass that many or more, 10,000 at most",
        ),
        (("--data", "cifar10", "--root", "/nowhere"), "cifar-10"),
        (("--classes", "3"), "classes is 3: digits has 10"),
        (("--label-noise", "2"), "label_noise is 2.0"),
    ],
)
def test_bad_settings_are_misuse_with_a_cure(arguments, message, tmp_path):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    result = command_here("--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)  # no traceback
    assert message in result.stderr
    assert not any((tmp_path / "run").glob("*"))  # so that the next try may use the folder


def test_another_run_is_not_overwritten(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(
        ValueError, match="holds a run: pass --resume to go on with it, or another folder"
    ):
        run(TINY, folder, say=quiet)
    with pytest.raises(ValueError, match="has another batch, probes"):
        run(
            Settings(model="vgg11", batch=5, probes=3, width=1, dtype="float64"),
            folder,
            resume=True,
            say=quiet,
        )
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no run"):
        run(TINY, tmp_path, say=quiet)


def test_a_run_of_other_code_does_not_go_on(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    file = folder / "settings.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code": "0123456789abcdef"}))
    with pytest.raises(
        ValueError, match=r"was begun by other code .*: pass another folder as --out"
    ):
        run(TINY, folder, resume=True, say=quiet)


def test_a_folder_is_asked_for_where_there_is_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    process = command("--out", tmp_path / "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"--out {tmp_path / 'run'}: that is a file; name a folder" in err.replace("\n", "")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
@pytest.mark.parametrize("name", ["settings.json", "stages/3_exact.json"])
def test_a_damaged_record_is_named(name, content, finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / name).write_text(content)
    with pytest.raises(
        ValueError,
        match=r"settings|3_exact\.json .*delete it, and --resume measures that stage again",
    ):
        run(TINY, folder, resume=True, say=quiet)


def cut(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])


def with_nan(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    next(iter(state["model"].values())).fill_(float("nan"))
    torch.save(state, checkpoint)


def of_a_longer_run(checkpoint):
    torch.save(torch.load(checkpoint, weights_only=True) | {"step": 999}, checkpoint)


@pytest.mark.parametrize("damage", [cut, with_nan, of_a_longer_run])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    settings = replace(TINY, steps=20)
    folder = tmp_path / "run"
    run(settings, folder, say=quiet)
    damage(folder / "training.pt")
    shutil.rmtree(folder / "stages")
    with pytest.raises(
        ValueError, match=r"training\.pt cannot be read .*: delete it, and --resume trains anew"
    ):
        run(settings, folder, resume=True, say=quiet)
