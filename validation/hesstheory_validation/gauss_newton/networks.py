"""Networks piecewise linear in every parameter, their Gauss-Newton matrices and slopes."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.claims.context import TRAINED_STEPS, Case, Context
from hesstheory.curvature.matrix import ggn
from hesstheory.problem.risk import Problem
from hesstheory.run.streams import stream
from hesstheory.zoo.initial import blank
from hesstheory_validation.gauss_newton import wrong
from hesstheory_validation.ties_in_pytorch.wrong import plain_risk

leaky = partial(nn.LeakyReLU, 0.1)


def _residual() -> nn.Module:
    return nn.Sequential(
        blank(nn.Linear, 6, 4), zoo.ResidualBlock(4, nn.ReLU), blank(nn.Linear, 4, 3)
    )


def _pooled() -> nn.Module:
    return nn.Sequential(
        blank(nn.Conv2d, 1, 3, 3),
        leaky(),
        nn.AvgPool2d(2),
        blank(nn.Conv2d, 3, 4, 2),
        nn.Hardtanh(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        blank(nn.Linear, 4, 3),
    )


NETWORKS = {
    "relu_residual": (_residual, partial(zoo.digits, 6, 3)),
    "pooled_cnn": (_pooled, partial(zoo.digit_images, 3)),
}


@lru_cache(maxsize=16)
def own_case(network: str, steps: int, seed: int) -> Case:
    """A network that the zoo has not, after some steps of gradient descent on its 33 samples."""
    build, data = NETWORKS[network]
    model = build().double()
    (inputs, targets) = data(num_samples=33)
    zoo.initialise(model, inputs, stream(seed, "network", network))
    problem = Problem(
        model, F.cross_entropy, [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])]
    )
    for _ in range(steps):
        risk = plain_risk(problem, model)
        for p, slope in zip(
            model.parameters(), torch.autograd.grad(risk, list(model.parameters())), strict=True
        ):
            p.data.sub_(0.2 * slope)
    return Case(network, f"trained {steps} steps" if steps else "untrained", problem)


def piecewise_linear(context: Context) -> list[Case]:
    """MLP, convolutions with eval-mode batch norm and with pooling, residual sums; large ones in
    the full profile."""
    if context.profile == "smoke":
        return [context.case("tiny_relu"), own_case("relu_residual", 0, context.seed)]
    cases = context.cases([name for name, network in zoo.SMALL.items() if network.piecewise_linear])
    cases += [
        own_case(name, steps, context.seed) for name in NETWORKS for steps in (0, TRAINED_STEPS)
    ]
    return cases + (context.cases(["digits_relu_mlp", "digits_cnn"]) if context.is_thorough else [])


@lru_cache(maxsize=64)
def slope_squares(case: Case) -> Tensor:
    """The diagonal t of JᵀJ/N.

    However small G_ij is where the softmax is sure, it is rounded like 2 √(t_i t_j).
    """
    problem = case.problem
    t = torch.zeros(case.problem.num_params, dtype=torch.float64)
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        t += weight * wrong.output_jacobian(problem, problem.outputs(batch)).square().sum(1).mean(0)
    return t


def slopes(case: Case) -> Tensor:
    """The largest t of each tensor: slopes are sums that may cancel, rounded like the others of
    their tensor."""
    t = slope_squares(case)
    return torch.cat([t[a:b].max().expand(b - a) for a, b in case.problem.offsets.values()])


@lru_cache(maxsize=64)
def gauss_newton(problem: Problem) -> Tensor:
    """The dense Gauss-Newton matrix."""
    return ggn(problem).to_dense()


def dense_ggn(case: Case) -> Tensor:
    """G of a network."""
    return gauss_newton(case.problem)
