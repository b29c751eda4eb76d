"""Convolutions by their trilinear form and batch norms by their affine one: PyTorch's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesstheory import hessian, residual, zoo
from hesstheory.autograd.layers import BilinearLayers

LAYERS = {
    "plain": (nn.Conv2d(2, 3, 3), (5, 2, 6, 7)),
    "stride, padding": (nn.Conv2d(2, 3, 3, stride=2, padding=1), (5, 2, 6, 7)),
    "unequal options": (
        nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
        (5, 2, 8, 7),
    ),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (5, 4, 6, 6)),
    "one dimension": (nn.Conv1d(2, 3, 3, dilation=2), (5, 2, 9)),
    "three dimensions": (nn.Conv3d(1, 2, 2, padding=1), (3, 1, 4, 3, 4)),
    "batch norm": (nn.BatchNorm2d(3), (4, 3, 5, 2)),
    "batch norm without positions": (nn.BatchNorm1d(3), (4, 3)),
    "batch norm, other eps": (nn.BatchNorm1d(3, eps=0.1), (4, 3, 5)),
}


def drawn(name, generator):
    """A layer in eval mode and its input in float64, drawn, both asking for gradients."""
    module, size = LAYERS[name]
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(3, generator=generator))
            module.running_var.copy_(torch.rand(3, generator=generator) + 0.5)
    return module, torch.randn(size, generator=generator).requires_grad_()


def second_derivatives(module, x, generator):
    """Output, gradients, and the second derivative of Σ tanh(y) times a random vector."""
    y = module(x)
    leaves = [x, *module.parameters()]
    gradients = torch.autograd.grad(y.tanh().sum(), leaves, create_graph=True)
    directions = [torch.randn(leaf.shape, generator=generator) for leaf in leaves]
    return [y, *gradients, *torch.autograd.grad(gradients, leaves, directions)]


@pytest.mark.parametrize("name", LAYERS)
def test_value_gradient_and_second_derivative_are_pytorchs(name, generator):
    module, x = drawn(name, generator)
    state = generator.get_state()
    expected = second_derivatives(module, x, generator)
    with BilinearLayers():
        found = second_derivatives(module, x, generator.set_state(state))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-13 * theirs.abs().max()


def test_third_derivatives(generator):
    x = torch.randn(1, 1, 4, generator=generator).requires_grad_()
    w = torch.randn(1, 1, 2, generator=generator).requires_grad_()

    def third():
        y = torch.conv1d(x, w).pow(4).sum()
        (first,) = torch.autograd.grad(y, w, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        return torch.autograd.grad(second.square().sum(), w)[0]

    expected = third()
    with BilinearLayers():
        found = third()
    assert torch.allclose(found, expected, rtol=1e-12)


def test_a_batch_norm_has_the_digits_of_pytorchs(generator):
    """A unit that rounding switches on in one route alone would change the matrix."""
    module, x = drawn("batch norm", generator)
    module = module.float()
    x = x.detach().float()
    with BilinearLayers():
        found = module(x)
    assert "_Normalised" in type(found.grad_fn).__name__
    assert torch.equal(found, module(x))


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False).eval()],
    ids=["train mode", "no weight"],
)
def test_a_batch_norm_that_it_does_not_cover_stays_pytorchs(module, generator):
    x = torch.randn(2, 3, 4, 4, generator=generator).requires_grad_()
    with BilinearLayers():
        assert "_Normalised" not in type(module.double()(x).grad_fn).__name__


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.conv2d(x, w, padding="same"),
        lambda x, w: F.conv2d(x[0], w),
        lambda x, w: F.conv2d(input=x, weight=w),
        lambda x, w: F.conv2d(x.to(torch.complex128), w.to(torch.complex128)),
    ],
    ids=["padding in words", "one image without a batch", "by keyword", "complex"],
)
def test_what_it_does_not_cover_stays_pytorchs(call, generator):
    x = torch.randn(2, 3, 5, 5, generator=generator)
    w = torch.randn(4, 3, 3, 3, generator=generator).requires_grad_()
    with BilinearLayers():
        found = call(x, w)
    assert "_Output" not in type(found.grad_fn).__name__
    assert torch.equal(found, call(x, w))


def test_under_autocast_the_convolution_stays_in_low_precision(generator):
    x = torch.randn(2, 3, 5, 5, generator=generator).float()
    w = torch.randn(4, 3, 3, 3, generator=generator).float()
    with torch.autocast("cpu", dtype=torch.bfloat16), BilinearLayers():
        assert F.conv2d(x, w.requires_grad_()).dtype == torch.bfloat16


@pytest.mark.parametrize("matrix", [hessian, residual])
def test_a_large_network_is_multiplied_as_a_small_one(matrix, generator, monkeypatch):
    images = zoo.images("digits", num_samples=2, dtype=torch.float64)
    problem = zoo.full_scale_problem(
        "resnet18", images, batch_size=2, width=16, generator=generator
    )
    v = torch.randn(problem.num_params, generator=generator)
    entered = []
    monkeypatch.setattr(BilinearLayers, "__enter__", _noting(BilinearLayers.__enter__, entered))
    found = matrix(problem) @ v
    assert entered, "a network of this size is meant to be large"
    monkeypatch.setattr("hesstheory.autograd.products.CHUNK_ELEMENTS", 10 * problem.num_params)
    expected = matrix(problem) @ v
    assert len(entered) == 1
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def _noting(method, calls):
    def noted(mode):
        calls.append(mode)
        return method(mode)

    return noted
