"""Estimators average the forms of their probes, and count their products."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from builders import block_traces, dense, problem_of, stream

from hesstheory import (
    BlockSeparatedTrace,
    Gaussian,
    HadamardColumns,
    LayerwiseTrace,
    Problem,
    Rademacher,
    SparseSigns,
    Sphere,
    Uniform,
    ggn,
    hessian,
    zoo,
)
from hesstheory.estimators.enumerations import hadamard_columns

PROBES = [
    Rademacher(),
    Gaussian(),
    Uniform(),
    Sphere(),
    SparseSigns(0.25),
    SparseSigns(1.0),
    HadamardColumns(),
]


each_probe = pytest.mark.parametrize("probe", PROBES, ids=repr)


ESTIMATORS = [LayerwiseTrace, BlockSeparatedTrace]


each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.__name__)


NETWORKS = ["tiny_mlp", "cnn", "rnn", "autoencoder"]


each_network = pytest.mark.parametrize("network", NETWORKS)


each_matrix = pytest.mark.parametrize("matrix", [hessian, ggn], ids=lambda matrix: matrix.__name__)


@each_network
@each_matrix
def test_both_estimators_average_to_the_exact_traces_under_all_hadamard_columns(network, matrix):
    problem = problem_of(network)
    Z, exact = hadamard_columns(problem.num_params), block_traces(network, matrix)
    rounding = 1e-12 * float(dense(network, matrix).abs().sum())
    for estimator in (LayerwiseTrace(matrix=matrix), BlockSeparatedTrace(matrix=matrix)):
        estimate = estimator(problem, probes=Z)
        assert list(estimate.value.index) == list(problem.partition.blocks)
        assert np.abs(estimate.value.to_numpy() - exact).max() <= rounding
        assert estimate.samples.shape == (Z.shape[1], len(problem.partition.blocks))


@each_network
def test_samples_are_the_quadratic_forms_of_each_probe(network):
    problem, H = problem_of(network), dense(network)
    Z = Gaussian().sample(problem.num_params, 3, stream())
    together = torch.stack([(Z[i] * (H @ Z)[i]).sum(0) for i in problem.index.values()], dim=1)
    apart = torch.stack(
        [(Z[i] * (H[i][:, i] @ Z[i])).sum(0) for i in problem.index.values()], dim=1
    )
    for estimator, forms in ((LayerwiseTrace(), together), (BlockSeparatedTrace(), apart)):
        samples = torch.tensor(estimator(problem, probes=Z).samples.to_numpy())
        assert float((samples - forms).norm()) <= 1e-12 * float(H.norm() * Z.square().sum())


@each_estimator
@each_probe
def test_an_estimator_follows_its_generator(estimator, probe):
    problem, ask = problem_of("tiny_mlp"), estimator(5, probe)
    first, again, other = (ask(problem, stream(seed)) for seed in (3, 3, 4))
    assert first.samples.equals(again.samples)
    assert not first.samples.equals(other.samples)
    Z = probe.sample(problem.num_params, 5, stream(3))
    assert first.samples.equals(ask(problem, probes=Z).samples)
    running = stream(3)
    assert first.samples.equals(ask(problem, running).samples)
    assert not first.samples.equals(ask(problem, running).samples)


@each_network
def test_products_are_counted(network):
    problem = problem_of(network)
    assert LayerwiseTrace(4)(problem, stream()).num_matvecs == 4
    assert BlockSeparatedTrace(4)(problem, stream()).num_matvecs == 4 * len(
        problem.partition.blocks
    )
    Z = Rademacher().sample(problem.num_params, 6, stream())
    assert LayerwiseTrace(4)(problem, probes=Z).num_matvecs == 6


@each_estimator
@each_matrix
def test_a_float32_model_is_estimated_in_float32_and_summed_in_float64(estimator, matrix):
    single = zoo.problem("tanh_mlp", stream(), num_samples=33, dtype=torch.float32)
    double = problem_of("tanh_mlp")
    Z = Rademacher().sample(double.num_params, 8, stream())
    found, exact = (
        estimator(matrix=matrix)(problem, probes=Z).samples for problem in (single, double)
    )
    assert (found.dtypes == "float64").all()
    scale = float(dense("tanh_mlp", matrix).abs().sum())
    assert np.abs(found.to_numpy() - exact.to_numpy()).max() <= 1e-5 * scale
    assert estimator(3)(single, stream()).value.notna().all()


@each_estimator
def test_probes_may_be_of_another_dtype_and_layout(estimator, unchecked):
    problem = problem_of("tiny_mlp")
    Z = Rademacher().sample(problem.num_params, 4, stream())
    expected = estimator()(problem, probes=Z).samples
    for same in (
        Z.float(),
        Z.to(torch.int64),
        Z.clone().mT.contiguous().mT,
        Z.clone().requires_grad_(),
    ):
        assert estimator()(problem, probes=same).samples.equals(expected)


def undefined_hessian():
    class AtZero(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x * self.w.norm()

    return Problem(AtZero(), torch.nn.functional.mse_loss, [(torch.ones(4), torch.zeros(4))])


@each_estimator
def test_a_hessian_that_is_not_finite_is_refused(estimator):
    with pytest.raises(ValueError, match=r"not finite although the loss is.*use a smooth variant"):
        estimator(2)(undefined_hessian(), stream())


REPRS = {
    LayerwiseTrace(): "LayerwiseTrace(num_probes=10, probe=Rademacher(), matrix=<function hessian",
    LayerwiseTrace(
        8, SparseSigns(0.5)
    ): "LayerwiseTrace(num_probes=8, probe=SparseSigns(density=0.5), matrix=",
    BlockSeparatedTrace(
        3, Gaussian(), ggn
    ): "BlockSeparatedTrace(num_probes=3, probe=Gaussian(), matrix=<function ggn",
}


@pytest.mark.parametrize(("estimator", "text"), REPRS.items(), ids=REPRS.values())
def test_the_repr_says_everything(estimator, text):
    assert repr(estimator).startswith(text)
    assert estimator == replace(estimator)
    assert hash(estimator) == hash(replace(estimator))
    with pytest.raises(FrozenInstanceError):
        estimator.num_probes = 3
