"""One registry of small networks, with what theory says of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory.run.names import no_such
from hesstheory.zoo.data import Data, digit_images, digit_rows, digits, digits_to_reconstruct
from hesstheory.zoo.full_scale import FULL_SCALE
from hesstheory.zoo.networks import (
    Attention,
    Recurrent,
    TiedAutoencoder,
    batch_norm,
    digits_cnn,
    mlp,
    residual_network,
    small_cnn,
)


@dataclass(frozen=True)
class Network:
    """A network, its data and its loss, with what theory says about its weights.

    Parameters
    ----------
    name
        In the registry.
    build
        Makes the network with uninitialised parameters.
    data
        Its data; options are `num_samples` and `dtype`.
    loss
        `loss(outputs, targets)`, the mean over samples.
    piecewise_linear
        The outputs are piecewise linear in each single scalar weight, so diag H = diag G (claim
        G1).
    tied
        Canonical names of tensors that enter the forward pass more than once. A shared convolution
        kernel is one use.
    series
        Those of them that meet themselves along one path, so that outputs are polynomial in them.
    train_mode
        The model is left in train mode, where its risk is no mean over samples (claim T16).
    gain
        Initial weights are N(0, gain²/fan-in).
    learning_rate
        Of its training.

    Examples
    --------
    >>> network("relu_rnn").series
    ('recurrent.weight',)
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
    """Networks by name."""
    return {network.name: network for network in networks}


# Two plain ReLU units would both be dead for one draw in twenty.
_leaky_relu = partial(nn.LeakyReLU, 0.1)

# Data by the number of features and of classes: few, so that Hessians stay small.
_plane = partial(digits, 2, 2)
_plane3 = partial(digits, 2, 3)
_four = partial(digits, 4, 3)
_six = partial(digits, 6, 3)
_images = partial(digit_images, 3)
_rows = partial(digit_rows, 3)

_rnn_ties = ("input.weight", "input.bias", "recurrent.weight")

# Hessians of these are dense matrices of at most 123 rows.
SMALL = _registry(
    Network("tiny_mlp", partial(mlp, 2, 2, 2, activation=nn.Tanh), _plane),
    Network(
        "tiny_relu", partial(mlp, 2, 2, 3, activation=_leaky_relu), _plane3, piecewise_linear=True
    ),
    Network("tanh_mlp", partial(mlp, 4, 6, 5, 3, activation=nn.Tanh), _four),
    Network("gelu_mlp", partial(mlp, 4, 6, 5, 3, activation=nn.GELU), _four),
    Network("relu_mlp", partial(mlp, 4, 6, 5, 3, activation=nn.ReLU), _four, piecewise_linear=True),
    Network("cnn", small_cnn, _images, piecewise_linear=True),
    Network("residual", partial(residual_network, 6, 4, 3, nn.SiLU), _six),
    Network(
        "rnn",
        partial(Recurrent, 8, 5, 3, nn.Tanh),
        _rows,
        tied=_rnn_ties,
        series=("recurrent.weight",),
    ),
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

# On all ten digits, with thousands of parameters.
MEDIUM = _registry(
    Network("digits_mlp", partial(mlp, 64, 32, 32, 10, activation=nn.Tanh), digits),
    Network(
        "digits_relu_mlp",
        partial(mlp, 64, 32, 32, 10, activation=nn.ReLU),
        digits,
        piecewise_linear=True,
    ),
    Network("digits_cnn", digits_cnn, digit_images, piecewise_linear=True),
    Network("wide_mlp", partial(mlp, 64, 69, 69, 10, activation=nn.Tanh), digits),
)

# Measured in train mode, in which samples or draws meet.
TRAIN_MODE = _registry(
    Network(
        "batchnorm_train",
        partial(mlp, 4, 6, 5, 3, activation=nn.Tanh, norm=batch_norm),
        _four,
        train_mode=True,
    ),
    Network(
        "dropout_mlp",
        partial(mlp, 4, 8, 6, 3, activation=nn.Tanh, norm=lambda width: nn.Dropout(0.25)),
        _four,
        train_mode=True,
    ),
)


def network(name: str) -> Network:
    """The small or medium network of that name, with its data, loss and ties.

    Parameters
    ----------
    name
        A key of `SMALL`, `MEDIUM` or `TRAIN_MODE`.

    Returns
    -------
    Network
        Its entry; `build()` makes the model.

    Raises
    ------
    KeyError
        If there is none; the message holds the known names.

    See Also
    --------
    hesstheory.zoo.full_scale_problem : ResNet-18, ResNet-34 and VGG-11.

    Examples
    --------
    >>> network("tanh_mlp").piecewise_linear
    False
    >>> network("resnet18")
    Traceback (most recent call last):
        ...
    KeyError: "'resnet18' is a full-scale network: zoo.full_scale_problem builds it"
    """
    known = {**SMALL, **MEDIUM, **TRAIN_MODE}
    if name in FULL_SCALE:
        raise KeyError(f"{name!r} is a full-scale network: zoo.full_scale_problem builds it")
    if name not in known:
        raise KeyError(no_such("network", name, known))
    return known[name]
