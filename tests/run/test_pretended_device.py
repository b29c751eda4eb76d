"""The pretended CUDA device fails where a real one does, and nowhere else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pretend_cuda import MIXED, NUMPY, STREAM, Event, Generator, OnDevice
from torch import nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.run.precision import full_precision

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
