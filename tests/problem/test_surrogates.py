"""A backward pass that is not the derivative of the forward pass is found, and no other."""

from __future__ import annotations

import pytest
import torch
from builders import between_layers, classes, data, mlp
from torch.nn import functional as F

from hesstheory import Problem, hessian
from hesstheory.problem import surrogates
from hesstheory.problem.surrogates import Watch, suspects

TARGETS = classes([0, 1, 0, 0, 1, 1, 0, 1])


class Cubed(torch.autograd.Function):
    """x³, its second derivative right or not."""

    @staticmethod
    def forward(ctx, x, keeps, factor):
        ctx.save_for_backward(x, 3 * x.square())
        ctx.keeps = keeps
        ctx.factor = factor
        return x**3

    @staticmethod
    def backward(ctx, slope):
        x, kept = ctx.saved_tensors
        return ctx.factor * slope * (kept if ctx.keeps else 3 * x.square()), None, None


def hooked(factor):
    """tanh, its gradient scaled."""

    def function(z):
        z = torch.tanh(z)
        if z.requires_grad:
            z.register_hook(lambda slope: factor * slope)
        return z

    return function


RIGHT = {
    "a Function": lambda z: Cubed.apply(z, False, 1.0),
    "a hook that returns what it is given": hooked(1.0),
    "a shift that cancels": lambda z: torch.exp(z - z.detach()) * z.detach().exp(),
}
WRONG = {
    "an intermediate value kept": (lambda z: Cubed.apply(z, True, 1.0), "second derivative.*Cubed"),
    "a slope off by a thousandth": (lambda z: Cubed.apply(z, False, 1.001), "Cubed: along one"),
    "a hook off by a thousandth": (hooked(1.001), "hook that the forward pass"),
    "a hook that turns round": (hooked(-1.0), "hook that the forward pass"),
    "half of it detached": (lambda z: z * z.detach(), "detaches"),
    "a number read off it": (lambda z: z * z.norm().item(), r"detaches \(.*item"),
    "numbers read off it": (lambda z: z * torch.tensor(z.tolist(), dtype=z.dtype), "detaches"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("function", RIGHT.values(), ids=RIGHT)
def test_a_right_gradient_is_let_through(function, dtype, build):
    model = build(lambda: between_layers(function)).to(dtype)
    problem = Problem(model, F.cross_entropy, [(data(dtype=dtype)[0], TARGETS)])
    assert problem.surrogate == ""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("function", "why"), WRONG.values(), ids=WRONG)
def test_another_gradient_is_refused_or_named(function, why, dtype, build):
    model = build(lambda: between_layers(function)).to(dtype)
    batch = (data(dtype=dtype)[0], TARGETS)
    with pytest.raises(ValueError, match=rf"{why}.*allow_surrogate=True"):
        Problem(model, F.cross_entropy, [batch])
    allowed = Problem(model, F.cross_entropy, [batch], allow_surrogate=True)
    assert allowed.surrogate


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_semi_gradient_in_the_loss_is_refused(dtype, build):
    """The loss reads the model by itself: it must see the parameters move."""
    model = build(mlp).to(dtype)
    inputs, later = data(8, num_out=3, dtype=dtype)

    def chased(values, after):
        return (values - 0.9 * model(after).detach()).square().mean()

    with pytest.raises(ValueError, match="the loss detaches"):
        Problem(model, chased, [(inputs, later)])


def test_a_penalty_beside_a_right_function_is_let_through(build):
    model = build(lambda: between_layers(RIGHT["a Function"]))

    def penalised(outputs, targets):
        return F.cross_entropy(outputs, targets) + sum(p.square().sum() for p in model.parameters())

    assert Problem(model, penalised, [(data()[0], TARGETS)]).surrogate == ""


def test_trials_leave_the_parameters_as_they_were(build):
    model = build(lambda: between_layers(WRONG["a hook that turns round"][0]))
    before = {name: (p.data_ptr(), p._version, p.clone()) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="surrogate"):
        Problem(model, F.cross_entropy, [(data()[0], TARGETS)])
    for name, p in model.named_parameters():
        place, version, values = before[name]
        assert (p.data_ptr(), p._version) == (place, version)
        assert torch.equal(p, values)
        assert p.grad is None


def test_nothing_is_tried_where_nothing_is_suspected(build, monkeypatch):
    def never(problem):
        raise AssertionError("a trial")

    monkeypatch.setattr(surrogates, "few_samples", never)
    monkeypatch.setattr("hesstheory.problem.first_pass.few_samples", never)
    problem = Problem(build(mlp), F.cross_entropy, [(data()[0], TARGETS)])
    watch = Watch("cpu")
    with watch:
        loss = problem.loss(problem.batches[0])
    assert suspects(problem, loss, watch) == []
    with pytest.raises(AssertionError, match="a trial"):
        Problem(build(lambda: between_layers(hooked(1.0))), F.cross_entropy, problem.batches)


def test_a_surrogate_that_is_wanted_is_the_one_of_autograd(build):
    model = build(lambda: between_layers(lambda z: z + (z.round() - z).detach()))
    problem = Problem(model, F.mse_loss, [data()], allow_surrogate=True)
    params = list(model.parameters())
    gradient = torch.autograd.grad(problem.loss(data()), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [
        torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(x, params, retain_graph=True, materialize_grads=True)
            ]
        )
        for x in flat
    ]
    torch.testing.assert_close(
        hessian(problem).to_dense(), torch.stack(rows), rtol=1e-12, atol=1e-14
    )


def clipped(bound):
    """tanh, its gradient clipped."""

    def function(z):
        z = torch.tanh(z)
        if z.requires_grad:
            z.register_hook(lambda slope: slope.clamp(-bound, bound))
        return z

    return function


def test_a_hook_that_clips_is_found_where_it_does_not_clip(build):
    """Slopes of this batch are below one: only multiples of the risk tell."""
    with pytest.raises(ValueError, match="not linear in the slope that comes back, by a hook"):
        Problem(
            build(lambda: between_layers(clipped(1.0))), F.cross_entropy, [(data()[0], TARGETS)]
        )
    never = build(lambda: between_layers(clipped(torch.inf)))
    assert not Problem(never, F.cross_entropy, [(data()[0], TARGETS)]).surrogate
