"""The registry holds what it says: sizes, data, flags and ties of every network."""

from __future__ import annotations

import pytest
import torch
from builders import stream
from plain_autograd import hessian_and_ggn

from hesstheory import zoo

# Expected; a network that is not listed has the size that its modules say.
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
NETWORKS = [*zoo.SMALL, *zoo.MEDIUM, *zoo.TRAIN_MODE]

# Rademacher designs enumerate all signs of up to 16 parameters, or use an array of 128 rows.
MOST_TINY = 16
MOST_SMALL = 127


def size_of(name):
    """The number of parameters, as listed or else counted."""
    counted = sum(p.numel() for p in zoo.network(name).build().parameters())
    return NUM_PARAMS.get(name, counted)


def test_listed_networks_are_there():
    assert NUM_PARAMS.keys() <= set(NETWORKS)


def test_names_are_unique():
    assert len(set(NETWORKS)) == len(NETWORKS)
    for known in (zoo.SMALL, zoo.MEDIUM, zoo.TRAIN_MODE):
        assert list(known) == [entry.name for entry in known.values()]


def test_a_full_scale_network_is_referred_to_its_builder():
    for name in zoo.FULL_SCALE:
        with pytest.raises(KeyError, match=rf"'{name}' is a full-scale network: .*full_scale_prob"):
            zoo.network(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_problem_has_promised_size_and_leaves_global_stream_alone(name):
    before = torch.get_rng_state()
    problem = zoo.problem(name, stream(), steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert problem.num_params == size_of(name)
    assert problem.batch_sizes == (20, 13)
    assert problem.dtype == torch.float64
    assert len(problem.partition.blocks) >= 2


@pytest.mark.parametrize("name", [*zoo.SMALL, *zoo.TRAIN_MODE])
def test_small_networks_admit_a_sign_design(name):
    assert size_of(name) <= (MOST_TINY if name.startswith("tiny") else MOST_SMALL)


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


def test_few_parameters_of_small_networks_are_dead():
    for name in zoo.SMALL:
        H, _ = hessian_and_ggn(zoo.problem(name, stream(), batch_sizes=(9,)))
        assert bool((H.abs().sum(1) > 0).float().mean() > 0.8), name


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
