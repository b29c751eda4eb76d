"""Dense matrices of small problems by torch.autograd.functional alone."""

from __future__ import annotations

import torch
from torch.func import functional_call


def hessian_of(function, flat):
    """The Hessian of a function of a vector."""
    return torch.autograd.functional.hessian(function, flat, vectorize=True)


def flat_outputs(problem, batch):
    """Outputs of one batch as a function of the flat parameter vector, and that vector."""
    sizes = [p.numel() for p in problem.params.values()]

    def outputs(flat):
        pieces = zip(problem.params.items(), torch.split(flat, sizes), strict=True)
        named = {name: piece.view_as(p) for (name, p), piece in pieces}
        return functional_call(problem.model, named, (batch[0],))

    return outputs, torch.cat([p.detach().flatten() for p in problem.params.values()])


def hessian_and_ggn(problem):
    """Two dense matrices of a problem of one batch, by plain autograd."""
    batch = problem.batches[0]
    outputs, flat = flat_outputs(problem, batch)
    H = hessian_of(lambda theta: problem.loss_fn(outputs(theta), batch[1]), flat)
    J = torch.autograd.functional.jacobian(outputs, flat, vectorize=True).flatten(0, 1)
    f = outputs(flat).detach()
    S = hessian_of(lambda out: problem.loss_fn(out.view_as(f), batch[1]), f.flatten())
    return H, J.T @ S @ J
