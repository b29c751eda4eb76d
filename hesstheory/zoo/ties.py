"""Tied weights whose bias is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hesstheory.problem.risk import Problem
from hesstheory.zoo.networks import TiedAutoencoder, linear
from hesstheory.zoo.problems import cut_into_batches


@dataclass(frozen=True)
class TiedPair:
    """One weight used by two modules, and what independent probes for the two get wrong.

    Parameters
    ----------
    name
        Of the pair.
    problem
        The risk.
    trace
        tr H_w of the tied weight.
    bias
        −2 tr U_12: the estimate with independent probes is off by so much (claim T7).

    Examples
    --------
    >>> pair, _ = tied_pairs(1, torch.Generator().manual_seed(0))
    >>> pair.name, pair.bias > 0
    ('parallel', True)
    """

    name: str
    problem: Problem
    trace: float
    bias: float


class TwoUses(nn.Module):
    """W x₁ + W x₂ (parallel, inputs n×2×d), or W W x (series, inputs n×d, W square).

    The two uses are modules `first` and `second`. `beside` adds V x₁ in a module `other`, parallel
    alone.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out d"],
        *,
        series: bool,
        beside: Float[Tensor, "out d"] | None = None,
    ) -> None:
        super().__init__()
        self.series = series
        num_out, num_in = weight.shape
        self.first = linear(num_in, num_out, bias=False)
        self.second = linear(num_in, num_out, bias=False)
        self.first.weight = self.second.weight = nn.Parameter(weight.clone())
        self.other: nn.Linear | None = None
        if beside is not None:
            self.other = linear(num_in, num_out, bias=False)
            self.other.weight = nn.Parameter(beside.clone())

    def forward(self, x: Tensor) -> Float[Tensor, "samples out"]:
        if self.series:
            twice: Tensor = self.second(self.first(x))
            return twice
        parallel: Tensor = self.first(x[:, 0]) + self.second(x[:, 1])
        return parallel if self.other is None else parallel + self.other(x[:, 0])


def tied_pairs(sign: int, generator: torch.Generator) -> tuple[TiedPair, TiedPair]:
    """A parallel and a series tie whose bias has the given sign, each with d = 2.

    The loss is ½‖f − y‖².

    Parallel, f = W x₁ + W x₂: tr U_rs = d·mean x_r·x_s. So tr H = d·mean ‖x₁ + x₂‖² and
    bias = −2d·mean x₁·x₂, set by x₂ = −½·sign·x₁ + x₁ turned by a right angle.

    Series, f = W W x: tr U_12 = mean(tr(W) xᵀWx + rᵀx) and tr U_11 + tr U_22 = mean(‖W‖²‖x‖² +
    d‖Wx‖²), with the residual r = f − y. Targets y = WWx − c x give r = c x; c sets the bias to
    `sign` itself.

    Parameters
    ----------
    sign
        Of the bias: +1, −1 or 0.
    generator
        Draws W and x.

    Returns
    -------
    tuple of TiedPair
        The parallel pair and the series pair.

    Raises
    ------
    ValueError
        If `sign` is another number.

    Examples
    --------
    >>> parallel, series = tied_pairs(-1, torch.Generator().manual_seed(0))
    >>> series.bias
    -1.0
    """
    _check_sign(sign)
    W = torch.randn((2, 2), generator=generator, dtype=torch.float64)
    x = torch.randn((33, 2), generator=generator, dtype=torch.float64)
    return _parallel_pair(sign, W, x), _series_pair(sign, W, x)


def _check_sign(sign: int) -> None:
    """Refuses what is no sign."""
    if sign not in (-1, 0, 1):
        raise ValueError(f"sign is {sign}: pass -1, 0 or 1")


def _parallel_pair(sign: int, W: Float[Tensor, "2 2"], x: Float[Tensor, "samples 2"]) -> TiedPair:
    """f = W x₁ + W x₂."""
    turned = torch.stack([-x[:, 1], x[:, 0]], 1)
    other = turned - 0.5 * sign * x
    # The targets do not reach the Hessian of a linear model.
    risk = Problem(
        TwoUses(W, series=False),
        half_squared_error,
        cut_into_batches(torch.stack([x, other], 1), turned, None),
    )
    mean_square = float(x.square().sum(1).mean())
    return TiedPair(
        "parallel", risk, 2 * float((x + other).square().sum(1).mean()), 2 * sign * mean_square
    )


def _series_pair(sign: int, W: Float[Tensor, "2 2"], x: Float[Tensor, "samples 2"]) -> TiedPair:
    """f = W W x."""
    once = x @ W.T
    mean_square = x.square().sum(1).mean()
    mean_form = W.trace() * (x * once).sum(1).mean()
    c = (-sign / 2 - mean_form) / mean_square
    own = W.square().sum() * mean_square + 2 * once.square().sum(1).mean()
    risk = Problem(
        TwoUses(W, series=True), half_squared_error, cut_into_batches(x, once @ W.T - c * x, None)
    )
    return TiedPair("series", risk, float(own) - sign, float(sign))


def linear_autoencoder(sign: int, generator: torch.Generator) -> TiedPair:
    """A tied autoencoder x ↦ WᵀW x whose bias has the given sign, reconstructing its inputs.

    W = c Q with k orthonormal rows; s = mean ‖Qx‖², t = mean ‖x‖². tr U_12 = (k+1) c² s − k t, for
    the residual r = c²QᵀQx − x enters k times, and tr U_11 + tr U_22 = c² (k t + d s). Hence the
    bias 2 (k t − (k+1) c² s): a small W is over-estimated, a large one under-estimated, and
    c² = k t/((k+1) s) is the boundary.

    Parameters
    ----------
    sign
        Of the bias: +1, −1 or 0.
    generator
        Draws Q and x.

    Returns
    -------
    TiedPair
        The problem, with its trace and bias.

    Raises
    ------
    ValueError
        If `sign` is another number.

    Examples
    --------
    >>> pair = linear_autoencoder(0, torch.Generator().manual_seed(0))
    >>> pair.bias
    0.0
    """
    _check_sign(sign)
    d = 3
    k = 2
    model = TiedAutoencoder(d, k, nn.Identity).double()
    x = torch.randn(33, d, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0].mT
    s = float((x @ Q.mT).square().sum(1).mean())
    t = float(x.square().sum(1).mean())
    c2 = (1 - sign / 2) * k * t / ((k + 1) * s)
    _zero_but_for(model, "up.weight", c2**0.5 * Q)
    bias = sign * k * t
    return TiedPair(
        "linear autoencoder",
        Problem(model, half_squared_error, cut_into_batches(x, x, None)),
        c2 * (k * t + d * s) - bias,
        bias,
    )


def _zero_but_for(model: nn.Module, name: str, weight: Tensor) -> None:
    """Sets one parameter, and all others to zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter(name).copy_(weight)


def half_squared_error(
    outputs: Float[Tensor, "samples d"], targets: Float[Tensor, "samples d"]
) -> Float[Tensor, ""]:
    """½ ‖f − y‖², mean over samples: its Hessian in the outputs is the identity.

    Examples
    --------
    >>> float(half_squared_error(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)))
    12.5
    """
    return 0.5 * (outputs - targets).square().sum(1).mean()
