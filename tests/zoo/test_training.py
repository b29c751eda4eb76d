"""Training goes through the same points, and gets somewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import stream
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.zoo.initial import blank
from hesstheory.zoo.training import descend

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


# --- the loop -----------------------------------------------------------------------------------


@pytest.fixture
def line():
    """A network without a random number, and four samples for it."""
    model = blank(torch.nn.Linear, 2, 1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    inputs = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    return model, inputs, inputs.sum(1, keepdim=True)


def _descend(line, steps, *, momentum=0.0, **hooks):
    """One sample a step."""
    model, inputs, targets = line
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    rows = [slice(step % 4, step % 4 + 1) for step in range(10)]

    def batch_at(step):
        return inputs[rows[step]], targets[rows[step]]

    descend(model, F.mse_loss, batch_at, optimizer, steps, **hooks)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_rule_is_gradient_descent_with_momentum(line, momentum):
    """v ← μ v + g, θ ← θ − η v, to rounding."""
    _, inputs, targets = line
    theta = torch.full((3,), 0.5, dtype=torch.float64)
    velocity = torch.zeros_like(theta)
    for row in (0, 1, 2):
        x = torch.cat([inputs[row], torch.ones(1, dtype=torch.float64)])
        velocity = momentum * velocity + 2 * (theta @ x - targets[row]) * x
        theta = theta - 0.1 * velocity
    found = _descend(line, range(3), momentum=momentum)
    torch.testing.assert_close(found, theta, rtol=1e-15, atol=1e-15)


def test_hooks_are_told_every_step(line):
    """The schedule before it, progress after it, with the loss at its start."""
    asked = []
    told = []

    def rate(step):
        asked.append(step)
        return 0.0

    before = _descend(line, range(0))
    after = _descend(
        line,
        range(2, 5),
        learning_rate_at=rate,
        after_step=lambda step, loss: told.append((step, loss.item())),
    )
    assert torch.equal(before, after)  # at a rate of zero
    assert asked == [step for step, _ in told] == [2, 3, 4]
    model, inputs, targets = line
    assert told[0][1] == F.mse_loss(model(inputs[2:3]), targets[2:3]).item()


def test_an_exception_of_a_hook_ends_the_training(line):
    """Such as that of a loss that is no number."""

    def stop(step, loss):
        raise ValueError(f"step {step}")

    with pytest.raises(ValueError, match="step 0"):
        _descend(line, range(3), after_step=stop)


def test_nothing_but_the_parameters_is_left_changed(line):
    """No gradients, the mode as it was, and no need of a grad mode."""
    model = line[0].eval()
    with torch.no_grad():
        _descend(line, range(2))
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
