"""Small networks with known Hessians, prescribed Hessians, and ties of known bias.

Every network of `SMALL` has at most 127 parameters, so that Hadamard designs enumerate its probe variance exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory.problem import Batch, Problem
from hesstheory.zoo.data import Data, digit_images, digit_rows, digits, digits_to_reconstruct
from hesstheory.zoo.initial import blank, initialise, train_without_dropout

# --- networks ---------------------------------------------------------------------------------------------------------


def _linear(num_in: int, num_out: int, bias: bool = True) -> nn.Linear:
    return blank(nn.Linear, num_in, num_out, bias=bias)


def _mlp(
    *widths: int, activation: Callable[[], nn.Module], norm: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """layer1, act1, ..., layerL; `norm` puts a module after every hidden layer, before its activation."""
    net = nn.Sequential()
    for depth, (num_in, num_out) in enumerate(pairwise(widths), start=1):
        net.add_module(f"layer{depth}", _linear(num_in, num_out))
        if depth < len(widths) - 1:
            if norm is not None:
                net.add_module(f"norm{depth}", norm(num_out))
            net.add_module(f"act{depth}", activation())
    return net


def _batch_norm(width: int) -> nn.Module:
    return blank(nn.BatchNorm1d, width)


def _chain(*modules: tuple[str, nn.Module]) -> nn.Sequential:
    net = nn.Sequential()
    for name, module in modules:
        net.add_module(name, module)
    return net


def _small_cnn() -> nn.Sequential:
    return _chain(
        ("conv1", blank(nn.Conv2d, 1, 2, 3)),
        ("norm1", blank(nn.BatchNorm2d, 2)),
        ("act1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", blank(nn.Conv2d, 2, 4, 2)),
        ("norm2", blank(nn.BatchNorm2d, 4)),
        ("act2", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("head", _linear(16, 3)),
    )


def _digits_cnn() -> nn.Sequential:
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
        ("head", _linear(80, 10)),
    )


class ResidualBlock(nn.Module):
    """x + W₂ φ(W₁ x + b₁) + b₂."""

    def __init__(self, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner, self.act, self.outer = _linear(width, width), activation(), _linear(width, width)

    def forward(self, x: Float[Tensor, "samples width"]) -> Float[Tensor, "samples width"]:
        out: Tensor = x + self.outer(self.act(self.inner(x)))
        return out


def _residual(num_in: int, width: int, num_out: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    return _chain(
        ("stem", _linear(num_in, width)),
        ("block1", ResidualBlock(width, activation)),
        ("block2", ResidualBlock(width, activation)),
        ("head", _linear(width, num_out)),
    )


class Recurrent(nn.Module):
    """h_t = φ(A x_t + b + W h_{t−1}), outputs C h_T + c: one use of W for every step but the first."""

    def __init__(self, num_in: int, width: int, num_out: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.input, self.recurrent = _linear(num_in, width), _linear(width, width, bias=False)
        self.act, self.head = activation(), _linear(width, num_out)

    def forward(self, rows: Float[Tensor, "samples steps num_in"]) -> Float[Tensor, "samples num_out"]:
        first, *rest = rows.unbind(1)
        state = self.act(self.input(first))
        for row in rest:
            state = self.act(self.input(row) + F.linear(state, self.recurrent.weight))
        out: Tensor = self.head(state)
        return out


class Transposed(nn.Module):
    """x ↦ Wᵀx + b with the weight of another layer, shared as the one `nn.Parameter` that it is."""

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
        self.up, self.act = _linear(width, code), activation()
        self.down = Transposed(self.up.weight)

    def forward(self, x: Float[Tensor, "samples width"]) -> Float[Tensor, "samples width"]:
        out: Tensor = self.down(self.act(self.up(x)))
        return out


class Attention(nn.Module):
    """A transformer block of one head over eight row tokens, mean over tokens, linear head; positions are fixed."""

    positions: Tensor

    def __init__(
        self, width: int, hidden: int, num_out: int, activation: Callable[[], nn.Module], *, norm: bool
    ) -> None:
        super().__init__()
        self.embed = _linear(8, width)
        self.register_buffer("positions", _positions(8, width))
        self.norm1: nn.Module = blank(nn.LayerNorm, width) if norm else nn.Identity()
        self.query, self.key = _linear(width, width, bias=False), _linear(width, width, bias=False)
        self.value, self.output = _linear(width, width, bias=False), _linear(width, width, bias=False)
        self.norm2: nn.Module = blank(nn.LayerNorm, width) if norm else nn.Identity()
        self.expand, self.act, self.contract = _linear(width, hidden), activation(), _linear(hidden, width)
        self.head = _linear(width, num_out)

    def attend(self, x: Float[Tensor, "samples tokens width"]) -> Float[Tensor, "samples tokens width"]:
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


# --- the registry -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network, its data and its loss, with what theory says about its weights.

    `piecewise_linear`: the outputs are piecewise linear in each single scalar weight, so diag H = diag G (claim G1).
    `tied`: canonical names of tensors that enter the forward pass more than once; `series`: those of them that meet
    themselves along one path, so that outputs are polynomial in them. A shared convolution kernel is one use.
    `train_mode`: the model is left in train mode, where its risk is no mean over samples (claim T16).
    `gain`: initial weights are N(0, gain²/fan-in).
    """

    name: str
    build: Callable[[], nn.Module]
    data: Callable[..., Data]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    piecewise_linear: bool = False
    tied: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    train_mode: bool = False
    gain: float = 1.0
    learning_rate: float = 0.02


