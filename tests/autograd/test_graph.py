"""What the graph says of its nodes, and what has no second derivative is refused."""

from __future__ import annotations

import pytest
import torch
from builders import AttentionHead, Calls, attention_by_hand, between_layers, data
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hesstheory import NotTwiceDifferentiable, Problem, ggn, hessian, unrolled_hessian
from hesstheory.autograd.graph import (
    graph_leaves,
    graph_nodes,
    graph_values,
    leaf_of,
    operation,
    owners,
    parents_first,
    pushed_values,
    shape_of,
    user_function,
    uses_of_leaves,
)


def test_nodes_are_named_after_their_operation():
    w = torch.ones(2, 2, requires_grad=True)
    value = torch.addmm(torch.ones(2), torch.ones(3, 2), w).relu().sum()
    nodes = list(parents_first(value.grad_fn))
    assert [operation(node) for node in nodes] == ["AccumulateGrad", "Addmm", "Relu", "Sum"]
    assert [leaf_of(node) is w for node in nodes] == [True, False, False, False]
    assert [list(shape_of(node)) for node in nodes[1:3]] == [[3, 2], [3, 2]]
    assert graph_values(value) == 4 + 6 + 6 + 1
    assert pushed_values(value) == 6 + 6 + 1
    assert pushed_values(w.T.sum()) == 1  # neither the leaf nor its transpose
    assert graph_leaves(value) == {id(w)}
    assert uses_of_leaves(value) == {id(w): 1}
    assert set(graph_nodes(value)) == set(nodes)


class Noted(torch.autograd.Function):
    """Keeps a tensor on its node under the name by which leaves keep theirs."""

    @staticmethod
    def forward(ctx, x):
        ctx.variable = x.detach()
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


def test_a_function_of_the_user_is_no_leaf():
    w = torch.ones(2, requires_grad=True)
    value = Noted.apply(w).sum()
    assert graph_leaves(value) == {id(w)}
    functions = [user_function(node) for node in graph_nodes(value)]
    assert [function for function in functions if function is not None] == [Noted]


def test_nodes_are_owned_by_the_innermost_module(build):
    model = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh())))
    with owners(model) as owner:
        outputs = model(torch.ones(2, 3))
    found = {operation(node): owner[node] for node in graph_nodes(outputs)}
    assert found["Tanh"] == "1.0"
    assert found["Addmm"] == "0"
    assert all(not module._forward_hooks for module in model.modules())


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * (1 - ctx.saved_tensors[0].tanh() ** 2)


class OutOfAutograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(slope.detach().numpy() * (1 - x.detach().tanh().numpy() ** 2))


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.inner = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        hidden = checkpoint(self.inner, self.first(x).tanh(), use_reentrant=self.use_reentrant)
        return self.last(hidden.tanh())


NOT_TWICE = {
    "once_differentiable": (
        lambda: between_layers(OnceDifferentiable.apply),
        "OnceDifferentiable.*write its backward",
    ),
    "once_differentiable at the end": (
        lambda: nn.Sequential(nn.Linear(3, 2), Calls(OnceDifferentiable.apply)),
        "OnceDifferentiable.*write its backward",
    ),
    "no second derivative": (
        lambda: between_layers(lambda h: torch.cdist(h, h)[:, :4]),
        "replace it",
    ),
}


@pytest.mark.parametrize("look", [hessian, ggn])
@pytest.mark.parametrize(("model", "cure"), NOT_TWICE.values(), ids=NOT_TWICE)
def test_an_operation_without_second_derivative_is_refused(model, cure, look, build):
    matrix = look(Problem(build(model), F.mse_loss, [data(4)]))
    for product in (matrix.to_dense, lambda: matrix @ torch.ones(matrix.shape[0])):
        with pytest.raises(NotTwiceDifferentiable, match=cure):
            product()


def test_a_once_differentiable_function_is_refused_when_unrolled(build):
    problem = Problem(build(NOT_TWICE["once_differentiable"][0]), F.mse_loss, [data()])
    with pytest.raises(NotTwiceDifferentiable, match="write its backward"):
        unrolled_hessian(problem, "0.weight")


def test_reentrant_checkpoints_are_refused_and_others_work(build):
    with pytest.warns(UserWarning, match="use_reentrant=True hides them"):
        problem = Problem(build(lambda: Checkpointed(True)), F.mse_loss, [data()])
    with pytest.raises(NotTwiceDifferentiable, match="checkpoint with use_reentrant=False"):
        hessian(problem).to_dense()
    problem = Problem(build(lambda: Checkpointed(False)), F.mse_loss, [data()])
    plain = Problem(build(lambda: Checkpointed(False)), F.mse_loss, [data()])
    plain.model.forward = lambda x: plain.model.last(
        plain.model.inner(plain.model.first(x).tanh()).tanh()
    )
    torch.testing.assert_close(
        hessian(problem).to_dense(), hessian(plain).to_dense(), rtol=1e-12, atol=1e-14
    )


def test_a_module_compiled_in_place_is_refused(build):
    model = build(lambda: AttentionHead(attention_by_hand))
    model.compile(backend="aot_eager")
    with pytest.raises(NotTwiceDifferentiable, match="pass the model as it was before compilation"):
        hessian(Problem(model, F.mse_loss, [data()])).to_dense()
