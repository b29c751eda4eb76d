"""Square roots of the loss's Hessian in the outputs, and their rounding."""

from __future__ import annotations

import sys

import pytest
import torch
from builders import drawn
from torch import nn
from torch.nn import functional as F

from hesstheory import (
    NotConvex,
    NotTwiceDifferentiable,
    Problem,
    exact_traces,
    ggn,
    hessian,
    zoo,
)
from hesstheory.outputs.loss_root import cheapest_root, loss_root


def test_columns_are_one_fewer_than_classes(generator):
    problem = zoo.problem("relu_mlp", generator, num_samples=12)
    outputs = problem.outputs(problem.batches[0])
    S = loss_root(problem, outputs, problem.batches[0])
    assert S.shape == (*outputs.shape, outputs.shape[1] - 1)
    p = outputs.softmax(1)
    expected = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / len(p)
    assert torch.allclose(S @ S.mT, expected, atol=1e-15)


def test_a_loss_that_is_not_convex_is_refused(build):
    model = build(lambda: nn.Linear(3, 2)).double()
    problem = Problem(
        model, lambda f, y: -(f - y).square().mean(), [(torch.ones(4, 3), torch.zeros(4, 2))]
    )
    with pytest.raises(NotConvex, match="not convex"):
        exact_traces(problem)


def test_a_loss_that_couples_samples_is_refused(build):
    model, x = build(lambda: nn.Linear(3, 2)).double(), build(lambda: torch.randn(4, 3))
    with pytest.warns(UserWarning, match="not the mean"):
        problem = Problem(
            model, lambda f, y: (f - f.mean(0)).square().mean(), [(x, torch.zeros(4, 2))]
        )
    with pytest.raises(ValueError, match="another one"):
        exact_traces(problem)


