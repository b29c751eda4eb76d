"""What is refused before a forward pass: models, types, embeddings, partitions, changes."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from builders import Calls, attention, between_layers, data, halves, mlp, poisoned
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hesstheory import Partition, Problem, ggn, hessian

MODE = "call model.eval"


def changed(model, change):
    change(model)
    return model


def two_parameters_over_one_storage():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    model.append(nn.Linear(2, 3, bias=False)).append(nn.Linear(3, 2))
    model[3].weight = nn.Parameter(model[2].weight.detach().t())
    return model


def over_one_buffer(*views):
    """An mlp whose weights (4×3 and 2×4) are the given views of one flat tensor."""
    model = mlp()
    flat = torch.linspace(-1, 1, 40)
    for number, view in zip((0, 2), views, strict=True):
        model[number].weight = nn.Parameter(view(flat))
    return model


def expanded():
    return over_one_buffer(lambda flat: flat[:3].expand(4, 3), lambda flat: flat[3:11].view(2, 4))


MODELS = {
    "NaN parameter": (lambda: poisoned(mlp(), torch.nan), "0.weight holds NaN.*restore"),
    "infinite parameter": (
        lambda: poisoned(mlp(), -torch.inf),
        "0.weight holds NaN or infinity: restore",
    ),
    "nothing trainable": (lambda: mlp().requires_grad_(False), "requires_grad_"),
    "no parameter": (lambda: nn.Flatten(), "no trainable parameter"),
    "several dtypes": (
        lambda: changed(mlp(), lambda model: model[0].float()),
        "bring the model to one",
    ),
    "several devices": (
        lambda: changed(mlp(), lambda model: model[0].to("meta")),
        "bring the model to one",
    ),
    "complex": (
        lambda: nn.ParameterList([torch.zeros(3, dtype=torch.complex128)]),
        "view_as_real",
    ),
    "two parameters over one storage": (
        two_parameters_over_one_storage,
        "assign the same nn.Parameter",
    ),
    "two parameters that overlap": (
        lambda: over_one_buffer(
            lambda flat: flat[:12].view(4, 3), lambda flat: flat[11:19].view(2, 4)
        ),
        "0.weight and 2.weight.*give one a clone",
    ),
    "two parameters that overlap in one entry, upside down": (
        lambda: over_one_buffer(
            lambda flat: flat[9::2][:12].view(4, 3), lambda flat: flat[2:10].view(4, 2).t()
        ),
        "2.weight and 0.weight.*give one a clone",
    ),
    "arrays that overlap": (
        lambda: over_one_buffer(
            lambda flat: flat[:12].view(4, 3),
            lambda flat: torch.from_numpy(flat.numpy()[4:12]).view(2, 4),
        ),
        "0.weight and 2.weight.*give one a clone",
    ),
    "expanded parameter": (expanded, r"0.weight share memory.*expand it in forward, or.*clone\(\)"),
    "sliding windows": (
        lambda: over_one_buffer(
            lambda flat: flat[:6].unfold(0, 3, 1), lambda flat: flat[6:14].view(2, 4)
        ),
        r"0.weight share memory.*clone\(\)",
    ),
    "meta device": (lambda: mlp().to("meta"), r"to_empty\(\)"),
    "lazy layer": (
        lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)),
        r"0.weight, 0.bias.*call model\(inputs\)",
    ),
    "lazy buffers": (
        lambda: nn.Sequential(mlp(), nn.LazyBatchNorm1d(affine=False)).eval(),
        r"1.running_mean.*call model\(inputs\)",
    ),
    "train-mode batch norm": (lambda: nn.Sequential(mlp(), nn.BatchNorm1d(2)), MODE),
    "batch norm without statistics": (
        lambda: nn.Sequential(mlp(), nn.BatchNorm1d(2, track_running_stats=False)).eval(),
        "allow_train_mode",
    ),
    "active dropout": (lambda: nn.Sequential(mlp(), nn.Dropout(0.5)), MODE),
    "active alpha dropout": (lambda: nn.Sequential(mlp(), nn.AlphaDropout(0.5)), MODE),
    "dropout of a recurrent net": (
        lambda: nn.Sequential(nn.LSTM(3, 2, num_layers=2, dropout=0.5), Calls(lambda out: out[0])),
        MODE,
    ),
    "dropout of attention": (
        lambda: changed(
            nn.Sequential(mlp()), lambda model: model.add_module("heads", attention(dropout=0.5))
        ),
        "heads.*" + MODE,
    ),
    "functional dropout": (
        lambda: between_layers(lambda h: F.dropout(h, 0.5)),
        "functional dropout.*" + MODE,
    ),
    "functional dropout in eval mode": (
        lambda: between_layers(lambda h: F.dropout(h, 0.5)).eval(),
        "is random",
    ),
}


@pytest.mark.parametrize(("model", "cure"), MODELS.values(), ids=MODELS)
def test_bad_models_are_refused(model, cure, build):
    with pytest.raises(ValueError, match=cure):
        Problem(build(model), F.mse_loss, [data()])


@pytest.mark.parametrize("model", ["train-mode batch norm", "active dropout", "functional dropout"])
def test_train_mode_is_allowed_on_request(model, build):
    problem = Problem(build(MODELS[model][0]), F.mse_loss, [data()], allow_train_mode=True)
    H = hessian(problem).to_dense()
    assert torch.equal(H, hessian(problem).to_dense())


@pytest.mark.parametrize("dropout", [nn.Dropout(0.0), nn.Dropout(0.5).eval(), nn.Identity()])
def test_harmless_train_mode_is_allowed(dropout, build):
    model = build(lambda: nn.Sequential(mlp(), dropout))
    assert model.training
    Problem(model, F.mse_loss, [data()])


DISJOINT = {
    "one after the other": (lambda flat: flat[:12].view(4, 3), lambda flat: flat[12:20].view(2, 4)),
    "transposed": (lambda flat: flat[8:20].view(3, 4).t(), lambda flat: flat[:8].view(4, 2).t()),
    "every other entry": (
        lambda flat: flat[::2][:12].view(4, 3),
        lambda flat: flat[1::2][:8].view(2, 4),
    ),
    "columns": (lambda flat: flat.view(4, 10)[:, :3], lambda flat: flat.view(4, 10)[:, 3:5].t()),
}


@pytest.mark.parametrize("views", DISJOINT.values(), ids=DISJOINT)
def test_views_of_one_buffer_that_do_not_overlap_are_allowed(views, build):
    model = build(lambda: over_one_buffer(*views))
    copied = copy.deepcopy(model)
    seen, expected = (
        hessian(Problem(net, F.mse_loss, [data()])).to_dense() for net in (model, copied)
    )
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-14)


WRONG_TYPES = {
    "a function for a model": ({"model": F.relu}, r"model is a function: pass a torch\.nn\.Module"),
    "a class for a model": ({"model": nn.Linear}, "model is a type: .*not its class"),
    "no model": ({"model": None}, r"pass a torch\.nn\.Module"),
    "a name for a loss": ({"loss_fn": "ce"}, "loss_fn is 'ce': pass a function"),
    "no batches": ({"batches": None}, r"batches is a NoneType: pass a list of \(inputs, targets\)"),
    "a tensor for batches": ({"batches": torch.ones(8, 3)}, "batches is a Tensor: pass a list"),
    "a dict for batches": ({"batches": dict([data()])}, "batches is a dict: pass a list"),
    "a data set for batches": (
        {"batches": TensorDataset(*data())},
        "batches is a TensorDataset: .*or a DataLoader",
    ),
    "a dict for a partition": ({"partition": {"all": ("0.weight",)}}, r"pass Partition\(blocks\)"),
}


@pytest.mark.parametrize(("wrong", "cure"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_wrong_types_are_refused(wrong, cure, build, unchecked):
    right = {"model": build(mlp), "loss_fn": F.mse_loss, "batches": [data()]}
    with pytest.raises(TypeError, match=cure):
        Problem(**right | wrong)
    for name, part in wrong.items():
        if name in ("batches", "partition"):
            with pytest.raises(TypeError, match=cure):
                getattr(Problem(**right), f"with_{name}")(part)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_norm": 0.5},
            "max_norm=0.5, which changes its weights in every forward pass: build it without",
        ),
        (
            {"scale_grad_by_freq": True},
            "scale_grad_by_freq=True, which makes its gradients no derivatives",
        ),
        ({"sparse": True}, "sparse=True, whose gradients have no second derivative"),
    ],
)
def test_embeddings_whose_gradients_are_no_derivatives_are_refused(options, message, build):
    model = build(
        lambda: nn.Sequential(nn.Embedding(5, 4, **options), nn.Flatten(), nn.Linear(12, 3))
    ).double()
    before = copy.deepcopy(model.state_dict())
    batches = [(torch.arange(21).reshape(7, 3) % 5, torch.arange(7) % 3)]
    with pytest.raises(ValueError, match=re.escape(message)):
        Problem(model, F.cross_entropy, batches)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model[0].requires_grad_(False)
    if "max_norm" not in options:
        assert Problem(model, F.cross_entropy, batches).num_params == 39


PARTITIONS = {
    "unknown tensor": (
        {"all": ("0.weight", "0.bias", "2.weight", "2.bias", "4.bias")},
        "4.bias.*it trains",
    ),
    "tensor left out": (
        {"all": ("0.weight", "0.bias", "2.weight")},
        "leaves out.*2.bias.*into a block",
    ),
    "tensor twice": (
        {"a": ("0.weight", "0.bias", "2.weight"), "b": ("2.weight", "2.bias")},
        "belongs to one block",
    ),
    "empty block": (
        {"all": ("0.weight", "0.bias", "2.weight", "2.bias"), "none": ()},
        "none.*drop them",
    ),
}


@pytest.mark.parametrize(("blocks", "cure"), PARTITIONS.values(), ids=PARTITIONS)
def test_bad_partitions_are_refused(blocks, cure, build):
    with pytest.raises(ValueError, match=cure):
        Problem(build(mlp), F.mse_loss, [data()], Partition(blocks))
    with pytest.raises(ValueError, match=cure):
        Problem(build(mlp), F.mse_loss, [data()]).with_partition(Partition(blocks))


CHANGES = {
    "a layer replaced": (
        lambda model: model.__setitem__(2, nn.Linear(4, 2)),
        "2.bias, 2.weight of the model changed",
    ),
    "a layer added": (
        lambda model: model.append(nn.Linear(2, 2)),
        "6.bias, 6.weight of the model changed",
    ),
    "a parameter removed": (
        lambda model: model[0].register_parameter("bias", None),
        "0.bias of the model changed",
    ),
    "a parameter tied": (
        lambda model: setattr(model[2], "bias", model[1].slope),
        "2.bias of the model changed",
    ),
    "frozen": (lambda model: model[0].requires_grad_(False), "0.bias, 0.weight .*frozen"),
    "unfrozen": (lambda model: model[3].requires_grad_(), "3.bias, 3.weight .*unfrozen"),
    "a frozen layer replaced": (
        lambda model: model.__setitem__(3, nn.Linear(2, 2).requires_grad_(False)),
        "3.bias, 3.weight .*replaced",
    ),
    "converted": (lambda model: model.float(), "0.bias, .*converted"),
    "cut": (
        lambda model: setattr(model[2].weight, "data", model[2].weight.data[:1]),
        "2.weight of the model changed",
    ),
    "dropout in train mode": (lambda model: model[4].train(), "dropout '4' is active.*" + MODE),
    "batch norm in train mode": (
        lambda model: model[5].train(),
        "batch norm '5' is in train mode.*" + MODE,
    ),
}


class Sloped(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.slope.sum() * x.tanh()


def changeable():
    frozen = nn.Linear(2, 2).requires_grad_(False)
    return nn.Sequential(
        nn.Linear(3, 4), Sloped(), nn.Linear(4, 2), frozen, nn.Dropout(), nn.BatchNorm1d(2)
    ).eval()


@pytest.mark.parametrize(("change", "what"), CHANGES.values(), ids=CHANGES)
def test_a_model_that_changed_since_is_refused(change, what, build):
    problem = Problem(build(changeable), F.mse_loss, [data()])
    views = [problem, problem.with_batches(halves(*data())), next(problem.samples())]
    views.append(problem.with_partition(Partition.by_tensor(problem.model)))
    build(lambda: change(problem.model))
    cure = "" if MODE in what else ".*build a new Problem"
    for seen in views:
        for look in (hessian, ggn):
            with pytest.raises(ValueError, match=what + cure):
                look(seen).to_dense()


def test_values_may_change_and_other_models_are_left_alone(build):
    problem = Problem(build(changeable), F.mse_loss, [data()])
    before = hessian(problem).to_dense()
    with torch.no_grad():
        for p in problem.params.values():
            p.mul_(2)
    problem.model[2].weight.data = problem.model[2].weight.detach() + 1
    problem.model.train()
    problem.model.eval()
    fresh = Problem(problem.model, F.mse_loss, [data()])
    assert torch.equal(hessian(problem).to_dense(), hessian(fresh).to_dense())
    assert not torch.equal(hessian(problem).to_dense(), before)
    moded = Problem(problem.model, F.mse_loss, [data()], allow_train_mode=True)
    problem.model.train()
    assert torch.isfinite(moded.loss(moded.batches[0]))


def test_a_float32_model_is_guarded_beside_its_copy(build):
    problem = Problem(build(changeable).float(), F.mse_loss, [data(dtype=torch.float32)])
    double = problem.double()
    problem.model[0].requires_grad_(False)
    hessian(double).to_dense()
    with pytest.raises(ValueError, match="build a new Problem"):
        hessian(problem).to_dense()
