"""What is differentiated: bad input is refused with its cure, blocks are as promised, and looking changes nothing."""

import copy
import re
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from hesstheory import (
    BlockSeparatedTrace,
    LayerwiseTrace,
    NotTwiceDifferentiable,
    Partition,
    Problem,
    ggn,
    hessian,
    unrolled_hessian,
    zoo,
)

STREAM = partial(torch.Generator().manual_seed, 0)


def data(num_samples=8, num_in=3, num_out=2, dtype=torch.float64):
    generator = STREAM()
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    return draw(num_samples, num_in), draw(num_samples, num_out)


def halves(inputs, targets):
    return [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Calls(nn.Module):
    """A module that is a function of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def between_layers(function):
    return nn.Sequential(nn.Linear(3, 4), Calls(function), nn.Linear(4, 2))


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
    model, flat = mlp(), torch.linspace(-1, 1, 40)
    for number, view in zip((0, 2), views, strict=True):
        model[number].weight = nn.Parameter(view(flat))
    return model


def expanded():
    return over_one_buffer(lambda flat: flat[:3].expand(4, 3), lambda flat: flat[3:11].view(2, 4))


def poisoned(model, value):
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = value
    return model


def with_hole(value):
    inputs, targets = data()
    inputs[5, 1] = value
    return [(inputs, targets)]


# --- bad input --------------------------------------------------------------------------------------------------------

MODE = "call model.eval"
BATCHES = {
    "empty list": ([], "pass at least one"),
    "empty batch": ([tuple(part[:0] for part in data())], "drop it"),
    "second batch empty": (
        [data(), tuple(part[:0] for part in data())],
        "batch 1 has no samples: drop it",
    ),
    "lengths differ": (
        [(data()[0], data()[1][:5])],
        "8 inputs but 5 targets: give one target per input",
    ),
    "no pair": ([data()[0]], r"pass \(inputs, targets\)"),
    "three parts": ([(*data(), data()[1])], r"pass \(inputs, targets\)"),
    "scalars": ([(torch.tensor(1.0), torch.tensor(1.0))], "samples along axis 0"),
    "NaN among the inputs": (with_hole(torch.nan), "look for NaN"),
    "NaN among the inputs of batch 1": ([data(), *with_hole(torch.nan)], "look for NaN"),
}


@pytest.mark.parametrize(("batches", "cure"), BATCHES.values(), ids=BATCHES)
def test_bad_batches_are_refused(batches, cure, build, unchecked):
    with pytest.raises(ValueError, match=cure):
        Problem(build(mlp), F.mse_loss, batches)


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
        r"\.double\(\)",
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


def attention(**options):
    return nn.MultiheadAttention(2, 1, **options)


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
    "no loss": ({"loss_fn": None}, "loss_fn is None: pass a function"),
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


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, y):
        return self.net(x + y)


LIST = "a list is one input: use a tuple or a dict for several"
FAILING = {
    "inputs in float32": (
        mlp, [data(), (data()[0].float(), data()[1])],
        r"fails on batch 1 \(RuntimeError: .*inputs are torch.float32 \(8, 3\) on cpu.*model is torch.float64 on cpu; "
        r"bring them to one dtype and device with \.to\(\)",
    ),
    "integer inputs": (mlp, [(torch.ones(8, 3, dtype=torch.int64), data()[1])], "batch 0.*inputs are torch.int64"),
    "inputs elsewhere": (mlp, [(data()[0].to("meta"), data()[1])], "inputs are torch.float64.* on meta.*one dtype and"),
    "targets elsewhere": (mlp, [data(), (data()[0], data()[1].to("meta"))], "batch 1.*the targets .* on meta"),
    "too many features": (mlp, [data(num_in=5)], r"inputs are torch.float64 \(8, 5\).*try loss_fn"),
    "no such embedding": (
        lambda: nn.Sequential(nn.Embedding(2, 3), mlp()), [(torch.full((8,), 7), data()[1])], "IndexError: .*int64",
    ),
    "a list of inputs": (Adds, [([data()[0], data()[0]], data()[1])], LIST),
    "a list where the shape is read": (
        lambda: nn.Sequential(Calls(lambda x: x.flatten(1)), mlp()), [([data()[0]], data()[1])], LIST,
    ),
    "no such keyword": (Adds, [({"x": data()[0], "z": data()[0]}, data()[1])], "TypeError: .*'z'"),
}  # fmt: skip


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


def classes(values):
    return torch.tensor(values)


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
    model, (inputs, targets) = build(mlp), data()
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
        lambda: LayerwiseTrace(2)(problem, STREAM()),
    ):
        with pytest.raises(ValueError, match="look for NaN"):
            look()


CHANGES = {
    "a layer replaced": (lambda model: model.__setitem__(2, nn.Linear(4, 2)), "2.bias, 2.weight of the model changed"),
    "a layer added": (lambda model: model.append(nn.Linear(2, 2)), "6.bias, 6.weight of the model changed"),
    "a parameter removed": (lambda model: model[0].register_parameter("bias", None), "0.bias of the model changed"),
    "a parameter tied": (lambda model: setattr(model[2], "bias", model[1].slope), "2.bias of the model changed"),
    "frozen": (lambda model: model[0].requires_grad_(False), "0.bias, 0.weight .*frozen"),
    "unfrozen": (lambda model: model[3].requires_grad_(), "3.bias, 3.weight .*unfrozen"),
    "a frozen layer replaced": (
        lambda model: model.__setitem__(3, nn.Linear(2, 2).requires_grad_(False)), "3.bias, 3.weight .*replaced",
    ),
    "converted": (lambda model: model.float(), "0.bias, .*converted"),
    "cut": (lambda model: setattr(model[2].weight, "data", model[2].weight.data[:1]), "2.weight of the model changed"),
    "dropout in train mode": (lambda model: model[4].train(), "dropout '4' is active.*" + MODE),
    "batch norm in train mode": (lambda model: model[5].train(), "batch norm '5' is in train mode.*" + MODE),
}  # fmt: skip


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


@pytest.mark.parametrize("label", [None, "", 3])
def test_bad_labels_are_refused(label, build, unchecked):
    with pytest.raises(ValueError, match="return a non-empty string"):
        Partition.by(build(mlp), lambda name: label)


def test_bad_depth_is_refused(build):
    with pytest.raises(ValueError, match="pass depth >= 1"):
        Partition.by_module(build(mlp), depth=0)


UNKNOWN = {
    "block": (
        lambda problem: hessian(problem).block("0", "fc1"),
        "no block 'fc1'; the blocks are '0', '2'",
    ),
    "tensor": (
        lambda problem: unrolled_hessian(problem, "w"),
        "no parameter 'w'; the parameters are '0.weight'",
    ),
    "network": (
        lambda problem: zoo.problem("resnet1000", STREAM()),
        "no network 'resnet1000'; the networks are",
    ),
}


@pytest.mark.parametrize(("ask", "cure"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_names_are_answered_with_the_known_ones(ask, cure, build):
    with pytest.raises(KeyError, match=cure):
        ask(Problem(build(mlp), F.mse_loss, [data()]))


def test_numbers_of_the_model_must_be_tensors(build, unchecked):
    problem = Problem(build(mlp), F.mse_loss, [data()])
    with pytest.raises(
        ValueError, match="the two matrices belong to different problems: build both from the same"
    ):
        hessian(problem) - ggn(problem.with_batches(problem.batches))


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
        self.first, self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
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


def test_a_compiled_model_is_taken_as_it_was_before(build):
    """PyTorch differentiates no compiled function twice; names and numbers are those of the model itself."""
    model, batches = build(mlp), [data()]
    plain, compiled = (
        Problem(m, F.mse_loss, batches) for m in (model, torch.compile(model, backend="aot_eager"))
    )
    assert compiled.model is model
    assert list(compiled.params) == list(plain.params)
    assert torch.equal(hessian(compiled).to_dense(), hessian(plain).to_dense())
    partition = Partition.by_tensor(torch.compile(model, backend="aot_eager"))
    assert list(plain.with_partition(partition).partition.blocks) == list(plain.params)


class AttentionHead(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.embed, self.last, self.kernel = nn.Linear(3, 6), nn.Linear(2, 2), kernel

    def forward(self, x):
        query, key, value = self.embed(x)[:, None].chunk(3, dim=-1)
        return self.last(self.kernel(query, key, value)[:, 0])


def attention_by_hand(query, key, value):
    return (query @ key.mT / key.shape[-1] ** 0.5).softmax(-1) @ value


def test_a_module_compiled_in_place_is_refused(build):
    model = build(lambda: AttentionHead(attention_by_hand))
    model.compile(backend="aot_eager")
    with pytest.raises(NotTwiceDifferentiable, match="pass the model as it was before compilation"):
        hessian(Problem(model, F.mse_loss, [data()])).to_dense()


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
    model, batches = build(mlp), [data()]
    expected = hessian(Problem(model, F.mse_loss, batches)).to_dense()
    with mode():
        problem = Problem(model, F.mse_loss, batches)
        for matrix in (hessian(problem), ggn(problem)):
            product = matrix @ torch.ones(problem.num_params)
            torch.testing.assert_close(product, matrix.to_dense().sum(1), rtol=1e-12, atol=1e-14)
        assert torch.equal(hessian(problem).to_dense(), expected)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        LayerwiseTrace(2)(problem, STREAM())


def test_iterating_over_products_leaves_the_grad_mode(build):
    with torch.no_grad():
        for _, _ in hessian(Problem(build(mlp), F.mse_loss, halves(*data()))).pushes():
            assert not torch.is_grad_enabled()


# --- what a problem is ------------------------------------------------------------------------------------------------


def test_frozen_parameters_are_left_out(build):
    model = build(mlp)
    full = Problem(model, F.mse_loss, [data()])
    kept = full.index["2"]
    H = hessian(full).to_dense()
    model[0].requires_grad_(False)
    problem = Problem(model, F.mse_loss, [data()])
    assert list(problem.params) == ["2.weight", "2.bias"]
    assert list(problem.partition.blocks) == ["2"]
    torch.testing.assert_close(
        hessian(problem).to_dense(), H[kept][:, kept], rtol=1e-12, atol=1e-14
    )


class Detour(nn.Module):
    """A net with a layer that the forward pass does not use."""

    def __init__(self):
        super().__init__()
        self.net, self.idle = mlp(), nn.Linear(2, 2)

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
    estimate = LayerwiseTrace(3)(problem, STREAM())
    assert estimate.value["idle"] == estimate.stderr["idle"] == 0


class Switch(nn.Module):
    """Sends negative first inputs through one layer and the others through another."""

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return (self.low if x[0, 0] < 0 else self.high)(x)


def test_a_parameter_reached_by_one_batch_only_is_reached(build):
    low, high = torch.full((4, 3), -1.0), torch.full((2, 3), 1.0)
    problem = Problem(
        build(Switch), F.mse_loss, [(low, torch.zeros(4, 2)), (high, torch.zeros(2, 2))]
    )
    H = hessian(problem).to_dense()
    assert H[problem.index["low"]].norm() == pytest.approx(2 * H[problem.index["high"]].norm())


def test_tied_tensors_are_listed_once_under_their_owners():
    problem = zoo.problem("autoencoder", STREAM())
    assert list(problem.params) == ["up.weight", "up.bias", "down.bias"]
    assert dict(problem.partition.blocks) == {
        "up+down": ("up.weight",),
        "up": ("up.bias",),
        "down": ("down.bias",),
    }
    by_tensor = Partition.by_tensor(problem.model).blocks
    assert dict(by_tensor) == {
        "up.weight+down.weight": ("up.weight",),
        "up.bias": ("up.bias",),
        "down.bias": ("down.bias",),
    }


def tied_within_a_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    model[0].extra = model[0].weight
    return model


def test_a_tie_within_a_layer_stays_in_the_layer(build):
    problem = Problem(build(tied_within_a_layer), F.mse_loss, [data()])
    assert list(problem.partition.blocks) == ["0", "2"]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.stem = nn.Linear(3, 4)
        self.stage = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2)))

    def forward(self, x):
        return self.scale * self.stage(self.stem(x))


NESTED = {
    "layer": (Partition.by_layer, {"scale": 1, "stem": 16, "stage.0": 20, "stage.1.1": 10}),
    "module": (Partition.by_module, {"scale": 1, "stem": 16, "stage": 30}),
    "module at depth 2": (
        partial(Partition.by_module, depth=2),
        {"scale": 1, "stem": 16, "stage.0": 20, "stage.1": 10},
    ),
    "kind": (
        lambda model: Partition.by(model, lambda name: name.rpartition(".")[2]),
        {"scale": 1, "weight": 36, "bias": 10},
    ),
    "tensor": (
        Partition.by_tensor,
        {
            "scale": 1, "stem.weight": 12, "stem.bias": 4, "stage.0.weight": 16, "stage.0.bias": 4,
            "stage.1.1.weight": 8, "stage.1.1.bias": 2,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("cut", "sizes"), NESTED.values(), ids=NESTED)
def test_blocks_of_a_partition(cut, sizes, build):
    model = build(Nested)
    problem = Problem(model, F.mse_loss, [data()], cut(model))
    assert {block: len(index) for block, index in problem.index.items()} == sizes
    assert sorted(torch.cat(list(problem.index.values())).tolist()) == list(
        range(problem.num_params)
    )
    H = hessian(problem).to_dense()
    first, *_, last = sizes
    expected = H[problem.index[first]][:, problem.index[last]]
    torch.testing.assert_close(
        hessian(problem).block(first, last), expected, rtol=1e-12, atol=1e-14
    )
    flat = torch.cat([p.detach().flatten() for p in problem.params.values()])
    for block, names in problem.partition.blocks.items():
        named = torch.cat([problem.params[name].detach().flatten() for name in names])
        assert torch.equal(flat[problem.index[block]], named)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrized():
    model = mlp()
    parametrize.register_parametrization(model[0], "weight", Halved())
    return nn.Sequential(model, nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))


def test_parametrized_weights_belong_to_the_layer_that_owns_them(build):
    problem = Problem(build(parametrized), F.mse_loss, [data()])
    assert {block: len(index) for block, index in problem.index.items()} == {
        "0.0": 16,
        "0.2": 10,
        "1": 8,
    }
    stages = Partition.by_module(problem.model)
    assert list(stages.blocks) == ["0", "1"]


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
    (x, y), model = data(), build(TakesMore)
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


def test_a_data_loader_is_read_once_and_leaves_the_global_stream(build):
    loader = DataLoader(TensorDataset(*data()), batch_size=3, shuffle=True)
    model = build(mlp)
    problem = Problem(model, F.mse_loss, loader)
    assert problem.batch_sizes == (3, 3, 2)
    whole = hessian(Problem(model, F.mse_loss, [data()])).to_dense()
    for seen in (problem, problem.with_batches(loader)):
        torch.testing.assert_close(hessian(seen).to_dense(), whole, rtol=1e-12, atol=1e-14)


def test_targets_may_be_absent(build):
    problem = Problem(
        build(mlp), lambda outputs, targets: outputs.square().mean(), [(data()[0], None)]
    )
    assert problem.num_samples == 8


def test_views_share_what_is_the_same(build):
    problem = Problem(build(mlp), F.mse_loss, halves(*data()))
    tensors = problem.with_partition(Partition.by_tensor(problem.model))
    assert list(tensors.index) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(problem.index) == ["0", "2"]
    assert tensors.batches is problem.batches
    assert problem.double() is problem
    with pytest.raises(ValueError, match="pass at least one"):
        problem.with_batches([])


def test_a_float32_problem_is_doubled_on_a_copy(build):
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 3.0], dtype=torch.float32))
    inputs, targets = data(dtype=torch.float32)
    problem = Problem(build(mlp).float(), weighted, [(inputs, targets.sigmoid())])
    double = problem.double()
    assert (problem.dtype, double.dtype) == (torch.float32, torch.float64)
    assert weighted.pos_weight.dtype is problem.batches[0][0].dtype is torch.float32
    assert double.batches[0][0].dtype is torch.float64
    assert list(double.params) == list(problem.params)
    assert all(torch.equal(double.params[name], p.double()) for name, p in problem.params.items())


def test_a_float32_loss_with_weights_has_an_exact_hessian(build):
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], dtype=torch.float32))
    with pytest.warns(UserWarning, match="as it stands"):
        problem = Problem(
            build(mlp).float(),
            weighted,
            [(data(dtype=torch.float32)[0], classes([0, 1, 0, 0, 1, 1, 0, 1]))],
        )
    assert hessian(problem).to_dense().dtype is torch.float64


def test_repr_says_what_is_differentiated(build):
    assert repr(Problem(build(mlp), F.mse_loss, halves(*data()))) == (
        "Problem(Sequential, 26 parameters in 2 blocks, 8 samples in 2 batches, torch.float64)"
    )


# --- looking changes nothing ------------------------------------------------------------------------------------------


def everything_about(model):
    """Parameters, gradients, buffers, modes and flags of a model; the global stream is watched by conftest."""
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
    model = prepare(zoo.problem(network, STREAM()))
    chosen, before = zoo.network(network), everything_about(model)
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
        "LayerwiseTrace": lambda: LayerwiseTrace(2)(problem, STREAM()),
        "BlockSeparatedTrace": lambda: BlockSeparatedTrace(2)(problem, STREAM()),
    }
    for name, look in looks.items():
        stream = torch.get_rng_state()
        look()
        after = everything_about(model)
        assert [what for what in before if not same(before[what], after[what])] == [], name
        assert torch.equal(stream, torch.get_rng_state()), name
    assert all(
        torch.equal(a, b)
        for old, new in zip(held, batches, strict=True)
        for a, b in zip(old, new, strict=True)
    )


def test_a_loss_that_reads_the_model_is_not_copied(build):
    """A closure over float32 parameters would leave them behind in the float64 copy."""
    model = build(lambda: nn.Linear(3, 2)).float()
    inputs = torch.linspace(-1, 1, 12, dtype=torch.float32).reshape(4, 3)

    def penalised(outputs, targets):
        return outputs.square().mean() + sum(p.square().sum() for p in model.parameters())

    problem = Problem(model, penalised, [(inputs, torch.zeros(4, dtype=torch.float32))])
    with pytest.raises(ValueError, match=r"model\.double"):
        problem.double()
    assert torch.isfinite(
        hessian(problem) @ torch.ones(problem.num_params, dtype=torch.float32)
    ).all()


def test_the_largest_batch_alone(generator):
    problem = zoo.problem("tiny_relu", generator, batch_sizes=[2, 4, 4, 1])
    largest = problem.largest()
    assert largest.batch_sizes == (4,)
    assert largest.batches[0] is problem.batches[1], "the first of them"


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
