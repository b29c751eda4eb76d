"""Exact traces against the dense matrices, block by block and sample by sample."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import close
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from hesstheory import (
    LogitProbeTrace,
    NotPiecewiseLinear,
    Problem,
    exact_traces,
    ggn,
    hessian,
    residual,
    sample_traces,
    zoo,
)


@pytest.mark.parametrize("name", zoo.SMALL)
def test_ggn_traces_of_every_network(name, generator):
    problem = zoo.problem(name, generator, num_samples=12)
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())


@pytest.mark.parametrize("name", zoo.SMALL)
def test_hessian_traces_exactly_where_the_identity_holds(name, generator):
    problem = zoo.problem(name, generator, num_samples=12)
    if zoo.network(name).piecewise_linear:
        found = exact_traces(problem)
        assert found.name == found.value.name == "tr H"
        close(found, hessian(problem).trace_by_block())
        return
    with pytest.raises(NotPiecewiseLinear, match="in module"):
        exact_traces(problem)
    gap = hessian(problem).trace_by_block() - ggn(problem).trace_by_block()
    assert gap.abs().max() > 1e-6, "the refusal has a reason"


def test_nothing_is_changed(generator):
    problem = zoo.problem("cnn", generator, num_samples=8)
    before = copy.deepcopy(problem.model.state_dict())
    exact_traces(problem)
    assert all(torch.equal(before[key], value) for key, value in problem.model.state_dict().items())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in problem.model.modules()
    )
    assert all(p.grad is None for p in problem.model.parameters())


@pytest.mark.parametrize("matrix", [hessian, ggn], ids=lambda matrix: matrix.__name__)
@pytest.mark.parametrize("name", ["cnn", "relu_mlp", "tiny_relu"])
def test_sample_traces_are_those_of_samples_alone(name, matrix, generator):
    """A sample's own trace does not depend on the batch that it came in, nor on its size."""
    problem = zoo.problem(name, generator, num_samples=7).rebatched(4)
    assert len(set(problem.batch_sizes)) > 1
    found = sample_traces(problem, matrix=matrix)
    for n, alone in enumerate(problem.samples()):
        close(found.loc[n], matrix(alone).trace_by_block())
    close(found.mean(), exact_traces(problem, matrix=matrix))


def test_sample_traces_of_tensors_without_a_rule_and_without_a_use(build):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.unused, self.linear = (
                nn.Parameter(torch.randn(6)),
                nn.Linear(2, 2),
                nn.Linear(6, 3),
            )

        def forward(self, x):
            return self.linear((x + self.shift).relu())

    model = build(Model).double()
    x = build(lambda: torch.randn(12, 6)).double()
    with pytest.warns(UserWarning, match="unused"):
        problem = Problem(model, F.cross_entropy, [(x, torch.arange(12) % 3)])
    found = sample_traces(problem)
    assert (found["unused"] == 0).all()
    for n, alone in enumerate(problem.samples()):
        assert found["shift"][n] == pytest.approx(ggn(alone).trace_by_block()["shift"], rel=1e-10)


@pytest.mark.parametrize("wrong", ["fisher", residual])
@pytest.mark.parametrize("measure", [exact_traces, sample_traces])
def test_a_matrix_that_is_not_known(measure, wrong, generator):
    problem = zoo.problem("tiny_relu", generator)
    with pytest.raises(ValueError, match=r"matrix is .*: pass matrix=hessian or matrix=ggn"):
        measure(problem, matrix=wrong)
    with pytest.raises(ValueError, match="'hessian' or 'ggn'"):
        measure(problem, target=wrong)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_the_older_spelling_goes_on_working(name, generator):
    problem = zoo.problem("tiny_relu", generator, num_samples=6)
    matrix = {"hessian": hessian, "ggn": ggn}[name]
    expected = exact_traces(problem, matrix=matrix)
    for found in (
        exact_traces(problem, name),
        exact_traces(problem, target=name),
        exact_traces(problem, matrix, target=name),
    ):
        assert found == expected
        assert found.name == expected.name
    table = sample_traces(problem, matrix=matrix)
    assert sample_traces(problem, target=name).equals(table)
    assert sample_traces(problem, name).equals(table)


@pytest.mark.parametrize("measure", [exact_traces, sample_traces])
def test_two_matrices_contradict_each_other(measure, generator):
    problem = zoo.problem("tiny_relu", generator)
    with pytest.raises(ValueError, match="pass matrix= alone, the one you mean"):
        measure(problem, matrix=hessian, target="ggn")


def test_exact_traces_are_an_estimate_without_an_error(generator):
    problem = zoo.problem("relu_mlp", generator, num_samples=12)
    traces = exact_traces(problem)
    num_classes = problem.outputs(problem.batches[0]).shape[1]
    assert traces.is_exact
    assert (traces.stderr == 0).all()
    assert traces.num_matvecs == num_classes - 1
    assert dict(traces) == traces.value.to_dict()


@pytest.mark.parametrize("loss", [F.mse_loss, F.binary_cross_entropy_with_logits, F.huber_loss])
def test_outputs_of_one_number_need_no_second_axis(loss, generator):
    model = nn.Sequential(
        nn.Linear(4, 3, device="meta"), nn.ReLU(), nn.Linear(3, 1, device="meta"), nn.Flatten(0)
    )
    model.double().to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    data = torch.randn(7, 4, generator=generator), torch.rand(7, generator=generator)
    problem = Problem(model, loss, [data])
    assert problem.outputs(data).shape == (7,)
    close(exact_traces(problem), hessian(problem).trace_by_block())


def test_outputs_that_are_rows_of_tokens(generator):
    """A language model that returns tokens × vocabulary, with positions and a pruned head."""
    with torch.device("meta"):
        model = nn.ModuleDict(
            {"tok": nn.Embedding(7, 4), "pos": nn.Embedding(5, 4), "head": nn.Linear(4, 7)}
        )
    model = model.to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    prune.l1_unstructured(model["head"], "weight", 0.5)
    model.forward = lambda x: model["head"](
        model["tok"](x) + model["pos"](torch.arange(5))
    ).reshape(-1, 7)
    tokens = torch.randint(7, (4, 5), generator=generator)
    problem = Problem(
        model, lambda f, y: F.cross_entropy(f, y.flatten()), [(tokens, tokens.roll(1, 1))]
    )
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())


@pytest.mark.parametrize(
    "measure",
    [exact_traces, sample_traces, lambda model: LogitProbeTrace(2)(model, torch.Generator())],
)
def test_a_model_is_no_problem(measure, unchecked):
    with pytest.raises(TypeError, match="pass a Problem, not a ReLU"):
        measure(nn.ReLU())


def test_a_penalty_inside_the_loss_is_refused_for_the_hessian(generator):
    problem = zoo.problem("tiny_relu", generator, num_samples=6)
    weight = next(problem.model.parameters())
    penalised = Problem(
        problem.model, lambda f, y: F.cross_entropy(f, y) + weight.square().sum(), problem.batches
    )
    with pytest.raises(ValueError, match="loss_fn reads parameters of the model by itself"):
        exact_traces(penalised)
    with pytest.warns(UserWarning, match="leaves the rest out"):
        close(exact_traces(penalised, matrix=ggn), ggn(problem).trace_by_block())
