"""The library on a CUDA device that is not there: the pretended one fails where it should, and on it nothing does."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pretend_cuda
import pytest
import torch
from pretend_cuda import CUDA, MEMORY, Event, Generator, OnDevice
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from hesstheory import estimators, zoo
from hesstheory.autograd import graph
from hesstheory.autograd import layers as convolution
from hesstheory.autograd.graph import NotTwiceDifferentiable
from hesstheory.cli import app
from hesstheory.curvature.matrix import ggn, hessian, residual
from hesstheory.curvature.uses import unrolled_hessian
from hesstheory.estimators.advice import rank_layers, recommend
from hesstheory.estimators.deflated import HutchPP, XTrace
from hesstheory.estimators.from_outputs import ControlVariateTrace, LogitProbeTrace
from hesstheory.estimators.probes import (
    Gaussian,
    HadamardColumns,
    Rademacher,
    SparseSigns,
    Sphere,
    Uniform,
)
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.harness import doctor, stages
from hesstheory.harness.course import run
from hesstheory.harness.subject import Settings, built
from hesstheory.outputs import gram
from hesstheory.outputs.gram import dual_gram
from hesstheory.outputs.sketches import sketched_norms
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import seconds_of
from hesstheory.run.memory import free_memory
from hesstheory.run.precision import full_precision
from hesstheory.run.ranks import Ranks, device_named

TINY = Settings(model="vgg11", batch=4, probes=4, width=1, dtype="float64", device="cuda")


@pytest.fixture
def device():
    """The pretended device; a fault fails the test even where the library survived it."""
    with pretend_cuda.pretend_cuda():
        yield CUDA
        assert not pretend_cuda.faults


@pytest.fixture
def faulty():
    """The pretended device where faults are meant."""
    with pretend_cuda.pretend_cuda():
        yield CUDA


def quiet(text):
    pass


# --- the pretended device fails where a real one does -----------------------------------------------------------------

MIXED, NUMPY, STREAM = (
    "at least two devices, cuda:0 and cpu",
    "can't convert cuda:0 device",
    "device type for generator",
)
PLANTED = {
    "sum": (lambda x, c: x + c, MIXED),
    "product": (lambda x, c: x @ c, MIXED),
    "eye without a device": (lambda x, c: x - torch.eye(3), MIXED),
    "joined": (lambda x, c: torch.cat([x, c]), MIXED),
    "numbers stacked": (lambda x, c: torch.stack([x.sum(), c.sum()]), MIXED),
    "picked": (lambda x, c: x.index_select(0, torch.tensor([0])), MIXED),
    "added by index": (lambda x, c: x.index_add(0, torch.tensor([0, 1, 2]), x), MIXED),
    "written into the CPU": (lambda x, c: c.add_(x), MIXED),
    "number written into the CPU": (lambda x, c: c.sum().add_(x.sum()), MIXED),
    "index of the device": (
        lambda x, c: c[torch.zeros(1, dtype=torch.long, device=x.device)],
        "indices should be",
    ),
    "assigned by index": (lambda x, c: x.index_put_((torch.tensor([0]),), c[:1]), MIXED),
    "model on the CPU": (lambda x, c: F.linear(x, c.requires_grad_()), MIXED),
    "targets on the CPU": (lambda x, c: F.cross_entropy(x, torch.tensor([0, 1, 2])), MIXED),
    "slope of the CPU": (lambda x, c: torch.autograd.grad(x.requires_grad_() ** 2, x, c), MIXED),
    "in a backward pass": (
        lambda x, c: torch.autograd.grad(_Careless.apply(x.requires_grad_()).sum(), x),
        MIXED,
    ),
    "batched": (lambda x, c: torch.func.vmap(lambda row: row * c[0])(x), MIXED),
    "numpy": (lambda x, c: x.numpy(), NUMPY),
    "numpy by itself": (lambda x, c: np.asarray(x), NUMPY),
    "numpy function": (lambda x, c: np.sqrt(x), NUMPY),
    "generator of the CPU": (
        lambda x, c: torch.randn(2, device="cuda", generator=torch.Generator()),
        STREAM,
    ),
    "in place": (lambda x, c: x.normal_(generator=torch.Generator()), STREAM),
    "order": (lambda x, c: torch.randperm(3, device=x.device, generator=torch.Generator()), STREAM),
    "generator of the device": (lambda x, c: torch.randn(2, generator=Generator()), STREAM),
    "event before its end": (
        lambda x, c: _events()[0].elapsed_time(_events()[1]),
        "must be completed",
    ),
}


class _Careless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * torch.ones(g.shape)


def _events():
    events = Event(enable_timing=True), Event(enable_timing=True)
    for event in events:
        event.record()
    return events


@pytest.mark.parametrize(("plant", "message"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_found(plant, message, faulty):
    c = torch.arange(9.0).reshape(3, 3)
    x = c.to(faulty)
    with pytest.raises((RuntimeError, TypeError), match=message):
        plant(x, c)


ALLOWED = {
    "number of the CPU": lambda x, c: x * c[0, 1],
    "chosen": lambda x, c: torch.where(x > 4, x, c[0, 0]),
    "masked": lambda x, c: x.masked_fill(x > 4, c[0, 0]),
    "index of the CPU": lambda x, c: x[torch.tensor([2, 0])],
    "copied": lambda x, c: x.clone().copy_(c),
    "back": lambda x, c: c.clone().copy_(x),
    "assigned": lambda x, c: _assigned(x.clone(), c),
    "made there": lambda x, c: (
        torch.tensor([1.0, 2.0], device=x.device) + x.new_zeros(2) + torch.ones_like(x)[0, :2]
    ),
    "moved": lambda x, c: x + torch.ones(3).to(x.device) + torch.ones(3, dtype=torch.long).to(x),
    "second derivatives": lambda x, c: torch.autograd.functional.hessian(lambda v: (v**3).sum(), x),
    "batched": lambda x, c: torch.func.vmap(lambda row: row.exp().sum())(x),
    "list": lambda x, c: torch.tensor([x.tolist(), [[float(v) for v in row] for row in x]]),
}


def _assigned(x, c):
    x[0], x[1, 1], x[torch.tensor([2])] = c[1], c[0, 0], c[0, 2]
    return x


@pytest.mark.parametrize("allowed", ALLOWED.values(), ids=ALLOWED)
def test_what_a_real_device_allows_gives_the_numbers_of_the_cpu(allowed, device):
    c = torch.arange(9.0).reshape(3, 3)
    found = allowed(c.to(device), c)
    assert torch.equal(found.cpu(), allowed(c.clone(), c).cpu())


def test_tensors_are_made_there_and_move(device):
    with torch.device("cuda"):
        made = [torch.zeros(2), torch.randn(2, generator=Generator())]
    there = torch.zeros(2, device="cuda")
    made += [
        there,
        torch.tensor([0.0, 1.0], device="cuda:0"),
        torch.zeros(2).to("cuda"),
        torch.zeros(2).cuda(),
    ]
    assert {x.device for x in made} == {device}
    assert all(x.is_cuda for x in made)
    assert there.to(device) is there
    assert torch.zeros(2).device == there.cpu().device == torch.device("cpu")


def test_modules_move_as_they_do(device):
    model = nn.Sequential(zoo.initial.blank(nn.Linear, 2, 2), nn.BatchNorm1d(2))
    weight = model[0].weight
    model.to(device)
    assert model[0].weight is weight
    assert isinstance(weight, nn.Parameter)
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {device}
    assert weight.to(device) is weight
    copied = copy.deepcopy(model)
    assert isinstance(copied[0].weight, OnDevice)
    assert copied[0].weight is not weight
    assert type(weight.detach().cpu()) is torch.Tensor


def test_tf32_rounds_where_it_is_allowed(device):
    x = torch.full((1, 1, 3, 3), 1 + 2**-13, dtype=torch.float32, device=device)
    with full_precision():
        assert F.conv2d(x, torch.ones_like(x)).item() == 9 * (1 + 2**-13)
        torch.backends.cudnn.allow_tf32 = True
        assert F.conv2d(x, torch.ones_like(x)).item() == 9.0


FAULTY_LIBRARY = {
    "rows": (gram.DualGram, "_rows_of_samples", lambda self: torch.tensor(self.sample_of_row)),
    "cosines": (logit_space, "generic", lambda like: torch.ones(like.shape)),
    "labels": (estimators, "_labelled", lambda samples, problem: pd.DataFrame(samples.numpy())),
}


@pytest.mark.parametrize(("owner", "name", "fault"), FAULTY_LIBRARY.values(), ids=FAULTY_LIBRARY)
def test_a_fault_of_the_library_is_found(owner, name, fault, faulty, monkeypatch):
    problem = network(faulty)
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises((RuntimeError, TypeError), match=f"{MIXED}|{NUMPY}"):
        [
            WORK[work](problem, torch.Generator().manual_seed(0))
            for work in ("dual Gram", "exact", "one product")
        ]
    assert pretend_cuda.faults


# --- the library ------------------------------------------------------------------------------------------------------


def network(device):
    """A ReLU network of convolutions, batch norm and linear layers, on two batches."""
    generator = torch.Generator().manual_seed(1)
    blank = zoo.initial.blank
    model = nn.Sequential(
        blank(nn.Conv2d, 2, 3, 3, padding=1), blank(nn.BatchNorm2d, 3), nn.ReLU(), nn.MaxPool2d(2),
        blank(nn.Conv2d, 3, 4, 2), nn.ReLU(), nn.Flatten(), blank(nn.Linear, 4, 5), nn.ReLU(), blank(nn.Linear, 5, 3),
    )  # fmt: skip
    inputs, targets = torch.randn(5, 2, 4, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    zoo.initial.initialise(model, inputs, generator)
    batches = [
        (inputs[part].to(device), targets[part].to(device)) for part in (slice(3), slice(3, 5))
    ]
    return Problem(model.eval().to(device), F.cross_entropy, batches)


def _of_dual(problem, generator):
    gram = dual_gram(problem, Rademacher().signs(problem.num_params, 3, generator), budget=50_000)
    parts = (
        gram.sample_traces,
        gram.norms2,
        gram.diagonal_norms2,
        gram.forms(),
        gram.squared_product_norms(),
    )
    return torch.cat([part.flatten() for part in (*parts, *gram.of_samples())])


WORK = {
    "exact": lambda p, g: exact_traces(p).value,
    "exact, of G": lambda p, g: exact_traces(p, matrix=ggn).value,
    "dense": lambda p, g: hessian(p).to_dense(),
    "difference": lambda p, g: (hessian(p) - ggn(p)).block("0", "7"),
    "residual": lambda p, g: residual(p) @ Rademacher().sample(p.num_params, 2, g).to(p.device),
    "norms": lambda p, g: ggn(p).block_norms(),
    "traces": lambda p, g: ggn(p).trace_by_block(),
    "unrolled": lambda p, g: unrolled_hessian(p, "7.weight"),
    "dual Gram": _of_dual,
    "sketched": lambda p, g: sketched_norms(p, g, num_rows=4).norms2,
    "one product": lambda p, g: LayerwiseTrace(5)(p, g).samples,
    "given probes": lambda p, g: LayerwiseTrace()(p, probes=torch.ones(p.num_params, 2)).samples,
    "Gaussian": lambda p, g: LayerwiseTrace(3, Gaussian())(p, g).samples,
    "uniform": lambda p, g: LayerwiseTrace(3, Uniform())(p, g).samples,
    "sphere": lambda p, g: LayerwiseTrace(3, Sphere())(p, g).samples,
    "sparse": lambda p, g: LayerwiseTrace(3, SparseSigns(0.3))(p, g).samples,
    "Hadamard": lambda p, g: LayerwiseTrace(3, HadamardColumns())(p, g).samples,
    "separated": lambda p, g: BlockSeparatedTrace(3)(p, g).samples,
    "Hutch++": lambda p, g: HutchPP(3, 2)(p, g).samples,
    "XTrace": lambda p, g: XTrace(4)(p, g).samples,
    "logit probes": lambda p, g: LogitProbeTrace(3)(p, g).samples,
    "logit probes, of sums": lambda p, g: LogitProbeTrace(3, per_sample=False)(p, g).samples,
    "control variates": lambda p, g: ControlVariateTrace(3)(p, g).samples,
    "control variates, separated": lambda p, g: (
        ControlVariateTrace(3, separated=True)(p, g).samples
    ),
    "control variates, estimated": lambda p, g: ControlVariateTrace(3, exact=False)(p, g).samples,
    "ranking": lambda p, g: rank_layers(p).table,
    "ranking, estimated": lambda p, g: (
        rank_layers(p, generator=g, estimator=LayerwiseTrace(8)).table
    ),
    "plan": lambda p, g: next(plan for plan in recommend(p, 0.5, 0.9, g).plans if plan.is_exact)(
        p, g
    ),
}


def _array(found):
    return found.cpu().numpy() if isinstance(found, torch.Tensor) else found.to_numpy(float)


@cache
def _on_the_cpu(work):
    return _array(WORK[work](network("cpu"), torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(
    "make", [torch.Generator, Generator], ids=["generator of the CPU", "of the device"]
)
@pytest.mark.parametrize("work", WORK)
def test_the_numbers_are_those_of_the_cpu(work, make, device):
    found = _array(WORK[work](network(device), make().manual_seed(3)))
    np.testing.assert_allclose(found, _on_the_cpu(work), rtol=1e-10, atol=1e-12)


def test_float32_is_certified_in_float64(device):
    problem = network(device)
    single = Problem(
        problem.model.float(), F.cross_entropy, [(x.float(), y) for x, y in problem.batches]
    )
    assert hessian(single).to_dense().device == device
    assert hessian(single).to_dense().dtype == torch.float64


def test_convolutions_of_large_networks(device, monkeypatch):
    expected = hessian(network("cpu")).to_dense()
    monkeypatch.setattr(curvature, "_layers", lambda problem: convolution.BilinearLayers())
    monkeypatch.setattr(convolution, "Tensor", OnDevice)  # they are for tensors of no other class
    used = []
    right = convolution._convolution
    monkeypatch.setattr(
        convolution, "_convolution", lambda *a, **k: used.append(1) or right(*a, **k)
    )
    torch.testing.assert_close(hessian(network(device)).to_dense().cpu(), expected)
    assert used


def test_what_pytorch_keeps_is_free_memory(device):
    assert free_memory(device) == MEMORY // 4 + MEMORY // 2 - MEMORY // 8


@pytest.mark.parametrize(
    "refusal",
    [
        "the derivative for '_cudnn_rnn_backward' is not implemented. Double backwards is not supported for CuDNN RNNs",
        "cudnn RNN backward can only be called in training mode",
    ],
)
def test_recurrent_layers_of_cudnn_have_a_cure(refusal):
    with (
        pytest.raises(NotTwiceDifferentiable, match=r"cudnn\.flags\(enabled=False\)"),
        graph.second_derivatives(),
    ):
        raise RuntimeError(refusal)


# --- where it runs ----------------------------------------------------------------------------------------------------


def test_the_device_is_the_process_own(device, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert device_named("auto") == device_named("cuda") == device
    assert taken == [0, 0]
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="process 1 has no CUDA device of its own, there are 1"):
        device_named("cuda")


def test_seconds_are_those_of_the_events(device):
    assert seconds_of(lambda: None, device) == 1e-3


ALLOWED = {
    "default": "",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "older switch": "b.cudnn.allow_tf32 = False",
    "newer switch": "b.cuda.matmul.fp32_precision = 'tf32'",
    "newer switch off": "b.cudnn.conv.fp32_precision = 'ieee'",
    "on CPU": "b.mkldnn.conv.fp32_precision = 'bf16'",
    "all": "b.fp32_precision = 'tf32'",
}


@pytest.mark.parametrize("allow", ALLOWED.values(), ids=ALLOWED)
def test_full_precision_is_full_whatever_was_allowed(allow):
    """In a process of its own, since a switch that was set never looks untouched again."""
    script = f"""
