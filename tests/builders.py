"""Problems, models and data that several test files build."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from hesstheory import hessian, zoo


def stream(seed=0):
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


def data(num_samples=8, num_in=3, num_out=2, dtype=torch.float64):
    """Inputs and targets of a regression, the same at every call."""
    generator = stream()
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    return draw(num_samples, num_in), draw(num_samples, num_out)


def halves(inputs, targets):
    """Two batches of unequal sizes."""
    return [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]


def mlp():
    """A net for `data`; 26 parameters in two layers."""
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Calls(nn.Module):
    """A module that is a function of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def between_layers(function):
    """A net that applies a function between two layers."""
    return nn.Sequential(nn.Linear(3, 4), Calls(function), nn.Linear(4, 2))


def poisoned(model, value):
    """The model, with one entry of its first parameter replaced."""
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = value
    return model


def attention(**options):
    """PyTorch's own attention module."""
    return nn.MultiheadAttention(2, 1, **options)


class AttentionHead(nn.Module):
    """One head between two layers, by the given kernel."""

    def __init__(self, kernel):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.last = nn.Linear(2, 2)
        self.kernel = kernel

    def forward(self, x):
        query, key, value = self.embed(x)[:, None].chunk(3, dim=-1)
        return self.last(self.kernel(query, key, value)[:, 0])


def attention_by_hand(query, key, value):
    """The kernel in plain operations."""
    return (query @ key.mT / key.shape[-1] ** 0.5).softmax(-1) @ value


def classes(values):
    """Targets of a classification."""
    return torch.tensor(values)


@lru_cache
def problem_of(network, num_samples=33):
    """A small problem of the zoo, built once for all tests."""
    return zoo.problem(network, stream(), num_samples=num_samples)


def columns(problem, count, seed=1):
    """Random vectors, as the columns of a matrix."""
    return torch.randn(problem.num_params, count, generator=stream(seed))


def relative_error(found, expected):
    """‖found − expected‖ / ‖expected‖ of two float64 tensors of one shape."""
    assert found.shape == expected.shape
    assert found.dtype is expected.dtype is torch.float64
    return float((found - expected).norm() / expected.norm())


@lru_cache
def dense(network, matrix=hessian):
    """A matrix of a small problem of the zoo, in full."""
    return matrix(problem_of(network)).to_dense()


def block_traces(network, matrix=hessian):
    """Its traces by block."""
    H = dense(network, matrix)
    return np.array([float(H[i][:, i].trace()) for i in problem_of(network).index.values()])


def close(found, expected):
    """Two results by block agree but for rounding, whatever kind of mapping they are."""
    found = pd.Series(dict(found))
    expected = pd.Series(dict(expected))
    assert list(found.index) == list(expected.index)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def drawn(model, generator):
    """The model with parameters from the generator, in float64."""
    model = model.to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


class Shaped(nn.Module):
    """Three linear layers around what a function does to the batch."""

    def __init__(self, forward):
        super().__init__()
        self.a = nn.Linear(5, 4)
        self.b = nn.Linear(4, 3)
        self.c = nn.Linear(4, 4)
        self.of = forward

    def forward(self, x):
        return self.of(self, x)
