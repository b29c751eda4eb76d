"""The zoo hands out what it promises: sizes, ties, flags, closed forms, and not one draw from the global stream."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from hesstheory import zoo

NUM_PARAMS = {
    "tiny_mlp": 12,
    "tiny_relu": 15,
    "tanh_mlp": 83,
    "gelu_mlp": 83,
    "relu_mlp": 83,
    "cnn": 119,
    "residual": 123,
    "rnn": 88,
    "relu_rnn": 88,
    "autoencoder": 53,
    "relu_autoencoder": 53,
    "attention": 118,
    "plain_attention": 106,
    "digits_mlp": 3466,
    "digits_relu_mlp": 3466,
    "digits_cnn": 2790,
    "wide_mlp": 10015,
    "batchnorm_train": 105,
    "dropout_mlp": 115,
}
CLASSIFIERS = [name for name in NUM_PARAMS if "autoencoder" not in name]


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def hessian_of(function, flat):
    return torch.autograd.functional.hessian(function, flat, vectorize=True)


def flat_outputs(problem, batch):
    """Outputs of one batch as a function of the flat parameter vector, and that vector."""
    sizes = [p.numel() for p in problem.params.values()]

    def outputs(flat):
        pieces = zip(problem.params.items(), torch.split(flat, sizes), strict=True)
        named = {name: piece.view_as(p) for (name, p), piece in pieces}
        return functional_call(problem.model, named, (batch[0],))

    return outputs, torch.cat([p.detach().flatten() for p in problem.params.values()])


def hessian_and_ggn(problem):
    """Two dense matrices of a problem of one batch, by plain autograd."""
    batch = problem.batches[0]
    outputs, flat = flat_outputs(problem, batch)
    H = hessian_of(lambda theta: problem.loss_fn(outputs(theta), batch[1]), flat)
    J = torch.autograd.functional.jacobian(outputs, flat, vectorize=True).flatten(0, 1)
    f = outputs(flat).detach()
    S = hessian_of(lambda out: problem.loss_fn(out.view_as(f), batch[1]), f.flatten())
    return H, J.T @ S @ J


def mean_loss_and_accuracy(name, model):
    data = zoo.network(name).data()
    with torch.no_grad():
        outputs = model(data.inputs)
    return float(F.cross_entropy(outputs, data.targets)), float(
        (outputs.argmax(1) == data.targets).double().mean()
    )


# --- networks ---------------------------------------------------------------------------------------------------------


def test_table_lists_every_network():
    assert NUM_PARAMS.keys() == zoo.SMALL.keys() | zoo.MEDIUM.keys() | zoo.TRAIN_MODE.keys()


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_problem_has_promised_size_and_leaves_global_stream_alone(name):
    before = torch.get_rng_state()
    problem = zoo.problem(name, stream(), steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert problem.num_params == NUM_PARAMS[name]
    assert problem.batch_sizes == (20, 13)
    assert problem.dtype == torch.float64
    assert len(problem.partition.blocks) >= 2


@pytest.mark.parametrize("name", [*zoo.SMALL, *zoo.TRAIN_MODE])
def test_small_networks_admit_a_sign_design(name):
    assert NUM_PARAMS[name] <= (16 if name.startswith("tiny") else 127)


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_generator_alone_decides(name):
    first, again, other = (zoo.trained(name, stream(seed), 3).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_longer_training_passes_through_the_same_points(monkeypatch):
    losses = {steps: [] for steps in (3, 5)}
    original = zoo.network("tanh_mlp")
    for steps, seen in losses.items():

        def recorded(outputs, targets, seen=seen):
            seen.append(original.loss(outputs, targets))
            return seen[-1]

        monkeypatch.setitem(zoo.SMALL, "tanh_mlp", replace(original, loss=recorded))
        zoo.trained("tanh_mlp", stream(), steps)
    assert len(losses[5]) == 5
    assert losses[3] == losses[5][:3]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_training_beats_chance(name):
    num_classes = len(zoo.network(name).data().targets.unique())
    loss, accuracy = mean_loss_and_accuracy(name, zoo.trained(name, stream(), 300).eval())
    untrained, _ = mean_loss_and_accuracy(name, zoo.trained(name, stream(), 0).eval())
    assert accuracy > (1 + 3 / num_classes) / 4  # a quarter of the way from chance to perfect
    assert accuracy > 0.8
    assert loss < untrained / 2


@pytest.mark.parametrize("name", ["autoencoder", "relu_autoencoder"])
def test_training_reconstructs(name):
    inputs, targets = zoo.network(name).data()
    assert torch.equal(inputs, targets)
    with torch.no_grad():
        error = F.mse_loss(zoo.trained(name, stream(), 300)(inputs), targets)
    # The outputs lie in a space of five dimensions, which leaves at least 3 of 8 components of unit variance.
    assert 3 / 8 < error < 0.45


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_mode_is_eval_unless_the_claim_is_about_train_mode(name):
    for steps in (0, 2):
        model = zoo.trained(name, stream(), steps)
        assert {m.training for m in model.modules()} == {name in zoo.TRAIN_MODE}


@pytest.mark.parametrize(
    "name", [name for name in NUM_PARAMS if "cnn" in name or "batchnorm" in name]
)
@pytest.mark.parametrize("steps", [0, 5])
def test_batch_norm_is_generic(name, steps):
    norms = [
        m
        for m in zoo.trained(name, stream(), steps).modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    assert norms
    for norm in norms:
        assert norm.momentum == 0.1
        assert int(norm.num_batches_tracked) == 1 + steps
        for values, neutral in (
            (norm.weight, 1),
            (norm.bias, 0),
            (norm.running_mean, 0),
            (norm.running_var, 1),
        ):
            assert bool((values != neutral).all())
        assert bool((norm.running_var > 0).all())


def test_running_statistics_of_an_untrained_network_are_those_of_its_data():
    model, data = zoo.trained("cnn", stream(), 0), zoo.network("cnn").data()
    with torch.no_grad():
        hidden = model.conv1(data.inputs)
    torch.testing.assert_close(model.norm1.running_mean, hidden.mean((0, 2, 3)))
    torch.testing.assert_close(model.norm1.running_var, hidden.transpose(0, 1).flatten(1).var(1))


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_single_precision_is_the_same_network(name):
    single, double = (
        zoo.trained(name, stream(), 0, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    for coarse, fine in zip(single.parameters(), double.parameters(), strict=True):
        assert coarse.dtype == torch.float32
        assert torch.equal(coarse, fine.float())
    assert zoo.problem(name, stream(), dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("name", zoo.SMALL)
def test_piecewise_linear_networks_have_the_diagonal_of_the_ggn(name):
    problem = zoo.problem(name, stream(), batch_sizes=(9,))
    H, G = hessian_and_ggn(problem)
    rounding = H.shape[0] * torch.finfo(H.dtype).eps * H.norm()
    agree = bool((H.diagonal() - G.diagonal()).abs().max() <= rounding)
    assert agree == zoo.network(name).piecewise_linear
    assert float((H - G).norm()) > 1e3 * rounding  # the whole matrices never agree


@pytest.mark.parametrize(
    ("name", "exact"), [("relu_rnn", "input"), ("relu_rnn", "head"), ("relu_autoencoder", "up")]
)
def test_only_series_ties_break_the_ggn_of_relu_networks(name, exact):
    problem = zoo.problem(name, stream(), batch_sizes=(9,))
    H, G = hessian_and_ggn(problem)
    rounding = H.shape[0] * torch.finfo(H.dtype).eps * H.norm()
    gap = (H - G).diagonal().abs()
    first, last = problem.offsets[zoo.network(name).series[0]]
    assert float(gap[first:last].max()) > 1e3 * rounding
    assert float(gap[problem.index[exact]].max()) <= rounding


@pytest.mark.parametrize("name", [name for name in zoo.SMALL if zoo.network(name).tied])
def test_ties_name_canonical_parameters(name):
    chosen = zoo.network(name)
    names = dict(zoo.trained(name, stream(), 0).named_parameters())
    assert set(chosen.series) <= set(chosen.tied) <= set(names)


@pytest.mark.parametrize("name", ["autoencoder", "relu_autoencoder"])
def test_autoencoder_shows_its_tie_twice(name):
    problem = zoo.problem(name, stream(), steps=2)
    everywhere = dict(problem.model.named_parameters(remove_duplicate=False))
    assert everywhere["up.weight"] is everywhere["down.weight"]
    assert "down.weight" not in problem.params
    assert problem.partition.blocks["up+down"] == ("up.weight",)


def test_recurrent_weight_is_used_at_every_step_but_the_first():
    problem = zoo.problem("rnn", stream())
    outputs = problem.model(problem.batches[0][0]).sum()
    weight = problem.params["recurrent.weight"]
    uses, stack = 0, [outputs.grad_fn]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            uses += getattr(parent, "variable", None) is weight
            stack.append(parent)
    assert uses == 7


def test_few_parameters_of_small_networks_are_dead():
    for name in zoo.SMALL:
        H, _ = hessian_and_ggn(zoo.problem(name, stream(), batch_sizes=(9,)))
        assert bool((H.abs().sum(1) > 0).float().mean() > 0.8), name


# --- batches and wrong arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({}, (20, 13)),
        ({"num_samples": 1}, (1,)),
        ({"num_samples": 2}, (2,)),
        ({"num_samples": 7}, (5, 2)),
        ({"batch_sizes": (3, 1, 4)}, (3, 1, 4)),
        ({"num_samples": 8, "batch_sizes": [7, 1]}, (7, 1)),
    ],
)
def test_batches_are_consecutive_samples(arguments, sizes):
    problem = zoo.problem("tiny_mlp", stream(), **arguments)
    data = zoo.network("tiny_mlp").data(num_samples=sum(sizes))
    assert problem.batch_sizes == sizes
    assert torch.equal(torch.cat([inputs for inputs, _ in problem.batches]), data.inputs)
    assert torch.equal(torch.cat([targets for _, targets in problem.batches]), data.targets)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: zoo.network("resnet"), KeyError, "tiny_mlp, .*dropout_mlp"),
        (lambda: zoo.problem("resnet", stream()), KeyError, "no network 'resnet'"),
        (lambda: zoo.problem("tiny_mlp", stream(), steps=-1), ValueError, "steps is -1"),
        (
            lambda: zoo.problem("tiny_mlp", stream(), num_samples=5, batch_sizes=(2, 2)),
            ValueError,
            "add up to the 5",
        ),
        (
            lambda: zoo.problem("tiny_mlp", stream(), batch_sizes=(2, 0)),
            ValueError,
            "must be positive",
        ),
        (
            lambda: zoo.problem("tiny_mlp", stream(), num_samples=1000),
            ValueError,
            "1 to 360 images",
        ),
        (lambda: zoo.problem("tiny_mlp", stream(), num_samples=0), ValueError, "num_samples is 0"),
        (lambda: zoo.digits(num_features=65), ValueError, "num_features is 65"),
        (lambda: zoo.digits(num_classes=11), ValueError, "2 to 10 classes"),
        (lambda: zoo.tied_pairs(2, stream()), ValueError, "sign is 2"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- data -------------------------------------------------------------------------------------------------------------


def test_digits_are_standardised():
    inputs, targets = zoo.digits()
    assert inputs.shape == (1797, 64)
    assert targets.unique().tolist() == list(range(10))
    torch.testing.assert_close(inputs.mean(0), torch.zeros(64, dtype=torch.float64))
    torch.testing.assert_close(inputs.square().mean(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_principal_components_are_white(num_classes):
    inputs, targets = zoo.digits(5, num_classes)
    assert targets.unique().tolist() == list(range(num_classes))
    torch.testing.assert_close(inputs.T @ inputs / len(inputs), torch.eye(5, dtype=torch.float64))


def test_data_forms_agree():
    flat, images, rows = zoo.digits(None, 3, 7), zoo.digit_images(3, 7), zoo.digit_rows(3, 7)
    assert images.inputs.shape == (7, 1, 8, 8)
    assert rows.inputs.shape == (7, 8, 8)
    assert torch.equal(flat.inputs, images.inputs.flatten(1))
    assert torch.equal(flat.inputs, rows.inputs.flatten(1))
    assert torch.equal(flat.targets, images.targets)


def test_changing_data_in_place_does_not_change_the_next_copy():
    zoo.digits(4, 3).inputs.zero_()
    zoo.digit_images(3).targets.zero_()
    assert float(zoo.digits(4, 3).inputs.norm()) > 1
    assert zoo.digit_images(3).targets.unique().tolist() == [0, 1, 2]


# --- ties of known bias -----------------------------------------------------------------------------------------------


def unrolled_hessian(problem):
    """The Hessian over the two uses of the weight as if they were two weights, (4+4)×(4+4)."""
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))

    def risk(flat):
        uses = {"first.weight": flat[:4].view(2, 2), "second.weight": flat[4:].view(2, 2)}
        return problem.loss_fn(
            functional_call(problem.model, uses, (inputs,), tie_weights=False), targets
        )

    return hessian_of(risk, problem.params["first.weight"].detach().flatten().repeat(2))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_tied_pairs_have_the_bias_that_they_state(sign, seed):
    for pair in zoo.tied_pairs(sign, stream(seed)):
        U = unrolled_hessian(pair.problem)
        rounding = len(U) * torch.finfo(U.dtype).eps * U.norm() * 10
        traces = torch.stack([U[i : i + 4, j : j + 4].trace() for i in (0, 4) for j in (0, 4)])
        assert abs(-float(traces[1] + traces[2]) - pair.bias) <= rounding
        assert abs(float(traces.sum()) - pair.trace) <= rounding
        assert (pair.bias > 0) - (pair.bias < 0) == sign
        assert list(pair.problem.params) == ["first.weight"]
        assert list(pair.problem.partition.blocks) == ["first+second"]


# --- prescribed Hessians ----------------------------------------------------------------------------------------------


def symmetric(num_samples, size, seed=0):
    A = torch.randn(num_samples, size, size, generator=stream(seed), dtype=torch.float64)
    return (A + A.mT) / 2


@pytest.mark.parametrize("sizes", [(2, 1, 3), {"stem": 4, "head": 2}])
def test_prescribed_hessian_of_every_sample(sizes):
    matrices = symmetric(5, 6)
    problem = zoo.prescribed(matrices, sizes, stream(1), batch_sizes=(1, 3, 1))
    names = list(sizes) if isinstance(sizes, dict) else ["block0", "block1", "block2"]
    assert list(problem.partition.blocks) == names
    assert problem.batch_sizes == (1, 3, 1)
    assert all(bool((p != 0).all()) for p in problem.params.values())
    for matrix, sample in zip(matrices, problem.samples(), strict=True):
        outputs, flat = flat_outputs(sample, sample.batches[0])
        H = hessian_of(lambda theta, outputs=outputs: problem.loss_fn(outputs(theta), None), flat)
        torch.testing.assert_close(
            H, matrix, rtol=0, atol=4 * torch.finfo(H.dtype).eps * float(matrix.abs().max())
        )


def test_prescribed_point_is_taken():
    theta = torch.arange(1.0, 4.0, dtype=torch.float64)
    problem = zoo.prescribed(symmetric(2, 3), (2, 1), stream(), theta=theta)
    assert torch.equal(torch.cat(list(problem.params.values())), theta)
    assert problem.params["block0.theta"].data_ptr() != theta.data_ptr()


@pytest.mark.parametrize(
    ("matrices", "sizes", "theta", "message"),
    [
        (torch.eye(3), (3,), None, "pass N×P×P"),
        (torch.triu(torch.ones(1, 3, 3)), (3,), None, "not symmetric"),
        (torch.ones(1, 3, 3), (1, 1), None, "add up to 3"),
        (torch.ones(1, 3, 3), (3, 0), None, "must be positive"),
        (torch.ones(1, 3, 3), (3,), torch.ones(2), "theta has shape"),
    ],
)
def test_wrong_prescriptions_are_named(matrices, sizes, theta, message):
    with pytest.raises(ValueError, match=message):
        zoo.prescribed(matrices, sizes, stream(), theta=theta)


# --- train mode -------------------------------------------------------------------------------------------------------


def test_train_mode_batch_norm_makes_the_risk_depend_on_the_batches():
    one, two = (
        zoo.problem("batchnorm_train", stream(), batch_sizes=sizes) for sizes in ((8,), (4, 4))
    )
    halves = sum(two.loss(batch).item() for batch in two.batches) / 2
    assert abs(one.loss(one.batches[0]).item() - halves) > 1e-3


def test_dropout_is_active():
    problem = zoo.problem("dropout_mlp", stream())
    inputs, _ = problem.batches[0]
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(problem.model(inputs), problem.model(inputs))
