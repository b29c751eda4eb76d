"""Estimates with the dominant part of the matrix taken exactly, beside dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import block_traces, dense, problem_of, stream

from hesstheory import Gaussian, HutchPP, Rademacher, XTrace, zoo


def named(estimator):
    return repr(estimator).partition(", matrix=")[0]


DEFLATING = [
    HutchPP(num_probes=3, rank=4),
    HutchPP(5, 2, Gaussian()),
    XTrace(6),
    XTrace(4, Rademacher()),
]


def by_hand_hutchpp(H, index, estimator, generator):
    """Block traces of H − B plus forms of B from dense matrices, B = (I − QQᵀ)H(I − QQᵀ)."""
    S = estimator.probe.sample(len(H), estimator.rank, generator)
    Q = torch.linalg.qr(H @ S)[0]
    outside = torch.eye(len(H)) - Q @ Q.mT
    B, rows = outside @ H @ outside, []
    for start in range(0, estimator.num_probes, estimator.rank):
        Z = estimator.probe.sample(
            len(H), min(estimator.rank, estimator.num_probes - start), generator
        )
        rows += [[float((H - B)[i][:, i].trace() + z[i] @ (B @ z)[i]) for i in index] for z in Z.mT]
    return np.array(rows)


def by_hand_xtrace(H, index, estimator, generator):
    """The same with the basis of all other probes for each."""
    Z = estimator.probe.sample(len(H), estimator.num_probes, generator)
    rows = []
    for k in range(estimator.num_probes):
        others = [j for j in range(estimator.num_probes) if j != k]
        Q = torch.linalg.qr(H @ Z[:, others])[0]
        outside = torch.eye(len(H)) - Q @ Q.mT
        B, z = outside @ H @ outside, Z[:, k]
        rows.append([float((H - B)[i][:, i].trace() + z[i] @ (B @ z)[i]) for i in index])
    return np.mean(rows, axis=0, keepdims=True)


@pytest.mark.parametrize("estimator", DEFLATING, ids=named)
@pytest.mark.parametrize("network", ["tanh_mlp", "rnn", "cnn"])
def test_deflated_samples_by_block_are_those_of_dense_matrices(estimator, network):
    problem, H = problem_of(network), dense(network)
    by_hand = by_hand_xtrace if isinstance(estimator, XTrace) else by_hand_hutchpp
    expected = by_hand(H, list(problem.index.values()), estimator, stream(7))
    found = estimator(problem, stream(7))
    assert list(found.samples) == list(problem.partition.blocks)
    assert np.abs(found.samples.to_numpy() - expected).max() <= 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize(
    "estimator", [HutchPP(2, 12), HutchPP(1, 50), XTrace(14), XTrace(30)], ids=named
)
def test_a_basis_of_everything_gives_the_exact_traces(estimator):
    problem = problem_of("tiny_mlp")
    assert problem.num_params == 12
    samples = estimator(problem, stream(3)).samples
    assert (samples - block_traces("tiny_mlp")).abs().max().max() < 1e-12


@pytest.mark.parametrize("estimator", [HutchPP(2, 3), XTrace(4)], ids=named)
def test_a_matrix_of_zeros_and_one_of_rank_one(estimator):
    """A basis of dependent products is no error."""
    generator = stream(1)
    problem = zoo.prescribed(torch.zeros(1, 5, 5), (2, 3), generator)
    assert not estimator(problem, stream()).samples.to_numpy().any()
    v = torch.randn(5, generator=generator)
    problem = zoo.prescribed(torch.outer(v, v)[None], (2, 3), generator)
    expected = [float(v[:2] @ v[:2]), float(v[2:] @ v[2:])]
    assert np.allclose(estimator(problem, stream()).samples, expected, rtol=1e-12)


def test_deflated_estimates_count_their_products():
    problem = problem_of("tanh_mlp")
    assert HutchPP(num_probes=7, rank=3)(problem, stream()).num_matvecs == 13
    assert XTrace(5)(problem, stream()).num_matvecs == 10
    assert HutchPP(1, 10)(problem_of("tiny_mlp"), stream()).num_matvecs == 21


@pytest.mark.parametrize("estimator", [HutchPP(60, 5), XTrace(8)], ids=named)
def test_deflated_estimates_are_unbiased_within_their_spread(estimator):
    """Fifty runs; at five standard errors of their mean a right one fails once in 10⁵ times."""
    problem, exact = problem_of("gelu_mlp"), block_traces("gelu_mlp")
    runs = np.array([estimator(problem, stream(seed)).value for seed in range(50)])
    assert (np.abs(runs.mean(0) - exact) < 5 * runs.std(0, ddof=1) / 50**0.5).all()


@pytest.mark.parametrize("bad", [0, -1, True])
def test_an_impossible_rank_is_refused(bad):
    with pytest.raises(ValueError, match=r"rank is .*: pass a whole number of at least 1"):
        HutchPP(rank=bad)
