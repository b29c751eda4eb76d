"""What the first forward passes show: failures, losses that are no mean, idle parameters."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from builders import Calls, between_layers, classes, data, halves, mlp, stream
from torch import nn
from torch.nn import functional as F

from hesstheory import LayerwiseTrace, NotTwiceDifferentiable, Problem, ggn, hessian


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, y):
        return self.net(x + y)


LIST = "a list is one input: use a tuple or a dict for several"


FAILING = {
    "inputs in float32": (
        mlp,
        [data(), (data()[0].float(), data()[1])],
        r"fails on batch 1 \(RuntimeError: .*inputs are torch.float32 \(8, 3\) on cpu.*"
        r"model is torch.float64 on cpu; "
        r"bring them to one dtype and device with \.to\(\)",
    ),
    "integer inputs": (
        mlp,
        [(torch.ones(8, 3, dtype=torch.int64), data()[1])],
        "batch 0.*inputs are torch.int64",
    ),
    "inputs elsewhere": (
        mlp,
        [(data()[0].to("meta"), data()[1])],
        "inputs are torch.float64.* on meta.*one dtype and",
    ),
    "targets elsewhere": (
        mlp,
        [data(), (data()[0], data()[1].to("meta"))],
        "batch 1.*the targets .* on meta",
    ),
    "too many features": (mlp, [data(num_in=5)], r"inputs are torch.float64 \(8, 5\).*try loss_fn"),
    "no such embedding": (
        lambda: nn.Sequential(nn.Embedding(2, 3), mlp()),
        [(torch.full((8,), 7), data()[1])],
        "IndexError: .*int64",
    ),
    "a list of inputs": (Adds, [([data()[0], data()[0]], data()[1])], LIST),
    "a list where the shape is read": (
        lambda: nn.Sequential(Calls(lambda x: x.flatten(1)), mlp()),
        [([data()[0]], data()[1])],
        LIST,
    ),
    "no such keyword": (Adds, [({"x": data()[0], "z": data()[0]}, data()[1])], "TypeError: .*'z'"),
}


@pytest.mark.parametrize(("model", "batches", "cure"), FAILING.values(), ids=FAILING)
def test_a_forward_pass_that_fails_is_explained(model, batches, cure, build):
    with pytest.raises(ValueError, match=cure) as caught:
        Problem(build(model), F.mse_loss, batches)
    assert isinstance(
        caught.value.__cause__, RuntimeError | TypeError | AttributeError | LookupError
    )
    assert (LIST in str(caught.value)) == (cure == LIST)


def test_a_forward_pass_that_says_itself_what_is_wrong_is_left_alone(build):
    for error in (NotTwiceDifferentiable("no second derivative"), ValueError("own words")):
        with pytest.raises(type(error)) as caught:
            Problem(
                build(lambda error=error: between_layers(partial(raising, error))),
                F.mse_loss,
                [data()],
            )
        assert caught.value is error


def raising(error, x):
    raise error


def sum_loss(outputs, targets):
    return (outputs - targets).square().sum()


def pair_sum_loss(outputs, targets):
    return sum((part - targets).square().sum() for part in outputs)


CLASS_WEIGHTS = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], dtype=torch.float64))


NO_MEANS = {
    "sum": (mlp, sum_loss, data()[1]),
    "class weights": (mlp, CLASS_WEIGHTS, classes([0, 1, 0, 0, 1, 1, 0, 1])),
    "class weights, seen in batch 1 only": (mlp, CLASS_WEIGHTS, classes([0, 0, 0, 0, 1, 1, 0, 1])),
    "ignored targets in batch 1": (mlp, F.cross_entropy, classes([0, 1, 0, 0, -100, 1, 0, 1])),
    "the first target ignored": (mlp, F.cross_entropy, classes([-100, 1, 0, 0, 1, 1, 0, 1])),
    "all targets but the first of batch 1 ignored": (
        mlp,
        F.cross_entropy,
        classes([0, 1, 0, 0] + [-100] * 4),
    ),
    "sum over a tuple of outputs": (
        lambda: nn.Sequential(mlp(), Calls(lambda x: (x, x))),
        pair_sum_loss,
        data()[1],
    ),
}


@pytest.mark.parametrize(("model", "loss_fn", "targets"), NO_MEANS.values(), ids=NO_MEANS)
def test_a_loss_that_is_no_mean_is_refused_on_several_batches(model, loss_fn, targets, build):
    batches = halves(data()[0], targets)
    model = build(model)
    with pytest.raises(
        ValueError,
        match=r"not the mean over samples.*use reduction='mean', or pass all samples as one",
    ):
        Problem(model, loss_fn, batches)
    with pytest.warns(UserWarning, match="as it stands"):
        whole = Problem(model, loss_fn, [(data()[0], targets)])
    with pytest.raises(ValueError, match="use reduction='mean'"):
        whole.with_batches(batches)


def test_a_loss_that_is_no_mean_is_taken_as_it_stands_on_one_batch(build):
    model = build(mlp)
    (inputs, targets) = data()
    with pytest.warns(UserWarning, match="not the mean over samples.*as it stands"):
        total = Problem(model, sum_loss, [(inputs, targets)])
    mean = Problem(model, F.mse_loss, [(inputs, targets)])
    torch.testing.assert_close(
        hessian(total).to_dense(), targets.numel() * hessian(mean).to_dense()
    )


@pytest.mark.parametrize("targets", [[-100, 1, 0], [1, -100, -100]], ids=["first", "others"])
def test_a_part_whose_targets_are_all_ignored_is_named(targets, build):
    with pytest.warns(UserWarning, match=r"nan for the (first|others).*ignore_index.*as it stands"):
        problem = Problem(build(mlp), F.cross_entropy, [(data(3)[0], classes(targets))])
    used = torch.tensor(targets) >= 0
    kept = Problem(problem.model, F.cross_entropy, [(data(3)[0][used], classes(targets)[used])])
    torch.testing.assert_close(
        hessian(problem).to_dense(), hessian(kept).to_dense(), rtol=1e-12, atol=1e-14
    )
    with pytest.raises(ValueError, match="drop a batch whose targets are all ignored"):
        Problem(problem.model, F.cross_entropy, [(data(3)[0], classes([-100] * 3))])


class Detour(nn.Module):
    """A net with a layer that the forward pass does not use."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        return self.net(x)