def _registry(*networks: Network) -> Mapping[str, Network]:
    return {network.name: network for network in networks}


# Two plain ReLU units would both be dead for one draw in twenty.
_leaky_relu = partial(nn.LeakyReLU, 0.1)
_plane = partial(digits, 2, 2)
_plane3 = partial(digits, 2, 3)
_four, _six = partial(digits, 4, 3), partial(digits, 6, 3)
_images, _rows = partial(digit_images, 3), partial(digit_rows, 3)
_rnn_ties = ("input.weight", "input.bias", "recurrent.weight")

SMALL = _registry(
    Network("tiny_mlp", partial(_mlp, 2, 2, 2, activation=nn.Tanh), _plane),
    Network("tiny_relu", partial(_mlp, 2, 2, 3, activation=_leaky_relu), _plane3, piecewise_linear=True),
    Network("tanh_mlp", partial(_mlp, 4, 6, 5, 3, activation=nn.Tanh), _four),
    Network("gelu_mlp", partial(_mlp, 4, 6, 5, 3, activation=nn.GELU), _four),
    Network("relu_mlp", partial(_mlp, 4, 6, 5, 3, activation=nn.ReLU), _four, piecewise_linear=True),
    Network("cnn", _small_cnn, _images, piecewise_linear=True),
    Network("residual", partial(_residual, 6, 4, 3, nn.SiLU), _six),
    Network("rnn", partial(Recurrent, 8, 5, 3, nn.Tanh), _rows, tied=_rnn_ties, series=("recurrent.weight",)),
    Network(
        "relu_rnn",
        partial(Recurrent, 8, 5, 3, nn.ReLU),
        _rows,
        tied=_rnn_ties,
        series=("recurrent.weight",),
        gain=0.6,  # at 1 the state grows without bound for one draw in twenty
    ),
    Network(
        "autoencoder",
        partial(TiedAutoencoder, 8, 5, nn.Tanh),
        partial(digits_to_reconstruct, 8, 3),
        F.mse_loss,
        tied=("up.weight",),
        series=("up.weight",),
    ),
    Network(
        "relu_autoencoder",
        partial(TiedAutoencoder, 8, 5, nn.ReLU),
        partial(digits_to_reconstruct, 8, 3),
        F.mse_loss,
        tied=("up.weight",),
        series=("up.weight",),
    ),
    Network("attention", partial(Attention, 3, 4, 3, nn.GELU, norm=True), _rows),
    Network("plain_attention", partial(Attention, 3, 4, 3, nn.ReLU, norm=False), _rows),
)

