"""Complex numbers in outputs, parameters, buffers and in between."""

from __future__ import annotations

import torch
from kinds.case import Case
from torch import nn
from torch.nn import functional as F

CURE = "view_as_real"
NO_G = {"G": CURE, "R": CURE, "exact H": CURE}


class Mixed(nn.Module):
    """A real matrix on complex inputs."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 3, bias=False)

    def forward(self, z):
        return z @ self.mix.weight.T.to(z.dtype)


def _pairs():
    return torch.fft.rfft(torch.randn(10, 6)), torch.randn(10, 3, dtype=torch.cdouble)


def _squares(outputs, targets):
    return (outputs - targets).abs().square().mean()


def complex_outputs():
    return Case(Mixed(), _squares, [_pairs()], refuses=NO_G)


def complex_outputs_as_real_pairs():
    def loss(outputs, targets):
        return _squares(torch.view_as_complex(outputs), targets)

    return Case(Mixed(), loss, [_pairs()], {"outputs": torch.view_as_real})


def complex_parameters():
    return Case(nn.Linear(4, 3, dtype=torch.cdouble), _squares, [_pairs()], refused=CURE)


class Turned(nn.Module):
    """A complex buffer between two real layers."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.b = nn.Linear(3, 2)
        self.register_buffer("phases", torch.polar(torch.ones(3), torch.arange(3.0)))

    def forward(self, x):
        return self.b((torch.relu(self.a(x)) * self.phases).real)


def complex_buffer():
    return Case(Turned(), F.cross_entropy, [(torch.randn(9, 4), torch.randint(2, (9,)))])


def complex_buffer_in_float32():
    net = Turned()
    for part in (net.a, net.b):
        part.float()
    net.phases = net.phases.to(torch.complex64)
    return Case(
        net,
        F.cross_entropy,
        [(torch.randn(9, 4, dtype=torch.float32), torch.randint(2, (9,)))],
    )


class Filtered(nn.Module):
    """A filter in the frequency domain."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(4))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.fft.irfft(self.gain * torch.fft.rfft(x), n=6))


def filter_in_the_frequency_domain():
    return Case(Filtered(), F.cross_entropy, [(torch.randn(9, 6), torch.randint(2, (9,)))])
