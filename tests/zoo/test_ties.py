"""Tied weights have the trace and the bias that they state."""

from __future__ import annotations

import pytest
import torch
from builders import stream
from plain_autograd import hessian_of
from torch.func import functional_call

from hesstheory import zoo


def unrolled_hessian(problem):
    """The Hessian over the two uses of the weight as if they were two weights, (4+4)×(4+4)."""
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))

    def risk(flat):
        uses = {"first.weight": flat[:4].view(2, 2), "second.weight": flat[4:].view(2, 2)}
        return problem.loss_fn(
            functional_call(problem.model, uses, (inputs,), tie_weights=False), targets
        )

    return hessian_of(risk, problem.params["first.weight"].detach().flatten().repeat(2))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_tied_pairs_have_the_bias_that_they_state(sign, seed):
    for pair in zoo.tied_pairs(sign, stream(seed)):
        U = unrolled_hessian(pair.problem)
        rounding = len(U) * torch.finfo(U.dtype).eps * U.norm() * 10
        traces = torch.stack([U[i : i + 4, j : j + 4].trace() for i in (0, 4) for j in (0, 4)])
        assert abs(-float(traces[1] + traces[2]) - pair.bias) <= rounding
        assert abs(float(traces.sum()) - pair.trace) <= rounding
        assert (pair.bias > 0) - (pair.bias < 0) == sign
        assert list(pair.problem.params) == ["first.weight"]
        assert list(pair.problem.partition.blocks) == ["first+second"]


@pytest.mark.parametrize("pairs", [zoo.tied_pairs, zoo.linear_autoencoder])
def test_a_wrong_sign_is_named(pairs):
    with pytest.raises(ValueError, match="sign is 2"):
        pairs(2, stream())
