"""Blocks between the uses of a tied tensor."""

from __future__ import annotations

import pytest
import torch
from builders import problem_of, relative_error
from routes import TOLERANCE
from torch import nn
from torch.nn import functional as F

from hesstheory import Partition, Problem, hessian, unrolled_hessian, zoo

USES = {
    ("rnn", "input.weight"): 8,
    ("rnn", "input.bias"): 8,
    ("rnn", "recurrent.weight"): 7,
    ("rnn", "head.weight"): 1,
    ("relu_rnn", "recurrent.weight"): 7,
    ("autoencoder", "up.weight"): 2,
    ("relu_autoencoder", "up.weight"): 2,
    ("autoencoder", "up.bias"): 1,
    ("cnn", "conv1.weight"): 1,
    ("attention", "query.weight"): 1,
}


@pytest.mark.parametrize(("network", "name"), USES)
def test_unrolled_blocks_add_up_to_the_block_of_the_tensor(network, name):
    problem = problem_of(network).with_partition(Partition.by_tensor(problem_of(network).model))
    U = unrolled_hessian(problem, name)
    (block,) = (block for block, tensors in problem.partition.blocks.items() if name in tensors)
    T = USES[network, name]
    n = problem.params[name].numel()
    assert U.shape == (T, n, T, n)
    assert relative_error(U.reshape(T * n, T * n), U.reshape(T * n, T * n).mT) <= TOLERANCE
    assert relative_error(U.sum((0, 2)), hessian(problem).block(block, block)) <= TOLERANCE


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_unrolled_blocks_give_the_known_bias_of_a_tie(sign, generator):
    for pair in zoo.tied_pairs(sign, generator):
        U = unrolled_hessian(pair.problem, next(iter(pair.problem.params)))
        own = sum(U[r, :, r].trace() for r in range(2))
        assert float(own) - pair.trace == pytest.approx(pair.bias, abs=1e-12 * pair.trace)


class Unrolled(nn.Module):
    """Applies its layer as many times as the input has steps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        state = x[:, 0]
        for _ in range(x.shape[1]):
            state = self.layer(state).tanh()
        return state


def test_a_number_of_uses_that_changes_with_the_batch_is_refused(build):
    batches = [(torch.ones(2, steps, 2), torch.zeros(2, 2)) for steps in (2, 3)]
    with pytest.raises(
        ValueError, match="used 2 times in one batch and 3 times in another: unroll them one by one"
    ):
        unrolled_hessian(Problem(build(Unrolled), F.mse_loss, batches), "layer.weight")