import torch
from hesstheory.execution import full_precision, precision_switches
b = torch.backends
{allow}
before = precision_switches()
with full_precision():
    assert precision_switches()["rounds float32"] == "nothing"
    assert not b.cuda.matmul.allow_tf32 and not b.cudnn.allow_tf32
    with full_precision():
        pass
    assert precision_switches()["rounds float32"] == "nothing"
assert precision_switches() == before
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def test_doctor_tries_the_device(device):
    assert doctor.facts()["CUDA devices"] == "pretended (16 GiB)"
    outcomes = {name: held for name, held, _ in doctor.checks()}
    assert outcomes["exact traces on cuda:0"]
    assert outcomes["one-product traces on cuda:0"]


# --- full scale -------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(torch, "save", lambda state, path: saved.append(path) or path.touch())
    settings, problems = replace(TINY, steps=2), []
    for where in (device, torch.device("cpu")):
        (tmp_path / where.type).mkdir()
        problems.append(built(settings, where, Ranks(), tmp_path / where.type, quiet).problem)
    there, here = problems
    assert there.device == device
    assert len(saved) == 2
    for name, parameter in there.params.items():
        torch.testing.assert_close(parameter.cpu(), here.params[name].detach())


def test_out_of_memory_halves_the_batches(device, tmp_path, monkeypatch):
    right, said, emptied = stages.exact_traces, [], []

    def hungry(problem, matrix):
        if max(problem.batch_sizes) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return right(problem, matrix)

    monkeypatch.setattr(stages, "exact_traces", hungry)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(sys.exc_info()[0]))
    assert run(TINY, tmp_path, say=said.append)["passed"]
    assert "the device is out of memory with batches of 4: going on with 2" in said
    assert set(emptied) == {
        None
    }  # no error is alive, which would keep what the failed attempt holds


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
    monkeypatch.setattr(stages, "_MOST_ROWS", 30)
    run(replace(TINY, parallel=parallel), tmp_path, say=quiet)
    assert started == [("nccl", "1")]
    assert set(sums) == set(copies) == {device}
