"""What is refused at the edge of a product, with its cure."""

from __future__ import annotations

import pytest
import torch
from builders import problem_of
from routes import MATRICES
from torch import nn
from torch.nn import functional as F

import hesstheory.autograd.products
import hesstheory.curvature.limits
import hesstheory.run.memory
from hesstheory import Problem, hessian, per_sample_hessians, unrolled_hessian, zoo

VECTORS = {
    "too short": (lambda P: torch.ones(P - 1), "of 12 rows, one per parameter"),
    "rows and columns swapped": (lambda P: torch.ones(3, P), "of 12 rows, one per parameter"),
    "three axes": (lambda P: torch.ones(P, 2, 2), "of 12 rows, one per parameter"),
    "no tensor": (lambda P: [1.0] * P, "got list"),
    "float32": (
        lambda P: torch.ones(P, dtype=torch.float32),
        r"float32 on cpu, the model torch.float64.*use \.to",
    ),
    "integers": (lambda P: torch.ones(P, dtype=torch.int64), r"use \.to"),
}


@MATRICES
@pytest.mark.parametrize(("vectors", "cure"), VECTORS.values(), ids=VECTORS)
def test_bad_vectors_are_refused(vectors, cure, matrix, unchecked):
    problem = problem_of("tiny_mlp")
    for product in (matrix(problem).__matmul__, matrix(problem).quadratic_forms):
        with pytest.raises(ValueError, match=cure):
            product(vectors(problem.num_params))


def test_nan_vectors_are_refused():
    problem = problem_of("tiny_mlp")
    with pytest.raises(ValueError, match="not finite"):
        hessian(problem) @ torch.full((12,), torch.nan)


class AtZero(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x * self.w.norm()


UNDEFINED = {
    "to_dense": lambda H: H.to_dense(),
    "block": lambda H: H.block("w", "w"),
    "@": lambda H: H @ torch.ones(3),
    "quadratic_forms": lambda H: H.quadratic_forms(torch.ones(3, 2)),
    "block_norms": lambda H: H.block_norms(),
}


@pytest.mark.parametrize("look", UNDEFINED.values(), ids=UNDEFINED)
def test_a_hessian_that_is_not_finite_is_refused(look):
    problem = Problem(AtZero(), F.mse_loss, [(torch.ones(4), torch.zeros(4))])
    with pytest.raises(
        ValueError,
        match=r"not finite although the loss is.*\(sqrt or norm at 0.*use a smooth variant",
    ):
        look(hessian(problem))


TOO_LARGE = {
    "to_dense": (lambda problem: hessian(problem).to_dense(), 8 * 83**2),
    "block_norms": (lambda problem: hessian(problem).block_norms(), 8 * 83**2),
    "block": (lambda problem: hessian(problem).block("layer2", "layer2"), 8 * 36**2),
    "per_sample_hessians": (per_sample_hessians, 33 * 8 * 83**2),
    "unrolled_hessian": (lambda problem: unrolled_hessian(problem, "layer2.weight"), 8 * 30**2),
}


@pytest.mark.parametrize(("look", "needed"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_matrix_too_large_to_hold_is_refused_with_the_bytes(look, needed, monkeypatch):
    monkeypatch.setattr(hesstheory.curvature.limits, "free_memory", lambda device: 1000)
    with pytest.raises(
        MemoryError, match=r"needs [\d,]+ bytes and 1,000 are free: use products"
    ) as refusal:
        look(problem_of("tanh_mlp"))
    said = int(str(refusal.value).split("needs ")[1].split(" bytes")[0].replace(",", ""))
    assert needed <= said <= 1.1 * needed + 1000
    problem = problem_of("tanh_mlp")
    assert (hessian(problem) @ torch.ones(83)).isfinite().all()


def test_columns_that_do_not_fit_are_refused_with_how_many_do(generator, monkeypatch):
    problem = zoo.problem("tiny_relu", generator)
    monkeypatch.setattr(
        hesstheory.curvature.limits, "free_memory", lambda device: 50 * problem.num_params
    )
    V = torch.ones(problem.num_params, 4)
    with pytest.raises(
        MemoryError, match=r"4 columns of a product need [0-9,]+ bytes with all copies .*: 3 fit"
    ):
        hessian(problem) @ V
    assert (hessian(problem) @ V[:, :3]).shape == (problem.num_params, 3)


@pytest.mark.parametrize("matrix", [hesstheory.hessian, hesstheory.ggn, hesstheory.residual])
def test_a_network_is_no_problem(matrix, build, unchecked):
    network = build(lambda: torch.nn.Linear(2, 1))
    with pytest.raises(TypeError, match="pass a Problem, not a Linear"):
        matrix(network)
