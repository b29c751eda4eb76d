"""Problems, models and data that several test files build."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import nn

from hesstheory import (
    zoo,
)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def data(num_samples=8, num_in=3, num_out=2, dtype=torch.float64):
    generator = stream()
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    return draw(num_samples, num_in), draw(num_samples, num_out)


def halves(inputs, targets):
    return [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Calls(nn.Module):
    """A module that is a function of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def between_layers(function):
    return nn.Sequential(nn.Linear(3, 4), Calls(function), nn.Linear(4, 2))


def poisoned(model, value):
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = value
    return model


def attention(**options):
    return nn.MultiheadAttention(2, 1, **options)


class AttentionHead(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.embed, self.last, self.kernel = nn.Linear(3, 6), nn.Linear(2, 2), kernel

    def forward(self, x):
        query, key, value = self.embed(x)[:, None].chunk(3, dim=-1)
        return self.last(self.kernel(query, key, value)[:, 0])


def attention_by_hand(query, key, value):
    return (query @ key.mT / key.shape[-1] ** 0.5).softmax(-1) @ value


def classes(values):
    return torch.tensor(values)


@lru_cache
def problem_of(network, num_samples=33):
    return zoo.problem(network, stream(), num_samples=num_samples)


def columns(problem, count, seed=1):
    return torch.randn(problem.num_params, count, generator=stream(seed))


def relative_error(found, expected):
    assert found.shape == expected.shape
    assert found.dtype is expected.dtype is torch.float64
    return float((found - expected).norm() / expected.norm())
