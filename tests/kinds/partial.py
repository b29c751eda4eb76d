"""Gauss-Newton matrices that leave something out: linear losses, penalties, models in losses."""

from __future__ import annotations

import torch
from builders import mlp
from kinds.case import Case
from torch import nn
from torch.nn import functional as F

SMOOTH = "tr H may not be tr G"
READS = "reads parameters"


def _batches(*numbers):
    return [(torch.randn(n, 3), torch.randint(2, (n,))) for n in numbers]


def _relu_net(*last):
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), *last)


def log_probabilities():
    """G is that of the logits, which are all that is not linear."""

    def of_logits(case):
        return Case(case.model[:3], F.cross_entropy, case.batches).ggn_traces()

    return Case(
        _relu_net(nn.LogSoftmax(1)),
        F.nll_loss,
        _batches(6, 3),
        right_ggn=of_logits,
        refuses={"exact H": SMOOTH},
    )


def log_probabilities_by_a_function():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return F.log_softmax(self.net(x), dim=-1)

    def of_logits(case):
        logits = Case(case.model.net, F.cross_entropy, case.batches)
        return {f"net.{layer}": trace for layer, trace in logits.ggn_traces().items()}

    return Case(
        Net(), nn.NLLLoss(), _batches(6, 3), right_ggn=of_logits, refuses={"exact H": SMOOTH}
    )


def log_probabilities_against_shares():
    """Targets are distributions, not classes."""
    batches = [(x, torch.rand(len(x), 2).softmax(1)) for x, _ in _batches(6, 3)]

    def loss(outputs, targets):
        return F.kl_div(outputs, targets, reduction="batchmean")

    def of_logits(case):
        return Case(case.model[:3], F.cross_entropy, case.batches).ggn_traces()

    net = _relu_net(nn.LogSoftmax(1))
    return Case(net, loss, batches, right_ggn=of_logits, refuses={"exact H": SMOOTH})


def log_probabilities_per_pixel():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 1)

        def logits(self, x):
            return self.conv(x)

        def forward(self, x):
            return self.logits(x).log_softmax(1)

    class Logits(Net):
        def forward(self, x):
            return self.logits(x)

    def of_logits(case):
        net = Logits()
        net.load_state_dict(case.model.state_dict())
        return Case(net, F.cross_entropy, case.batches).ggn_traces()

    batch = (torch.randn(3, 1, 3, 3), torch.randint(3, (3, 3, 3)))
    return Case(Net(), F.nll_loss, [batch], right_ggn=of_logits, refuses={"exact H": SMOOTH})


def absolute_errors():
    """Piecewise linear: both matrices are zero, which a warning says of G."""

    def loss(outputs, targets):
        return (outputs - 5).abs().mean()

    return Case(_relu_net(), loss, _batches(6), says="linear in the outputs")


def linear_loss():
    """G is zero by definition, which a warning says."""
    return Case(
        mlp(),
        lambda outputs, targets: outputs[:, 0].mean(),
        _batches(6),
        says="linear in the outputs",
        refuses={"exact H": SMOOTH},
    )


def weight_decay_in_the_loss():
    net = _relu_net()

    def loss(outputs, targets):
        penalty = sum(p.square().sum() for p in net.parameters())
        return F.cross_entropy(outputs, targets) + 0.01 * penalty

    return Case(
        net,
        loss,
        _batches(6, 3),
        right=lambda case: _with_decay(case, 0.01),
        right_ggn=lambda case: Case(net, F.cross_entropy, case.batches).ggn_traces(),
        says="leaves the rest out",
        refuses={"exact H": READS, "R": READS},
    )


def _with_decay(case, rate):
    """Traces without the penalty, and its 2·rate for every parameter."""
    plain = Case(case.model, F.cross_entropy, case.batches).traces()
    sizes = dict.fromkeys(plain, 0)
    for name, p in case.model.named_parameters():
        sizes[name.rpartition(".")[0]] += p.numel()
    return {layer: trace + 2 * rate * sizes[layer] for layer, trace in plain.items()}


def physics_in_the_loss():
    """The loss calls the model again, and differentiates it in its inputs."""
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    x = torch.linspace(-1, 1, 6)[:, None]

    def loss(outputs, targets):
        at = x.clone().requires_grad_()
        u = net(at)
        (slope,) = torch.autograd.grad(u.sum(), at, create_graph=True)
        return (outputs - targets).square().mean() + (slope + u).square().mean()

    class Alone(nn.Module):
        """The whole risk as outputs of the model."""

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            h = torch.tanh(self.net[0](x))
            slope = ((1 - h**2) * self.net[0].weight[:, 0]) @ self.net[2].weight.T
            u = self.net(x)
            return torch.cat([u, slope + u], dim=1)

    def summed(outputs, targets):
        return (outputs[:, :1] - targets).square().mean() + outputs[:, 1:].square().mean()

    def whole(case):
        found = Case(Alone(), summed, case.batches).traces()
        return {layer.removeprefix("net."): trace for layer, trace in found.items()}

    return Case(
        net,
        loss,
        [(x, x.sin())],
        right=whole,
        right_ggn=lambda case: Case(
            net, lambda f, y: (f - y).square().mean(), case.batches
        ).ggn_traces(),
        says="leaves the rest out|as it stands",
        refuses={"exact H": SMOOTH, "R": READS},
    )


def loss_that_is_not_convex():
    """Squares of the sigmoid of the outputs: no root of G, but products."""
    no = "not convex"

    def loss(outputs, targets):
        return ((9 * outputs[:, 0]).sigmoid() - targets).square().mean()

    return Case(
        _relu_net(),
        loss,
        _batches(8, 4),
        refuses={
            "exact H": no,
            "LogitProbeTrace": no,
            "LogitProbeTrace of the sum": no,
            "exact_traces of G": no,
            "sample_traces of G": no,
            "R": no,
        },
    )
