"""Second routes to the same matrices: torch.func, and curvlinops."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from hesstheory import ggn, hessian

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what curvlinops imports
    from curvlinops import GGNLinearOperator, HessianLinearOperator

TOLERANCE = 1e-12  # relative, in the Frobenius norm: the mark of the specification


OPERATORS = {hessian: HessianLinearOperator, ggn: GGNLinearOperator}


MATRICES = pytest.mark.parametrize("matrix", OPERATORS, ids=lambda matrix: matrix.__name__)


def flat_parameters(problem):
    """θ as one vector."""
    return torch.cat([p.detach().flatten() for p in problem.params.values()])


def named(problem, flat):
    """The flat vector cut into the tensors of a problem."""
    pieces = flat.split([p.numel() for p in problem.params.values()])
    return {
        name: piece.view_as(p)
        for (name, p), piece in zip(problem.params.items(), pieces, strict=True)
    }


def all_samples(problem):
    """Inputs and targets of all batches, joined."""
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    return inputs, targets


def outputs_of(problem, flat):
    """Outputs of all samples by functional_call, which gives a tied tensor to all its uses."""
    return functional_call(problem.model, named(problem, flat), (all_samples(problem)[0],))


def risk_of(problem):
    """The risk as a function of the flat parameter vector."""
    targets = all_samples(problem)[1]
    return lambda theta: problem.loss_fn(outputs_of(problem, theta), targets)


def second_route(problem, matrix):
    """The dense Hessian by forward over reverse, or the Gauss-Newton matrix by its Jacobian."""
    flat = flat_parameters(problem)
    targets = all_samples(problem)[1]
    if matrix is hessian:
        return torch.func.hessian(risk_of(problem))(flat)
    outputs = outputs_of(problem, flat).detach()
    J = torch.func.jacrev(partial(outputs_of, problem))(flat).flatten(0, -2)
    M = torch.func.hessian(lambda out: problem.loss_fn(out.view_as(outputs), targets))(
        outputs.flatten()
    )
    return J.mT @ M @ J


def columns_by_torch_func(problem, matrix, V):
    """Products by forward over reverse, column by column."""
    flat = flat_parameters(problem)
    targets = all_samples(problem)[1]
    if matrix is hessian:
        gradient = torch.func.grad(
            lambda theta: problem.loss_fn(outputs_of(problem, theta), targets)
        )
        return torch.stack([torch.func.jvp(gradient, (flat,), (v,))[1] for v in V.mT], dim=1)
    outputs, pull = torch.func.vjp(partial(outputs_of, problem), flat)
    slope = torch.func.grad(lambda out: problem.loss_fn(out, targets))
    pushed = [torch.func.jvp(partial(outputs_of, problem), (flat,), (v,))[1] for v in V.mT]
    return torch.stack(
        [pull(torch.func.jvp(slope, (outputs,), (Jv,))[1])[0] for Jv in pushed], dim=1
    )


def peer(problem, matrix):
    """The same matrix by curvlinops."""
    params = list(problem.params.values())
    return OPERATORS[matrix](
        problem.model, reductions(problem), params, list(problem.batches), check_deterministic=False
    )


def reductions(problem):
    """The loss as the module that curvlinops asks for, to learn how it is averaged."""
    return nn.MSELoss() if problem.loss_fn is F.mse_loss else nn.CrossEntropyLoss()
