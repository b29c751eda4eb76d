"""Every sample has the Hessian that was prescribed for it."""

from __future__ import annotations

import pytest
import torch
from builders import stream
from plain_autograd import flat_outputs, hessian_of

from hesstheory import zoo


def symmetric(num_samples, size, seed=0):
    """One random symmetric matrix for each sample."""
    A = torch.randn(num_samples, size, size, generator=stream(seed), dtype=torch.float64)
    return (A + A.mT) / 2


@pytest.mark.parametrize("sizes", [(2, 1, 3), {"stem": 4, "head": 2}])
def test_prescribed_hessian_of_every_sample(sizes):
    matrices = symmetric(5, 6)
    problem = zoo.prescribed(matrices, sizes, stream(1), batch_sizes=(1, 3, 1))
    names = list(sizes) if isinstance(sizes, dict) else ["block0", "block1", "block2"]
    assert list(problem.partition.blocks) == names
    assert problem.batch_sizes == (1, 3, 1)
    assert all(bool((p != 0).all()) for p in problem.params.values())
    for matrix, sample in zip(matrices, problem.samples(), strict=True):
        outputs, flat = flat_outputs(sample, sample.batches[0])
        H = hessian_of(lambda theta, outputs=outputs: problem.loss_fn(outputs(theta), None), flat)
        torch.testing.assert_close(
            H, matrix, rtol=0, atol=4 * torch.finfo(H.dtype).eps * float(matrix.abs().max())
        )


def test_prescribed_point_is_taken():
    theta = torch.arange(1.0, 4.0, dtype=torch.float64)
    problem = zoo.prescribed(symmetric(2, 3), (2, 1), stream(), theta=theta)
    assert torch.equal(torch.cat(list(problem.params.values())), theta)
    assert problem.params["block0.theta"].data_ptr() != theta.data_ptr()


@pytest.mark.parametrize(
    ("matrices", "sizes", "theta", "message"),
    [
        (torch.eye(3), (3,), None, "pass N×P×P"),
        (torch.triu(torch.ones(1, 3, 3)), (3,), None, "not symmetric"),
        (torch.ones(1, 3, 3), (1, 1), None, "add up to 3"),
        (torch.ones(1, 3, 3), (3, 0), None, "must be positive"),
        (torch.ones(1, 3, 3), (3,), torch.ones(2), "theta has shape"),
    ],
)
def test_wrong_prescriptions_are_named(matrices, sizes, theta, message):
    with pytest.raises(ValueError, match=message):
        zoo.prescribed(matrices, sizes, stream(), theta=theta)
