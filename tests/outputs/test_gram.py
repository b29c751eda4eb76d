"""The Gauss-Newton matrix at full scale, from rows, beside the dense matrix of small networks."""

import math

import pytest
import torch

from hesstheory import zoo
from hesstheory.curvature.matrix import ggn
from hesstheory.estimators.probes import Rademacher
from hesstheory.outputs.gram import dual_gram
from hesstheory.outputs.sketches import sketched_norms

NAMES = ("tanh_mlp", "relu_mlp", "cnn", "tiny_relu")


def problem_of(name, seed=1):
    return zoo.problem(
        name, torch.Generator().manual_seed(seed), num_samples=7, batch_sizes=(4, 2, 1)
    )


def blocks_of(problem):
    G = ggn(problem).to_dense()
    return G, [G[i][:, i] for i in problem.index.values()]


def close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11 * float(right.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_rows_tell_traces_norms_and_diagonals(name):
    problem = problem_of(name)
    gram, (_, blocks) = dual_gram(problem), blocks_of(problem)
    close(gram.traces, torch.stack([B.trace() for B in blocks]))
    close(gram.norms2, torch.stack([B.square().sum() for B in blocks]))
    close(gram.diagonal_norms2, torch.stack([B.diagonal().square().sum() for B in blocks]))


@pytest.mark.parametrize("name", NAMES)
def test_rows_tell_what_a_probe_gives(name):
    problem, generator = problem_of(name), torch.Generator().manual_seed(3)
    Z = Rademacher().signs(problem.num_params, 5, generator)
    gram = dual_gram(problem, Z)
    close(gram.forms(), ggn(problem).quadratic_forms(Z))
    Y = ggn(problem) @ Z.to(problem.dtype)
    close(
        gram.squared_product_norms(),
        torch.stack([Y[i].square().sum(0) for i in problem.index.values()], 1),
    )


def test_sample_traces_are_those_of_the_samples_alone():
    problem = problem_of("relu_mlp")
    alone = torch.stack(
        [
            torch.from_numpy(ggn(one).trace_by_block().to_numpy().copy())
            for one in problem.samples()
        ],
        1,
    )
    close(dual_gram(problem).sample_traces, alone)


def test_logit_forms_are_the_gram_matrices_of_single_samples():
    problem = problem_of("relu_mlp")
    traces = torch.stack(
        [forms.diagonal(dim1=1, dim2=2).sum(1) for forms in dual_gram(problem).of_samples()], 1
    )
    close(traces, dual_gram(problem).sample_traces)


@pytest.mark.parametrize("name", NAMES)
def test_little_memory_gives_the_same(name):
    problem, Z = problem_of(name), None
    whole = dual_gram(problem, Z)
    largest = max(len(i) for i in problem.index.values())
    tight = dual_gram(problem, Z, budget=8 * len(whole.sample_of_row) * largest)
    close(tight.grams, whole.grams)


def test_too_little_memory_names_the_bytes():
    with pytest.raises(
        MemoryError, match=r"rows of .* take [\d,]+ bytes and 10 may be used: use fewer samples"
    ):
        dual_gram(problem_of("relu_mlp"), budget=10)


def test_parts_of_the_samples_add_up():
    problem = problem_of("cnn")
    whole = dual_gram(problem)

    first = {}
    dual_gram(problem, samples=range(3), total=lambda part: first.setdefault(len(first), part))
    number = iter(range(len(first)))
    joined = dual_gram(problem, samples=range(3, 7), total=lambda part: part + first[next(number)])
    close(joined.grams, whole.grams)
    close(joined.diagonal_norms2, whole.diagonal_norms2)


def test_sketched_norms_are_unbiased():
    """Forty independent sketches: their mean lies within six of its standard errors of the norm."""
    problem = problem_of("relu_mlp")
    exact = dual_gram(problem)
    sketches = [
        sketched_norms(problem, torch.Generator().manual_seed(seed), num_rows=24)
        for seed in range(40)
    ]
    for name in ("norms2", "diagonal_norms2"):
        found, right = (
            torch.stack([getattr(sketch, name) for sketch in sketches]),
            getattr(exact, name),
        )
        stderr = found.std(0) / math.sqrt(len(found))
        assert bool(((found.mean(0) - right).abs() < 6 * stderr).all()), name
        assert bool((stderr < 0.2 * right).all()), name


def test_sketches_do_not_depend_on_the_shards():
    problem = problem_of("cnn")
    whole = sketched_norms(problem, torch.Generator().manual_seed(5), num_rows=6)
    first = {}
    generator = torch.Generator().manual_seed(5)
    sketched_norms(
        problem,
        generator,
        num_rows=6,
        samples=range(5),
        total=lambda part: first.setdefault(len(first), part),
    )
    number = iter(range(len(first)))
    joined = sketched_norms(
        problem, torch.Generator().manual_seed(5), num_rows=6, samples=range(5, 7),
        total=lambda part: part + first[next(number)],
    )  # fmt: skip
    close(joined.norms2, whole.norms2)
    close(joined.diagonal_norms2, whole.diagonal_norms2)


def test_nothing_of_the_model_changes():
    problem = problem_of("cnn")
    before = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    dual_gram(problem)
    sketched_norms(problem, torch.Generator().manual_seed(0), num_rows=2)
    for name, p in problem.model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
