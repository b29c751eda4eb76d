"""Training goes through the same points, and gets somewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import stream
from torch.nn import functional as F

from hesstheory import zoo

NETWORKS = [*zoo.SMALL, *zoo.MEDIUM, *zoo.TRAIN_MODE]
CLASSIFIERS = [name for name in NETWORKS if zoo.network(name).loss is F.cross_entropy]
RECONSTRUCTING = ["autoencoder", "relu_autoencoder"]


def mean_loss_and_accuracy(name, model):
    """Cross-entropy and share of right classes, over all data of a network."""
    data = zoo.network(name).data()
    with torch.no_grad():
        outputs = model(data.inputs)
    right = outputs.argmax(1) == data.targets
    return float(F.cross_entropy(outputs, data.targets)), float(right.double().mean())


def test_all_but_the_autoencoders_classify():
    others = set(zoo.SMALL) - set(CLASSIFIERS)
    assert others >= set(RECONSTRUCTING)
    assert not [name for name in others if zoo.network(name).loss is not F.mse_loss]
    assert len(CLASSIFIERS) >= 17  # the registry had so many


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


@pytest.mark.parametrize("name", RECONSTRUCTING)
def test_training_reconstructs(name):
    inputs, targets = zoo.network(name).data()
    assert torch.equal(inputs, targets)
    with torch.no_grad():
        error = F.mse_loss(zoo.trained(name, stream(), 300)(inputs), targets)
    # The outputs lie in a space of five dimensions.
    # This leaves at least 3 of 8 components of unit variance.
    assert 3 / 8 < error < 0.45
