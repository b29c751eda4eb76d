"""Is the loss of a batch the mean over its terms? At every size and in every dtype."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from builders import Calls, data, mlp
from torch import nn
from torch.nn import functional as F

from hesstheory import Problem
from hesstheory.problem.means import all_have_rows, why_no_mean


def verdict(loss_fn, size, dtype=torch.float64, scale=1.0, build=None, **options):
    """What the check says of a loss of one batch."""
    model = build(mlp).to(dtype)
    with torch.no_grad():
        model[2].weight.mul_(scale)
        model[2].bias.mul_(scale)
    inputs, _ = data(size, dtype=dtype)
    targets = model(inputs).argmax(1)
    problem = copy.copy(Problem(model, F.cross_entropy, [(inputs, targets)], **options))
    problem.loss_fn = loss_fn
    return why_no_mean(problem, 0, problem.outputs(problem.batches[0]))


def total(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="sum")


def one_fewer(outputs, targets):
    """Divided by N − 1: the nearest wrong mean there is."""
    return total(outputs, targets) / (len(targets) - 1)


def by_a_loop(outputs, targets):
    """Adds up in order, which rounds more than a sum in pairs."""
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses.cumsum(0)[-1] / len(losses)


def in_bfloat16(outputs, targets):
    return F.cross_entropy(outputs.bfloat16(), targets)


def in_float32(outputs, targets):
    return F.cross_entropy(outputs.float(), targets)


SIZES = (2, 3, 7, 64, 257, 4096, 100_000)
DTYPES = (torch.float64, torch.float32)


# A net that is sure of every sample has losses far below one.
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_means_pass_and_sums_do_not(size, dtype, scale, build):
    for loss_fn in (F.cross_entropy, by_a_loop, in_float32):
        assert verdict(loss_fn, size, dtype, scale, build) == "", loss_fn.__name__
    assert "reduction='sum'" in verdict(total, size, dtype, scale, build)


@pytest.mark.parametrize("size", [size for size in SIZES if size > 3])
def test_the_nearest_wrong_mean_is_seen(size, build):
    assert "not the mean over samples" in verdict(one_fewer, size, torch.float32, build=build)


@pytest.mark.parametrize("size", [2, 64, 4096])
def test_a_loss_in_bfloat16_is_held_to_its_own_rounding(size, build):
    assert verdict(in_bfloat16, size, torch.float32, build=build) == ""
    found = verdict(lambda f, y: in_bfloat16(f, y) * len(y), size, torch.float32, build=build)
    assert "not the mean" in found


def test_terms_are_what_the_weight_says(build):
    weights = torch.tensor([1.0, 3.0])
    loss = nn.CrossEntropyLoss(weight=weights)
    right = {"weight": lambda batch: float(weights[batch[1]].sum())}
    wrong = {"weight": lambda batch: float(weights.flip(0)[batch[1]].sum())}
    # F.cross_entropy is no mean over such terms: the problem is built by a single sample.
    for options, seen in ((right, False), (wrong, True)):
        model = build(mlp)
        inputs, _ = data(40)
        targets = (inputs[:, 0] > 0).long()
        problem = copy.copy(Problem(model, loss, [(inputs[:1], targets[:1])], **options))
        problem.batches = [(inputs, targets)]
        problem.samples_of_batch = (40,)
        assert bool(why_no_mean(problem, 0, problem.outputs(problem.batches[0]))) == seen


def test_a_loss_for_the_whole_batch_is_said_to_be_one(build):
    counted = torch.arange(8) % 2 == 0
    found = verdict(lambda f, y: F.cross_entropy(f[counted], y[counted]), 8, build=build)
    assert "fails on parts of batch 0" in found


def test_what_the_model_adds_beside_its_outputs_is_no_excuse(build):
    """Where outputs cannot be cut the halves go through the model."""
    model = build(lambda: nn.Sequential(mlp(), Calls(lambda f: {"f": f, "size": f.norm()})))
    batch = (data(8)[0], torch.arange(8) % 2)
    mean = Problem(model, lambda out, y: F.cross_entropy(out["f"], y), [batch])
    assert why_no_mean(mean, 0, mean.outputs(mean.batches[0])) == ""
    summed = copy.copy(mean)
    summed.loss_fn = lambda out, y: total(out["f"], y)
    assert "not the mean over samples" in why_no_mean(summed, 0, summed.outputs(summed.batches[0]))
    assert not all_have_rows(mean.outputs(batch), 8)


def test_one_sample_says_nothing(build):
    assert verdict(total, 1, build=build) == ""


@pytest.mark.parametrize("given", [0, -1, math.nan, math.inf, "many", None])
def test_a_weight_that_is_no_number_of_terms_is_refused(given, build, unchecked):
    with pytest.raises(ValueError, match=r"weight (gives|fails).*number"):
        Problem(build(mlp), F.mse_loss, [data()], weight=lambda batch: given)