@pytest.mark.parametrize(
    ("dtype", "margin"), [(torch.float64, 20.0), (torch.float32, 10.0), (torch.float32, 14.0)]
)
def test_a_softmax_that_is_sure_of_every_sample_is_still_convex(dtype, margin, generator):
    """Its curvature is then a difference of far larger terms, in each of 40 draws."""
    model = nn.Linear(3, 3, bias=False, device="meta").to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
    for _ in range(40):
        logits, labels = (
            torch.randn(4, 3, generator=generator),
            torch.randint(3, (4,), generator=generator),
        )
        logits[range(4), labels] += margin
        problem = Problem(model, F.cross_entropy, [(logits.to(dtype), labels)])
        S = loss_root(problem, problem.outputs(problem.batches[0]), problem.batches[0]).double()
        p = logits.to(dtype).double().softmax(1)
        expected = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / 4
        assert (S @ S.mT - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_loss_with_weights_of_its_own_dtype(generator):
    """Cross-entropy with float32 class weights takes no float64 outputs."""
    problem = zoo.problem("tiny_relu", generator, num_samples=6, dtype=torch.float32)
    weights = torch.linspace(1, 2, 3)[: problem.outputs(problem.batches[0]).shape[1]].float()
    weighted = Problem(
        problem.model,
        lambda f, y: F.cross_entropy(f, y, weights, reduction="none").mean(),
        problem.batches,
    )
    H = hessian(weighted) @ torch.eye(weighted.num_params, dtype=torch.float32)
    expected = [float(H[i][:, i].trace()) for i in weighted.index.values()]
    assert (exact_traces(weighted).value - expected).abs().max() < 1e-5 * max(map(abs, expected))


def test_a_curvature_that_explodes_elsewhere_is_measured_here(generator):
    """Charbonnier's loss √(r² + 10⁻¹⁰) has a curvature of 10⁵ at residuals of zero."""
    model = nn.Linear(5, 1, device="meta").to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    data = torch.randn(6, 5, generator=generator), torch.zeros(6, 1)
    problem = Problem(model, lambda f, y: ((f - y).square() + 1e-10).sqrt().mean(), [data])
    found, expected = exact_traces(problem).value, hessian(problem).trace_by_block()
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("matrix", [hessian, ggn], ids=lambda matrix: matrix.__name__)
@pytest.mark.parametrize("samples", [1, 4])
def test_a_loss_without_a_second_derivative(matrix, samples, generator):
    model = drawn(nn.Linear(3, 4, device="meta"), generator)
    data = torch.randn(samples, 3, generator=generator), torch.arange(samples)
    problem = Problem(model, nn.MultiMarginLoss(), [data])
    with pytest.raises(
        NotTwiceDifferentiable, match="replace it by differentiable torch operations"
    ):
        exact_traces(problem, matrix=matrix)


SOFTMAX_LIKE = {
    "weights": lambda f, y: F.cross_entropy(
        f, y, torch.tensor([1.0, 2.0, 0.5]), reduction="none"
    ).mean(),
    "smoothed": lambda f, y: F.cross_entropy(f, y, label_smoothing=0.2),
    "temperature": lambda f, y: F.cross_entropy(f / 3, y),
    "focal": lambda f, y: F.cross_entropy(f, y) + 1e-9 * f.square().mean(),
}


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("name", SOFTMAX_LIKE)
def test_a_root_in_closed_form_serves_a_softmax_alone(name, scale, generator):
    """Sure outputs included; a temperature or a small term beside it is found."""
    outputs, targets = scale * torch.randn(5, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    model = drawn(nn.Linear(3, 3, device="meta"), generator)
    problem = Problem(model, SOFTMAX_LIKE[name], [(outputs, targets)])
    S = cheapest_root(problem, outputs, problem.batches[0])
    H = torch.autograd.functional.hessian(lambda f: SOFTMAX_LIKE[name](f, targets), outputs)
    expected = H[range(5), :, range(5)]
    assert (S @ S.mT - expected).abs().max() <= 1e-13 * expected.abs().max() + 1e-16
    if name in ("weights", "smoothed") and scale == 1.0:
        assert S.shape == (5, 3, 2)
        assert bool((S.triu(1) == 0).all()), "the closed form is a triangle"


# The package's attribute of this name is the function.
module = sys.modules[loss_root.__module__]


# --- roundings, measured ------------------------------------------------------------------------

STABLE = {
    "cross-entropy": F.cross_entropy,
    "smoothed": lambda f, y: F.cross_entropy(f, y, label_smoothing=0.2),
    "temperature": lambda f, y: F.cross_entropy(f / 3, y),
    "largest output taken off": lambda f, y: F.cross_entropy(f - f.max(), y),
    "squares": lambda f, y: F.mse_loss(f, F.one_hot(y, f.shape[1]).to(f)),
    "binary": lambda f, y: F.binary_cross_entropy_with_logits(f, F.one_hot(y, f.shape[1]).to(f)),
    "counts": lambda f, y: F.poisson_nll_loss(f / 10, F.one_hot(y, f.shape[1]).to(f)),
}
each_stable = pytest.mark.parametrize("name", STABLE)
each_size = pytest.mark.parametrize("num_classes", [2, 10, 100])


def slopes_of(name, num_classes, scale):
    """The slopes of one loss at the same outputs in float32 and float64."""
    generator = torch.Generator().manual_seed(0)
    outputs = scale * torch.randn(33, num_classes, generator=generator)
    batch = (torch.zeros(33, 1), torch.arange(33) % num_classes)
    model = nn.Linear(1, num_classes, bias=False, device="meta")
    problem = Problem(drawn(model, generator), STABLE[name], [batch])
    single = outputs.float()
    return problem, [module._slope(problem, f, (f, batch[1])) for f in (single, single.double())]


@each_stable
@each_size
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_entries_of_the_loss_hessian_round_a_tenth_of_what_is_allowed(name, num_classes, scale):
    problem, (single, double) = slopes_of(name, num_classes, scale)
    H = module.loss_hessians(single)
    size = module._curvature_that_rounds(problem, single, H)
    unit = torch.finfo(torch.float32).eps * size
    error = (H.double() - module.loss_hessians(double)).abs().max()
    assert error <= module.ROUNDINGS / 10 * unit
    least = torch.linalg.eigvalsh(H.double()).min()
    assert -least <= module.ROUNDINGS / 100 * num_classes * unit


@each_stable
@each_size
def test_samples_that_are_not_coupled_round_a_tenth_of_what_is_allowed(name, num_classes):
    for slope in slopes_of(name, num_classes, 1.0)[1]:
        module.loss_hessians(slope, roundings=module.ROUNDINGS / 10)


@pytest.mark.parametrize("name", ["cross-entropy", "smoothed", "largest output taken off"])
@each_size
def test_a_softmax_rounds_half_of_what_is_allowed(name, num_classes):
    for slope in slopes_of(name, num_classes, 3.0)[1]:
        assert module.softmax_scale(slope, roundings=module.SOFTMAX_ROUNDINGS / 2) is not None


@pytest.mark.parametrize("coupling", [1e-9, 1e-3])
def test_a_coupling_beyond_rounding_is_found(coupling, generator):
    f = torch.randn(6, 3, generator=generator)
    y = torch.arange(6) % 3
    loss = lambda f, y: F.cross_entropy(f, y) + coupling * f.sum().square()  # noqa: E731
    with pytest.warns(UserWarning, match="not the mean"):
        problem = Problem(drawn(nn.Linear(3, 3, device="meta"), generator), loss, [(f, y)])
    with pytest.raises(ValueError, match="another one"):
        loss_root(problem, f, (f, y))
