"""What the matrix is: products, blocks and dense matrices agree with torch.func and curvlinops."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
import torch
from builders import columns, problem_of, relative_error, stream
from routes import (
    MATRICES,
    OPERATORS,
    TOLERANCE,
    all_samples,
    columns_by_torch_func,
    flat_parameters,
    named,
    peer,
    risk_of,
    second_route,
)
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from hesstheory import Curvature, Problem, ggn, hessian, per_sample_hessians, unrolled_hessian, zoo

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated"
)  # torch.func calls it itself


ALL = {(matrix, network) for matrix in OPERATORS for network in zoo.SMALL}


# PyTorch 2.13 differentiates the backward pass of layer norm wrongly in forward mode (pytorch
# #196700, #198017). The Hessian of torch.func and of curvlinops is 15 % off and not symmetric.
# Reverse over reverse is right.
FORWARD_OVER_REVERSE_IS_WRONG = {(hessian, "attention")}


# curvlinops differentiates outside torch.func's transforms, where PyTorch has no forward mode for
# SiLU's backward.
HAS_NO_FORWARD_MODE = {(hessian, "residual")}


def table(cases):
    ordered = sorted(cases, key=lambda case: (list(zoo.SMALL).index(case[1]), case[0].__name__))
    return pytest.mark.parametrize(
        ("matrix", "network"), [pytest.param(m, n, id=f"{n}-{m.__name__}") for m, n in ordered]
    )


@table(ALL - FORWARD_OVER_REVERSE_IS_WRONG)
def test_dense_matrices_agree_with_torch_func(network, matrix):
    problem = problem_of(network)
    assert relative_error(matrix(problem).to_dense(), second_route(problem, matrix)) <= TOLERANCE


@table(ALL - FORWARD_OVER_REVERSE_IS_WRONG - HAS_NO_FORWARD_MODE)
def test_dense_matrices_agree_with_curvlinops(network, matrix):
    problem = problem_of(network)
    theirs = peer(problem, matrix) @ torch.eye(problem.num_params)
    assert relative_error(matrix(problem).to_dense(), theirs) <= TOLERANCE


@pytest.mark.parametrize("network", zoo.SMALL)
def test_hessians_agree_with_reverse_over_reverse_and_finite_differences(network):
    problem = problem_of(network)
    step = 1e-5  # errors of step² and eps/step, times what the net is made of: below 1e-6
    H = hessian(problem).to_dense()
    flat = flat_parameters(problem_of(network))
    gradient = torch.func.grad(risk_of(problem))
    assert relative_error(H, torch.func.jacrev(gradient)(flat)) <= TOLERANCE
    shifts = step * torch.eye(len(flat))
    differences = torch.func.vmap(gradient)(flat + shifts) - torch.func.vmap(gradient)(
        flat - shifts
    )
    assert relative_error(H, differences / (2 * step)) <= 1e-6


# P is 2,790 to 10,015: products with a few columns, and slices of the dense matrices.
@MATRICES
@pytest.mark.parametrize("network", zoo.MEDIUM)
def test_products_of_larger_networks_agree_with_torch_func_and_curvlinops(network, matrix):
    problem = problem_of(network)
    V = columns(problem_of(network), 3)
    products = matrix(problem) @ V
    assert relative_error(products, peer(problem, matrix) @ V) <= TOLERANCE
    assert relative_error(products, columns_by_torch_func(problem, matrix, V)) <= TOLERANCE


@MATRICES
@pytest.mark.parametrize("network", ["digits_mlp", "digits_cnn"])
def test_dense_matrices_of_larger_networks_agree_with_their_products(network, matrix):
    problem = problem_of(network, 9)
    dense = matrix(problem).to_dense()
    V = columns(problem_of(network), 3)
    assert relative_error(dense, dense.mT) <= TOLERANCE
    assert relative_error(dense @ V, columns_by_torch_func(problem, matrix, V)) <= TOLERANCE


def test_hessian_of_train_mode_batch_norm_is_the_mean_of_its_batches():
    problem = problem_of("batchnorm_train")
    flat = flat_parameters(problem_of("batchnorm_train"))
    buffers = {name: b.clone() for name, b in problem.model.named_buffers()}

    def loss(inputs, targets, theta):
        return problem.loss_fn(
            functional_call(problem.model, {**named(problem, theta), **buffers}, inputs), targets
        )

    expected = sum(
        weight * torch.autograd.functional.hessian(partial(loss, *batch), flat)
        for weight, batch in zip(problem.weights, problem.batches, strict=True)
    )
    assert relative_error(hessian(problem).to_dense(), expected) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:the loss is linear in the outputs")
def test_prescribed_hessians_come_back(generator):
    matrices = torch.randn(7, 6, 6, generator=generator)
    matrices = matrices + matrices.mT
    problem = zoo.prescribed(matrices, {"a": 1, "b": 5}, generator, batch_sizes=(5, 2))
    assert relative_error(hessian(problem).to_dense(), matrices.mean(0)) <= TOLERANCE
    assert relative_error(per_sample_hessians(problem), matrices) <= TOLERANCE
    assert ggn(problem).to_dense().count_nonzero() == 0


VIEWED = pytest.mark.parametrize("network", ["tiny_relu", "cnn", "rnn", "autoencoder"])


@MATRICES
@VIEWED
def test_products_blocks_and_norms_are_those_of_the_dense_matrix(network, matrix):
    problem = problem_of(network)
    C = matrix(problem)
    dense = matrix(problem).to_dense()
    V = columns(problem_of(network), 5)
    assert C.shape == dense.shape == (problem.num_params, problem.num_params)
    assert relative_error(C @ V, dense @ V) <= TOLERANCE
    assert relative_error(C @ V[:, 0], dense @ V[:, 0]) <= TOLERANCE
    assert relative_error(C @ V[:, :1], dense @ V[:, :1]) <= TOLERANCE
    assert relative_error(dense, dense.mT) <= TOLERANCE
    norms = C.block_norms()
    traces = C.trace_by_block()
    assert isinstance(norms, pd.DataFrame)
    assert (
        list(norms.index)
        == list(norms.columns)
        == list(traces.index)
        == list(problem.partition.blocks)
    )
    for l, rows in problem.index.items():
        assert traces[l] == pytest.approx(float(dense[rows][:, rows].trace()), rel=1e-10)
        for m, others in problem.index.items():
            expected = dense[rows][:, others]
            assert float((C.block(l, m) - expected).norm()) <= TOLERANCE * float(dense.norm())
            assert norms.loc[l, m] == pytest.approx(
                float(expected.norm()), rel=1e-10, abs=1e-12 * float(dense.norm())
            )
    forms = torch.stack(
        [(V[rows] * (dense @ V)[rows]).sum(0) for rows in problem.index.values()], dim=1
    )
    assert relative_error(C.quadratic_forms(V), forms) <= TOLERANCE


@VIEWED
def test_matrices_add_and_subtract(network):
    problem = problem_of(network)
    H = hessian(problem)
    G = ggn(problem)
    V = columns(problem_of(network), 2)
    residual = H - G
    assert relative_error(residual.to_dense(), H.to_dense() - G.to_dense()) <= 1e-10
    assert relative_error(residual @ V, H @ V - G @ V) <= 1e-10
    assert relative_error((residual + G).to_dense(), H.to_dense()) <= TOLERANCE
    assert repr(residual) == f"Curvature(+1·hessian -1·ggn, {problem!r})"


def test_zero_residual_leaves_the_gauss_newton_matrix():
    """Targets that the net meets exactly: H = G under the squared error."""
    seen = problem_of("autoencoder")
    batches = [
        (inputs, seen.outputs((inputs, targets)).detach()) for inputs, targets in seen.batches
    ]
    problem = Problem(seen.model, F.mse_loss, batches)
    H = hessian(problem).to_dense()
    G = ggn(problem).to_dense()
    assert relative_error(H, G) <= TOLERANCE
    assert torch.linalg.eigvalsh(G)[0] >= -TOLERANCE * G.norm()


@MATRICES
@pytest.mark.parametrize("sizes", [(33,), (32, 1), (1,) * 33, (5, 11, 17)])
@pytest.mark.parametrize("network", ["tanh_mlp", "cnn", "rnn"])
def test_the_cut_into_batches_does_not_matter(network, sizes, matrix):
    problem = problem_of(network)
    batches = list(zip(*(part.split(sizes) for part in all_samples(problem)), strict=True))
    assert (
        relative_error(matrix(problem.with_batches(batches)).to_dense(), matrix(problem).to_dense())
        <= TOLERANCE
    )


@pytest.mark.parametrize("network", ["tiny_mlp", "cnn", "autoencoder"])
def test_per_sample_hessians_average_to_the_hessian(network):
    problem = problem_of(network)
    each = per_sample_hessians(problem)
    assert each.shape == (33, problem.num_params, problem.num_params)
    assert relative_error(each.mean(0), hessian(problem).to_dense()) <= TOLERANCE
    last = problem.with_batches([tuple(part[-1:] for part in all_samples(problem))])
    assert relative_error(each[-1], hessian(last).to_dense()) <= TOLERANCE


@MATRICES
@VIEWED
def test_exact_results_are_float64_whatever_the_model(network, matrix):
    double = problem_of(network)
    single = zoo.problem(network, stream(), dtype=torch.float32)
    names = list(single.partition.blocks)
    dense = matrix(single).to_dense()
    exact = matrix(single.double()).to_dense()
    assert relative_error(dense, exact) == 0
    assert relative_error(dense, matrix(double).to_dense()) <= 1e-5
    block = exact[single.index[names[0]]][:, single.index[names[-1]]]
    assert float((matrix(single).block(names[0], names[-1]) - block).norm()) <= TOLERANCE * float(
        exact.norm()
    )
    assert (matrix(single).block_norms().dtypes == "float64").all()
    assert single.dtype is torch.float32
    products = matrix(single) @ torch.ones(single.num_params, 2, dtype=torch.float32)
    assert products.dtype is torch.float32
    torch.testing.assert_close(
        products.double(), exact.sum(1, keepdim=True).expand(-1, 2), rtol=1e-3, atol=1e-4
    )
    assert (
        matrix(single).quadratic_forms(torch.ones(single.num_params, 2, dtype=torch.float32)).dtype
        is torch.float64
    )
    assert per_sample_hessians(single).dtype is torch.float64
    assert unrolled_hessian(single, next(iter(single.params))).dtype is torch.float64


def strided(V):
    return torch.stack([V, V], dim=2)[:, :, 0]


LAYOUTS = {
    "transposed": lambda V: V.mT.contiguous().mT,
    "strided": strided,
    "expanded": lambda V: V[:, :1].expand(-1, 4),
    "with a graph": lambda V: V.clone().requires_grad_(),
    "no columns": lambda V: V[:, :0],
}


@MATRICES
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_of_the_vectors_does_not_matter(layout, matrix):
    problem = problem_of("tanh_mlp")
    V = layout(columns(problem, 4))
    products = matrix(problem) @ V
    assert products.shape == V.shape
    assert not products.requires_grad
    torch.testing.assert_close(
        products, matrix(problem).to_dense() @ V.detach(), rtol=1e-11, atol=1e-13
    )


class Scaled(nn.Module):
    """A 0-d parameter, an empty one and a matrix."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.empty = nn.Parameter(torch.empty(0))
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.scale * self.layer(x) + self.empty.sum()


@MATRICES
def test_parameters_of_no_dimension_and_of_no_entry(matrix, build):
    inputs = torch.randn(6, 3, generator=stream())
    targets = torch.randn(6, 2, generator=stream(1))
    problem = Problem(build(Scaled), F.mse_loss, [(inputs, targets)])
    C = matrix(problem)
    assert relative_error(C.to_dense(), second_route(problem, matrix)) <= TOLERANCE
    assert C.block("scale", "layer").shape == (1, 8)
    assert C.block("empty", "layer").shape == (0, 8)
    assert relative_error(C.block("layer", "scale"), C.to_dense()[1:, :1]) <= TOLERANCE


def test_a_curvature_is_a_value():
    problem = problem_of("tiny_mlp")
    assert hessian(problem) == hessian(problem) != ggn(problem)
    assert isinstance(hessian(problem), Curvature)
