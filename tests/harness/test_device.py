"""Full-scale runs on the pretended CUDA device."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from pretend_cuda import MEMORY
from typer.testing import CliRunner

from hesstheory.cli import app
from hesstheory.harness import doctor
from hesstheory.harness.course import run
from hesstheory.harness.stages import rows, variants
from hesstheory.harness.subject import Settings, built
from hesstheory.run.ranks import Ranks

TINY = Settings(model="vgg11", batch=4, probes=4, width=1, dtype="float64", device="cuda")


def quiet(text):
    pass


def test_doctor_tries_the_device(device):
    assert doctor.facts()["CUDA devices"] == "pretended (16 GiB)"
    outcomes = {name: held for name, held, _ in doctor.checks()}
    assert outcomes["exact traces on cuda:0"]
    assert outcomes["one-product traces on cuda:0"]


def same(left, right, tolerance):
    assert left.keys() == right.keys()
    for layer, values in left.items():
        for name in values.keys() - {"k_cost_optimal"}:
            assert values[name] == pytest.approx(
                right[layer][name], rel=tolerance, abs=tolerance
            ), (layer, name)


@pytest.mark.slow
def test_the_harness_finds_what_it_finds_on_the_cpu(device, tmp_path):
    arguments = [
        "--device",
        "cuda",
        "--width",
        "2",
        "--batch",
        "4",
        "--probes",
        "3",
        "--out",
        str(tmp_path / "cuda"),
    ]
    result = CliRunner().invoke(app, ["harness", *arguments])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "cuda" / "harness.json").read_text())
    assert found["device"] == "cuda:0"
    assert found["precision"]["rounds float32"] == "nothing"
    assert found["seconds"]["gradient"] == 1e-3
    assert found["peak_memory_bytes"] == MEMORY // 8
    expected = run(Settings(device="cpu", width=2, batch=4, probes=3), tmp_path / "cpu", say=quiet)
    same(found["layers"], expected["layers"], 1e-4)
    errors = found["found"]["precision"]["precision"]
    assert errors.keys() == {"float32", "bfloat16 autocast", "float16 autocast", "TF32"}
    assert errors["TF32"] > 100 * errors["float32"]


def test_training_on_the_device(device, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(torch, "save", lambda state, file: saved.append(state["step"]))
    settings = replace(TINY, steps=2)
    problems = []
    for where in (device, torch.device("cpu")):
        (tmp_path / where.type).mkdir()
        problems.append(built(settings, where, Ranks(), tmp_path / where.type, quiet).problem)
    there, here = problems
    assert there.device == device
    assert saved == [2, 2]
    for name, parameter in there.params.items():
        torch.testing.assert_close(parameter.cpu(), here.params[name].detach())


def test_out_of_memory_halves_the_batches(device, tmp_path, monkeypatch):
    right = variants.exact_traces
    said = []
    emptied = []

    def hungry(problem, matrix):
        if max(problem.batch_sizes) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return right(problem, matrix)

    monkeypatch.setattr(variants, "exact_traces", hungry)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(sys.exc_info()[0]))
    assert run(TINY, tmp_path, say=said.append)["passed"]
    assert "the device is out of memory with batches of 4: going on with 2" in said
    # No error is alive, which would keep what the failed attempt holds.
    assert set(emptied) == {None}


@pytest.mark.parametrize("parallel", ["data", "probes"])
def test_nccl_is_given_what_lies_on_the_device(parallel, device, tmp_path, monkeypatch):
    """One of two processes, the other of which holds the same."""
    blocks = "TORCH_NCCL_BLOCKING_WAIT"
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0"), (blocks, "")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(blocks)
    started, sums, copies = [], [], []

    def everywhere(box, value=None, **options):
        box[:] = [value] * len(box) if value is not None else box

    for name, fake in {
        "init_process_group": lambda backend, **options: started.append(
            (backend, os.environ[blocks])
        ),
        "destroy_process_group": lambda: None,
        "get_rank": lambda: 0,
        "all_reduce": lambda tensor: sums.append(tensor.device) or tensor.mul_(2),
        "broadcast": lambda tensor, src: copies.append(tensor.device),
        "broadcast_object_list": lambda box, src: None,
        "all_gather_object": everywhere,
    }.items():
        monkeypatch.setattr(torch.distributed, name, fake)
    monkeypatch.setattr(rows, "MOST_ROWS", 30)
    run(replace(TINY, parallel=parallel), tmp_path, say=quiet)
    assert started == [("nccl", "1")]
    assert set(sums) == set(copies) == {device}
