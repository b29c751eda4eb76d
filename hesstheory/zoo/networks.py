"""Architectures of small networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory.zoo.initial import blank


def linear(num_in: int, num_out: int, bias: bool = True) -> nn.Linear:
    """A blank linear layer."""
    return blank(nn.Linear, num_in, num_out, bias=bias)


def mlp(
    *widths: int,
    activation: Callable[[], nn.Module],
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """layer1, act1, ..., layerL.

    `norm` puts a module after every hidden layer, before its activation.
    """
    net = nn.Sequential()
    for depth, (num_in, num_out) in enumerate(pairwise(widths), start=1):
        net.add_module(f"layer{depth}", linear(num_in, num_out))
        if depth < len(widths) - 1:
            if norm is not None:
                net.add_module(f"norm{depth}", norm(num_out))
            net.add_module(f"act{depth}", activation())
    return net


def batch_norm(width: int) -> nn.Module:
    """A blank batch norm of vectors."""
    return blank(nn.BatchNorm1d, width)


def _chain(*modules: tuple[str, nn.Module]) -> nn.Sequential:
    """Named modules one after another."""
    net = nn.Sequential()
    for name, module in modules:
        net.add_module(name, module)
    return net


def small_cnn() -> nn.Sequential:
    """Two convolutions with batch norm for images of 8×8 pixels, three classes, 119 parameters."""
    return _chain(
        ("conv1", blank(nn.Conv2d, 1, 2, 3)),
        ("norm1", blank(nn.BatchNorm2d, 2)),
        ("act1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", blank(nn.Conv2d, 2, 4, 2)),
        ("norm2", blank(nn.BatchNorm2d, 4)),
        ("act2", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("head", linear(16, 3)),
    )


def digits_cnn() -> nn.Sequential:
    """Two padded convolutions with batch norm for all ten digits."""
    return _chain(
        ("conv1", blank(nn.Conv2d, 1, 10, 3, padding=1)),
        ("norm1", blank(nn.BatchNorm2d, 10)),
        ("act1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", blank(nn.Conv2d, 10, 20, 3, padding=1)),
        ("norm2", blank(nn.BatchNorm2d, 20)),
        ("act2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("head", linear(80, 10)),
    )


class ResidualBlock(nn.Module):
    """x + W₂ φ(W₁ x + b₁) + b₂."""

    def __init__(self, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner = linear(width, width)
        self.act = activation()
        self.outer = linear(width, width)

    def forward(self, x: Float[Tensor, "samples width"]) -> Float[Tensor, "samples width"]:
        out: Tensor = x + self.outer(self.act(self.inner(x)))
        return out


def residual_network(
    num_in: int, width: int, num_out: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """A stem, two residual blocks and a head, all linear."""
    return _chain(
        ("stem", linear(num_in, width)),
        ("block1", ResidualBlock(width, activation)),
        ("block2", ResidualBlock(width, activation)),
        ("head", linear(width, num_out)),
    )


class Recurrent(nn.Module):
    """h_t = φ(A x_t + b + W h_{t−1}), outputs C h_T + c.

    W is used once for every step but the first.
    """

    def __init__(
        self, num_in: int, width: int, num_out: int, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.input = linear(num_in, width)
        self.recurrent = linear(width, width, bias=False)
        self.act = activation()
        self.head = linear(width, num_out)

    def forward(
        self, rows: Float[Tensor, "samples steps num_in"]
    ) -> Float[Tensor, "samples num_out"]:
        first, *rest = rows.unbind(1)
        state = self.act(self.input(first))
        for row in rest:
            state = self.act(self.input(row) + F.linear(state, self.recurrent.weight))
        out: Tensor = self.head(state)
        return out


class Transposed(nn.Module):
    """x ↦ Wᵀx + b with the weight of another layer, which both hold as one `nn.Parameter`."""

    def __init__(self, weight: Float[Tensor, "code width"]) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.empty(weight.shape[1]))

    def forward(self, x: Float[Tensor, "samples code"]) -> Float[Tensor, "samples width"]:
        return F.linear(x, self.weight.t(), self.bias)


class TiedAutoencoder(nn.Module):
    """x ↦ Wᵀ φ(W x + b) + c, W named both `up.weight` and `down.weight`."""

    def __init__(self, width: int, code: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.up = linear(width, code)
        self.act = activation()
        self.down = Transposed(self.up.weight)

    def forward(self, x: Float[Tensor, "samples width"]) -> Float[Tensor, "samples width"]:
        out: Tensor = self.down(self.act(self.up(x)))
        return out


class Attention(nn.Module):
    """A transformer block of one head over eight row tokens, their mean, and a linear head.

    Positions are fixed.
    """

    positions: Tensor

    def __init__(
        self,
        width: int,
        hidden: int,
        num_out: int,
        activation: Callable[[], nn.Module],
        *,
        norm: bool,
    ) -> None:
        super().__init__()
        self.embed = linear(8, width)
        self.register_buffer("positions", _positions(8, width))
        self.norm1: nn.Module = blank(nn.LayerNorm, width) if norm else nn.Identity()
        self.query = linear(width, width, bias=False)
        self.key = linear(width, width, bias=False)
        self.value = linear(width, width, bias=False)
        self.output = linear(width, width, bias=False)
        self.norm2: nn.Module = blank(nn.LayerNorm, width) if norm else nn.Identity()
        self.expand = linear(width, hidden)
        self.act = activation()
        self.contract = linear(hidden, width)
        self.head = linear(width, num_out)

    def attend(
        self, x: Float[Tensor, "samples tokens width"]
    ) -> Float[Tensor, "samples tokens width"]:
        """softmax(QKᵀ/√d) V, mapped to the width of the block."""
        scores = self.query(x) @ self.key(x).mT / math.sqrt(x.shape[-1])
        out: Tensor = self.output(scores.softmax(-1) @ self.value(x))
        return out

    def forward(self, rows: Float[Tensor, "samples 8 8"]) -> Float[Tensor, "samples num_out"]:
        x = self.embed(rows) + self.positions
        x = x + self.attend(self.norm1(x))
        x = x + self.contract(self.act(self.expand(self.norm2(x))))
        out: Tensor = self.head(x.mean(1))
        return out


def _positions(num_tokens: int, width: int) -> Float[Tensor, "tokens width"]:
    """cos(π(t + ½)k / T), k = 1..width: orthogonal, so that no two tokens look alike."""
    step = torch.arange(num_tokens, dtype=torch.float64)[:, None] + 0.5
    return torch.cos(math.pi * step * torch.arange(1, width + 1) / num_tokens)
