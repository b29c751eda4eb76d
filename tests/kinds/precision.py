"""Mixed precision: autocast around, autocast inside, losses and layers of another dtype."""

from __future__ import annotations

from functools import partial

import torch
from builders import mlp
from kinds.case import Case
from torch import nn
from torch.nn import functional as F

SMOOTH = {"exact H": "tr H may not be tr G"}
AUTOCAST = partial(torch.autocast, "cpu", torch.bfloat16)


def _batches(*numbers, dtype=torch.float32):
    return [(torch.randn(n, 3).to(dtype), torch.randint(2, (n,))) for n in numbers]


def _relu_net():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def autocast_outside():
    return Case(_relu_net().float(), F.cross_entropy, _batches(9, 4), inside=AUTOCAST)


def autocast_outside_in_float64():
    batches = _batches(9, 4, dtype=torch.float64)
    return Case(_relu_net(), F.cross_entropy, batches, inside=AUTOCAST)


class Coarse(nn.Module):
    """Turns autocast on by itself."""

    def __init__(self):
        super().__init__()
        self.net = _relu_net()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x)


def autocast_inside():
    """Coarse numbers, which a warning says."""
    return Case(
        Coarse().float(),
        lambda outputs, targets: F.cross_entropy(outputs.float(), targets),
        _batches(9),
        says="turns on autocast by itself",
        right=_of_the_net,
        right_ggn=_of_the_net,
        tolerance=0.1,
    )


def _of_the_net(case):
    """Traces of the same net in float64; H is G."""
    net = _relu_net()
    net.load_state_dict(case.model.net.state_dict())
    batches = [(x.double(), y) for x, y in case.batches]
    found = Case(net, F.cross_entropy, batches).traces()
    return {f"net.{layer}": trace for layer, trace in found.items()}


def loss_in_float32_of_a_float64_model():
    def loss(outputs, targets):
        return F.cross_entropy(outputs.float(), targets)

    return Case(
        _relu_net(),
        loss,
        _batches(9, 4, dtype=torch.float64),
        right=lambda case: Case(case.model, F.cross_entropy, case.batches).traces(),
        right_ggn=lambda case: Case(case.model, F.cross_entropy, case.batches).ggn_traces(),
        tolerance=1e-4,
    )


class FloatInside(nn.Module):
    """A float64 model whose middle is computed in float32, as some language models do."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x).float()).double())


class FloatNowhere(FloatInside):
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def layer_in_float32_of_a_float64_model():
    def plain(case):
        net = FloatNowhere()
        net.load_state_dict(case.model.state_dict())
        return Case(net, case.loss_fn, case.batches)

    return Case(
        FloatInside(),
        F.cross_entropy,
        _batches(9, 4, dtype=torch.float64),
        right=lambda case: plain(case).traces(),
        right_ggn=lambda case: plain(case).ggn_traces(),
        tolerance=1e-4,
    )


def bfloat16_model():
    batches = _batches(9, dtype=torch.bfloat16)
    return Case(
        mlp().bfloat16(),
        F.cross_entropy,
        batches,
        refuses=SMOOTH | {"HutchPP": "orthonormal"},
        tolerance=0.2,
    )


def several_dtypes():
    net = mlp()
    net[0].float()
    return Case(net, F.cross_entropy, _batches(9), refused="several dtypes")