MEDIUM = _registry(
    Network("digits_mlp", partial(_mlp, 64, 32, 32, 10, activation=nn.Tanh), digits),
    Network("digits_relu_mlp", partial(_mlp, 64, 32, 32, 10, activation=nn.ReLU), digits, piecewise_linear=True),
    Network("digits_cnn", _digits_cnn, digit_images, piecewise_linear=True),
    Network("wide_mlp", partial(_mlp, 64, 69, 69, 10, activation=nn.Tanh), digits),
)

TRAIN_MODE = _registry(
    Network("batchnorm_train", partial(_mlp, 4, 6, 5, 3, activation=nn.Tanh, norm=_batch_norm), _four, train_mode=True),
    Network(
        "dropout_mlp",
        partial(_mlp, 4, 8, 6, 3, activation=nn.Tanh, norm=lambda width: nn.Dropout(0.25)),
        _four,
        train_mode=True,
    ),
)


def network(name: str) -> Network:
    """The network of that name; raises KeyError with the known names."""
    known = {**SMALL, **MEDIUM, **TRAIN_MODE}
    if name not in known:
        raise KeyError(f"no network {name!r}; the networks are {', '.join(known)}")
    return known[name]


# --- from a name to a problem -----------------------------------------------------------------------------------------


def problem(
    name: str,
    generator: torch.Generator,
    *,
    steps: int = 0,
    num_samples: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """The risk of a named network, after `steps` of training, on the first samples of its data (33 by default)."""
    chosen = network(name)
    model = trained(name, generator, steps, dtype=dtype)
    samples = batches(name, num_samples, batch_sizes, dtype=dtype)
    return Problem(model, chosen.loss, samples, allow_train_mode=chosen.train_mode)


def batches(
    name: str,
    num_samples: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> list[Batch]:
    """The first samples of a network's data, in batches of the given sizes; by default a big one and a small one."""
    total = num_samples if num_samples is not None else sum(batch_sizes) if batch_sizes is not None else 33
    data = network(name).data(num_samples=total, dtype=dtype)
    return _split(data.inputs, data.targets, batch_sizes)


def trained(name: str, generator: torch.Generator, steps: int, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network drawn from the generator and trained for `steps` on all of its data; nothing is cached.

    Runs with the same generator state pass through the same points: 300 steps go on where 100 steps end.
    """
    chosen = network(name)
    if steps < 0:
        raise ValueError(f"steps is {steps}: pass 0 for the untrained network, or more")
    model, data = chosen.build().to(dtype), chosen.data(dtype=dtype)
    initialise(model, data.inputs, generator, gain=chosen.gain)
    _descend(model, chosen, data, steps, generator)
    return model.train(chosen.train_mode)


# --- training ---------------------------------------------------------------------------------------------------------


def _descend(model: nn.Module, network: Network, data: Data, steps: int, generator: torch.Generator) -> None:
    """Gradient descent with momentum 0.9 on mini-batches of 32 drawn with replacement."""
    train_without_dropout(model)
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    for _ in range(steps):
        rows = torch.randint(len(data.inputs), (32,), generator=generator)
        with torch.enable_grad():
            loss = network.loss(model(data.inputs[rows]), data.targets[rows])
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            velocity.mul_(0.9).add_(gradient)
            parameter.data.sub_(network.learning_rate * velocity)


def _split(inputs: Tensor, targets: Tensor, batch_sizes: Sequence[int] | None) -> list[Batch]:
    total = len(inputs)
    if batch_sizes is None:
        big = math.ceil(0.6 * total)
        batch_sizes = [big, total - big] if big < total else [total]
    if sum(batch_sizes) != total or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes {list(batch_sizes)} must be positive and add up to the {total} samples")
    sizes = list(batch_sizes)
    return list(zip(torch.split(inputs, sizes), torch.split(targets, sizes), strict=True))


# --- ties of known bias -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TiedPair:
    """One weight used by two modules and what independent probes for the two get wrong.

    `trace` is tr H_w; the estimate with independent probes is off by `bias` = −2 tr U_12 (claim T7).
    """

    name: str
    problem: Problem
    trace: float
    bias: float


class TwoUses(nn.Module):
    """W x₁ + W x₂ (parallel, inputs n×2×2) or W W x (series, inputs n×2), W 2×2, in modules `first` and `second`."""

    def __init__(self, weight: Float[Tensor, "2 2"], *, series: bool) -> None:
        super().__init__()
        self.series = series
        self.first, self.second = (_linear(2, 2, bias=False) for _ in range(2))
        self.first.weight = self.second.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Float[Tensor, "samples 2"]:
        if self.series:
            twice: Tensor = self.second(self.first(x))
            return twice
        parallel: Tensor = self.first(x[:, 0]) + self.second(x[:, 1])
        return parallel


def tied_pairs(sign: int, generator: torch.Generator) -> tuple[TiedPair, TiedPair]:
    """A parallel and a series tie whose bias has the given sign (+1, −1 or 0), each with d = 2 and loss ½‖f − y‖².

    Parallel, f = W x₁ + W x₂: tr U_rs = d·mean x_r·x_s, so tr H = d·mean ‖x₁ + x₂‖² and bias = −2d·mean x₁·x₂,
    set by x₂ = −½·sign·x₁ + x₁ turned by a right angle.
    Series, f = W W x: tr U_12 = mean(tr(W) xᵀWx + rᵀx) and tr U_11 + tr U_22 = mean(‖W‖²‖x‖² + d‖Wx‖²), with the
    residual r = f − y. Targets y = WWx − c x give r = c x; c sets the bias to `sign` itself.
    """
    _check_sign(sign)
    W, x = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 2), (33, 2)))
    return _parallel_pair(sign, W, x), _series_pair(sign, W, x)


def _check_sign(sign: int) -> None:
    if sign not in (-1, 0, 1):
        raise ValueError(f"sign is {sign}: pass -1, 0 or 1")


def _parallel_pair(sign: int, W: Float[Tensor, "2 2"], x: Float[Tensor, "samples 2"]) -> TiedPair:
    turned = torch.stack([-x[:, 1], x[:, 0]], 1)
    other = turned - 0.5 * sign * x
    # The targets do not reach the Hessian of a linear model.
    risk = Problem(TwoUses(W, series=False), half_squared_error, _split(torch.stack([x, other], 1), turned, None))
    mean_square = float(x.square().sum(1).mean())
    return TiedPair("parallel", risk, 2 * float((x + other).square().sum(1).mean()), 2 * sign * mean_square)


def _series_pair(sign: int, W: Float[Tensor, "2 2"], x: Float[Tensor, "samples 2"]) -> TiedPair:
    once = x @ W.T
    mean_square, mean_form = x.square().sum(1).mean(), W.trace() * (x * once).sum(1).mean()
    c = (-sign / 2 - mean_form) / mean_square
    own = W.square().sum() * mean_square + 2 * once.square().sum(1).mean()
    risk = Problem(TwoUses(W, series=True), half_squared_error, _split(x, once @ W.T - c * x, None))
    return TiedPair("series", risk, float(own) - sign, float(sign))


def linear_autoencoder(sign: int, generator: torch.Generator) -> TiedPair:
    """A tied autoencoder x ↦ WᵀW x whose bias has the given sign (+1, −1 or 0), reconstructing its inputs.

    W = c Q with k orthonormal rows; s = mean ‖Qx‖², t = mean ‖x‖². tr U_12 = (k+1) c² s − k t, for the residual
    r = c²QᵀQx − x enters k times, and tr U_11 + tr U_22 = c² (k t + d s). Hence the bias 2 (k t − (k+1) c² s): a small
    W is over-estimated, a large one under-estimated, and c² = k t/((k+1) s) is the boundary.
    """
    _check_sign(sign)
    d, k = 3, 2
    model = TiedAutoencoder(d, k, nn.Identity).double()
    x = torch.randn(33, d, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0].mT
    s, t = (float(v.square().sum(1).mean()) for v in (x @ Q.mT, x))
    c2 = (1 - sign / 2) * k * t / ((k + 1) * s)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.up.weight.copy_(c2**0.5 * Q)
    bias = sign * k * t
    return TiedPair(
        "linear autoencoder", Problem(model, half_squared_error, _split(x, x, None)), c2 * (k * t + d * s) - bias, bias
    )


def half_squared_error(outputs: Float[Tensor, "samples d"], targets: Float[Tensor, "samples d"]) -> Float[Tensor, ""]:
    """½ ‖f − y‖², mean over samples: its Hessian in the outputs is the identity."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


# --- prescribed Hessians ----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A named vector of parameters."""

    def __init__(self, theta: Float[Tensor, " size"]) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())


class QuadraticForms(nn.Module):
    """½ θᵀ H_n θ for a batch of matrices H_n, with θ cut into named blocks."""

    def __init__(self, blocks: Mapping[str, Float[Tensor, " size"]]) -> None:
        super().__init__()
        for name, theta in blocks.items():
            self.add_module(name, Block(theta))

    def forward(self, hessians: Float[Tensor, "samples params params"]) -> Float[Tensor, " samples"]:
        theta = torch.cat(list(self.parameters()))
        return 0.5 * torch.einsum("i,nij,j->n", theta, hessians, theta)


def mean_output(outputs: Float[Tensor, " samples"], targets: Tensor) -> Float[Tensor, ""]:
    """The mean of the outputs, whatever the targets."""
    return outputs.mean()


def prescribed(
    hessians: Float[Tensor, "samples params params"],
    sizes: Sequence[int] | Mapping[str, int],
    generator: torch.Generator,
    *,
    theta: Float[Tensor, " params"] | None = None,
    batch_sizes: Sequence[int] | None = None,
) -> Problem:
    """A problem whose sample n has the Hessian `hessians[n]`, in blocks of the given sizes, at any θ.

    Blocks are named by the mapping's keys, or block0, block1, ...; θ is standard normal unless given. The loss is
    linear in the outputs, so all of the curvature is residual: G = 0.
    """
    named = dict(sizes) if isinstance(sizes, Mapping) else {f"block{i}": size for i, size in enumerate(sizes)}
    if theta is None:
        theta = torch.randn(sum(named.values()), generator=generator, dtype=torch.float64).to(hessians)
    _check_prescription(hessians, named, theta)
    blocks = dict(zip(named, torch.split(theta, list(named.values())), strict=True))
    samples = _split(hessians, hessians.new_zeros(len(hessians)), batch_sizes)
    return Problem(QuadraticForms(blocks), mean_output, samples)


def _check_prescription(hessians: Tensor, sizes: Mapping[str, int], theta: Tensor) -> None:
    if hessians.ndim != 3 or hessians.shape[1] != hessians.shape[2] or not len(hessians):
        raise ValueError(f"hessians has shape {tuple(hessians.shape)}: pass N×P×P, one matrix per sample")
    if not torch.equal(hessians, hessians.mT):
        raise ValueError("hessians are not symmetric: pass (H + H.mT) / 2")
    if sum(sizes.values()) != hessians.shape[1] or min(sizes.values()) < 1:
        raise ValueError(f"sizes {dict(sizes)} must be positive and add up to {hessians.shape[1]} parameters")
    if theta.shape != hessians.shape[2:]:
        raise ValueError(
            f"theta has shape {tuple(theta.shape)}: pass one entry for each of {hessians.shape[1]} parameters"
        )
