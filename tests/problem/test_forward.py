"""The model and the loss are run so that nothing about the model changes."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict, UserDict

import pytest
import torch
from builders import AttentionHead, attention_by_hand, data, halves, mlp, poisoned, stream
from torch import nn
from torch.nn import functional as F

from hesstheory import (
    BlockSeparatedTrace,
    LayerwiseTrace,
    Problem,
    ggn,
    hessian,
    unrolled_hessian,
    zoo,
)

LOSSES = {
    "one number per sample": lambda outputs, targets: (outputs - targets).square().mean(1),
    "a Python number": lambda outputs, targets: 1.0,
    "complex": lambda outputs, targets: (outputs - targets).square().mean() * 1j,
    "None": lambda outputs, targets: None,
}


@pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES)
def test_a_loss_that_is_no_number_is_refused(loss_fn, build, unchecked):
    with pytest.raises(ValueError, match="let it return the mean over the batch"):
        Problem(build(mlp), loss_fn, [data()])


def test_a_loss_that_becomes_nan_later_is_refused(build):
    problem = Problem(build(mlp), F.mse_loss, [data()])
    poisoned(problem.model, torch.nan)
    for look in (
        hessian(problem).to_dense,
        ggn(problem).to_dense,
        lambda: LayerwiseTrace(2)(problem, stream()),
    ):
        with pytest.raises(ValueError, match="look for NaN"):
            look()


class TakesMore(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, shift=0.0, scale=1.0):
        return scale * self.net(x) + shift


INPUTS = {
    "tuple": lambda x, shift: (x, shift),
    "dict": lambda x, shift: {"x": x, "shift": shift},
    "dict with a number": lambda x, shift: {"x": x, "shift": shift, "scale": 1.0},
}


@pytest.mark.parametrize("pack", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("look", [hessian, ggn])
def test_inputs_may_be_tuples_and_dicts(pack, look, build):
    (x, y) = data()
    model = build(TakesMore)
    shift = torch.linspace(0, 1, 16).reshape(8, 2)
    batches = halves(*torch.utils._pytree.tree_map(lambda part: part, (x, y)))
    packed = [
        (pack(inputs, shift[rows]), targets)
        for (inputs, targets), rows in zip(batches, (slice(3), slice(3, 8)), strict=True)
    ]
    plain = [
        (inputs, targets - shift[rows])
        for (inputs, targets), rows in zip(batches, (slice(3), slice(3, 8)), strict=True)
    ]
    expected = look(Problem(model, F.mse_loss, plain)).to_dense()
    problem = Problem(model, F.mse_loss, packed)
    assert problem.batch_sizes == (3, 5)
    torch.testing.assert_close(look(problem).to_dense(), expected, rtol=1e-12, atol=1e-14)
    assert len(list(problem.samples())) == 8


def test_the_default_attention_kernel_works(build):
    inputs, targets = data()
    fused, plain = (
        hessian(
            Problem(
                build(lambda kernel=kernel: AttentionHead(kernel)), F.mse_loss, [(inputs, targets)]
            )
        ).to_dense()
        for kernel in (F.scaled_dot_product_attention, attention_by_hand)
    )
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_grad_mode_of_the_caller_does_not_matter(mode, build):
    model = build(mlp)
    batches = [data()]
    expected = hessian(Problem(model, F.mse_loss, batches)).to_dense()
    with mode():
        problem = Problem(model, F.mse_loss, batches)
        for matrix in (hessian(problem), ggn(problem)):
            product = matrix @ torch.ones(problem.num_params)
            torch.testing.assert_close(product, matrix.to_dense().sum(1), rtol=1e-12, atol=1e-14)
        assert torch.equal(hessian(problem).to_dense(), expected)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        LayerwiseTrace(2)(problem, stream())


def test_iterating_over_products_leaves_the_grad_mode(build):
    with torch.no_grad():
        for _, _ in hessian(Problem(build(mlp), F.mse_loss, halves(*data()))).pushes():
            assert not torch.is_grad_enabled()


def everything_about(model):
    """Parameters, gradients, buffers, modes and flags; conftest watches the global stream."""
    return {
        "parameters": {
            name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)
        },
        "identities": {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)},
        "versions": {
            name: p._version for name, p in model.named_parameters(remove_duplicate=False)
        },
        "gradients": {name: copy.deepcopy(p.grad) for name, p in model.named_parameters()},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        },
    }


def same(before, after):
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(
            same(before[key], after[key]) for key in before
        )
    return torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after


def plain(problem):
    return problem.model


def frozen_first_layer(problem):
    next(problem.model.children()).requires_grad_(False)
    return problem.model


def with_gradients(problem):
    for scale, p in enumerate(problem.model.parameters()):
        p.grad = torch.full_like(p, float(scale))
    return problem.model


def mixed_modes(problem):
    problem.model.train()
    for module in list(problem.model.modules())[::2]:
        module.eval()
    return problem.model


SEEN = {
    **{name: (name, plain) for name in (*zoo.SMALL, *zoo.TRAIN_MODE)},
    "cnn with a frozen layer": ("cnn", frozen_first_layer),
    "residual with a frozen layer": ("residual", frozen_first_layer),
    "tanh_mlp with gradients": ("tanh_mlp", with_gradients),
    "rnn with gradients": ("rnn", with_gradients),
    "batchnorm_train with gradients": ("batchnorm_train", with_gradients),
    "batchnorm_train, some modules in eval mode": ("batchnorm_train", mixed_modes),
    "dropout_mlp, some modules in eval mode": ("dropout_mlp", mixed_modes),
}


@pytest.mark.parametrize(("network", "prepare"), SEEN.values(), ids=SEEN)
def test_looking_at_a_model_changes_nothing(network, prepare):
    model = prepare(zoo.problem(network, stream()))
    chosen = zoo.network(network)
    before = everything_about(model)
    batches = zoo.batches(network, 9)
    held = copy.deepcopy(batches)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the loss does not reach")
        problem = Problem(model, chosen.loss, batches, allow_train_mode=True)
    blocks = list(problem.partition.blocks)
    looks = {
        "Problem": lambda: problem,
        "hessian @": lambda: hessian(problem) @ torch.ones(problem.num_params, 2),
        "hessian": lambda: hessian(problem).to_dense(),
        "ggn": lambda: (hessian(problem) - ggn(problem)).to_dense(),
        "block": lambda: hessian(problem).block(blocks[0], blocks[-1]),
        "unrolled_hessian": lambda: unrolled_hessian(problem, list(problem.params)[-1]),
        "LayerwiseTrace": lambda: LayerwiseTrace(2)(problem, stream()),
        "BlockSeparatedTrace": lambda: BlockSeparatedTrace(2)(problem, stream()),
    }
    for name, look in looks.items():
        state = torch.get_rng_state()
        look()
        after = everything_about(model)
        assert [what for what in before if not same(before[what], after[what])] == [], name
        assert torch.equal(state, torch.get_rng_state()), name
    assert all(
        torch.equal(a, b)
        for old, new in zip(held, batches, strict=True)
        for a, b in zip(old, new, strict=True)
    )


class WithLoss(nn.Module):
    """Returns its loss among its outputs, as the models of Hugging Face do."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return OrderedDict(logits=logits) | (
            {} if labels is None else {"loss": F.cross_entropy(logits, labels)}
        )


def test_a_model_may_bring_its_own_loss(build):
    model = build(WithLoss)
    inputs, labels = data()[0], torch.arange(8) % 2
    batches = [
        UserDict(x=inputs[:3], labels=labels[:3]),
        UserDict(x=inputs[3:], labels=labels[3:]),
    ]
    own = Problem(model, None, batches)
    outside = Problem(
        model, F.cross_entropy, [({"x": inputs}, labels)], outputs=lambda out: out["logits"]
    )
    torch.testing.assert_close(hessian(own).to_dense(), hessian(outside).to_dense())
    assert own.batch_sizes == (3, 5)
    with pytest.raises(ValueError, match="the model returns no loss: give it its targets"):
        Problem(model, None, [{"x": inputs}])
    with pytest.raises(TypeError, match=r"outputs=lambda out: out\.logits"):
        ggn(own).to_dense()