def test_an_unreached_parameter_has_zero_curvature_and_a_warning(build):
    with pytest.warns(
        UserWarning, match=r"does not reach idle.weight, idle.bias: .*requires_grad_\(False\)"
    ):
        problem = Problem(build(Detour), F.mse_loss, [data()])
    reached = Problem(problem.model.net, F.mse_loss, [data()])
    idle = problem.index["idle"]
    for matrix, of_reached in ((hessian(problem), hessian(reached)), (ggn(problem), ggn(reached))):
        dense = matrix.to_dense()
        assert dense[idle].count_nonzero() == dense[:, idle].count_nonzero() == 0
        assert torch.equal(matrix.block("idle", "net.0"), dense[idle][:, problem.index["net.0"]])
        torch.testing.assert_close(
            dense[: len(dense) - len(idle), : len(dense) - len(idle)], of_reached.to_dense()
        )
        assert (matrix @ torch.ones(len(dense)))[idle].count_nonzero() == 0
    estimate = LayerwiseTrace(3)(problem, stream())
    assert estimate.value["idle"] == estimate.stderr["idle"] == 0


class Switch(nn.Module):
    """Sends negative first inputs through one layer and the others through another."""

    def __init__(self):
        super().__init__()
        self.low = nn.Linear(3, 2)
        self.high = nn.Linear(3, 2)

    def forward(self, x):
        return (self.low if x[0, 0] < 0 else self.high)(x)


def test_a_parameter_reached_by_one_batch_only_is_reached(build):
    low = torch.full((4, 3), -1.0)
    high = torch.full((2, 3), 1.0)
    problem = Problem(
        build(Switch), F.mse_loss, [(low, torch.zeros(4, 2)), (high, torch.zeros(2, 2))]
    )
    H = hessian(problem).to_dense()
    assert H[problem.index["low"]].norm() == pytest.approx(2 * H[problem.index["high"]].norm())
