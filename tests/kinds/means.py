"""Is the loss a mean? Sums, class weights, ignored targets, all sizes and dtypes."""

from __future__ import annotations

import torch
from builders import mlp
from kinds.case import Case
from torch import nn
from torch.nn import functional as F

NO_MEAN = "not the mean over samples.*weight="
SMOOTH = {"exact H": "tr H may not be tr G"}
WEIGHTS = torch.tensor([1.0, 3.0], dtype=torch.float64)


def _batch(number, dtype=torch.float64):
    return torch.randn(number, 3).to(dtype), torch.randint(2, (number,))


def _batches(*numbers, dtype=torch.float64):
    return [_batch(number, dtype) for number in numbers]


class WithScalar(nn.Module):
    """Returns logits, and a number that is made of the whole batch."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        logits = self.head(x)
        return {"logits": logits, "penalty": logits.square().mean()}


def sum_hidden_by_a_scalar_output():
    def loss(outputs, targets):
        return F.cross_entropy(outputs["logits"], targets, reduction="sum")

    return Case(WithScalar(), loss, _batches(6, 2), refused=NO_MEAN)


def mean_beside_a_scalar_output():
    def loss(outputs, targets):
        return F.cross_entropy(outputs["logits"], targets)

    no_tensor = "returns a dict.*outputs="
    return Case(
        WithScalar(),
        loss,
        _batches(6, 2),
        refuses={"exact H": no_tensor, "G": no_tensor, "R": no_tensor},
    )


def selected_output_beside_a_scalar():
    return Case(
        WithScalar(), F.cross_entropy, _batches(6, 2), {"outputs": lambda out: out["logits"]}
    )


def sum_over_many_in_float32():
    return Case(
        mlp().float(),
        nn.CrossEntropyLoss(reduction="sum"),
        _batches(256, 256, dtype=torch.float32),
        refused=NO_MEAN,
    )


def sum_over_very_many_in_float32():
    return Case(
        mlp().float(),
        nn.CrossEntropyLoss(reduction="sum"),
        _batches(10**5, 10**4, dtype=torch.float32),
        refused=NO_MEAN,
    )


def sum_over_two():
    return Case(mlp(), nn.CrossEntropyLoss(reduction="sum"), _batches(2, 3), refused=NO_MEAN)


def sum_alone():
    return Case(
        mlp(),
        nn.CrossEntropyLoss(reduction="sum"),
        _batches(7),
        says="as it stands",
        refuses=SMOOTH,
    )


def sum_of_a_trained_net_in_float32():
    net = mlp().float()
    with torch.no_grad():
        net[2].weight.mul_(200)
    x, _ = _batch(300, torch.float32)
    y = net(x).argmax(1)
    return Case(
        net,
        nn.CrossEntropyLoss(reduction="sum"),
        [(x[:150], y[:150]), (x[150:], y[150:])],
        refused=NO_MEAN,
    )


def mean_over_many_in_float32():
    return Case(
        mlp().float(),
        F.cross_entropy,
        _batches(400, 40, dtype=torch.float32),
        refuses=SMOOTH,
    )


def class_weights():
    return Case(
        mlp().float(),
        nn.CrossEntropyLoss(weight=WEIGHTS.float()),
        _batches(200, 100, dtype=torch.float32),
        refused=NO_MEAN,
    )


def class_weights_with_their_sum():
    batches = _batches(6, 3)
    return Case(
        mlp(),
        nn.CrossEntropyLoss(weight=WEIGHTS),
        batches,
        {"weight": lambda batch: float(WEIGHTS[batch[1]].sum())},
        shares=[float(WEIGHTS[y].sum()) for _, y in batches],
        refuses=SMOOTH,
    )


def class_weights_with_a_wrong_weight():
    return Case(
        mlp(),
        nn.CrossEntropyLoss(weight=WEIGHTS),
        _batches(6, 3),
        {"weight": lambda batch: len(batch[1])},
        refused=NO_MEAN,
    )


def _ignored(number):
    x, y = _batch(number)
    y[::3] = -100
    return x, y


def ignored_targets():
    return Case(mlp(), F.cross_entropy, [_ignored(128), _ignored(64)], refused=NO_MEAN)


def ignored_targets_with_their_number():
    batches = [_ignored(9), _ignored(4)]
    return Case(
        mlp(),
        F.cross_entropy,
        batches,
        {"weight": lambda batch: int((batch[1] >= 0).sum())},
        shares=[6, 2],
        refuses=SMOOTH,
    )


def weight_that_gives_nothing():
    return Case(
        mlp(),
        F.cross_entropy,
        _batches(6, 3),
        {"weight": lambda batch: 0},
        refused="number of terms",
    )


def weight_that_fails():
    return Case(
        mlp(), F.cross_entropy, _batches(6, 3), {"weight": lambda x, y: 1}, refused="weight fails"
    )


def mask_in_a_closure():
    """A loss that knows which rows count, for one batch of them."""
    counted = torch.arange(8) % 3 != 0

    def loss(outputs, targets):
        return F.cross_entropy(outputs[counted], targets[counted])

    return Case(mlp(), loss, _batches(8), says="as it stands", refuses=SMOOTH)


def mask_in_a_closure_over_two_batches():
    counted = torch.arange(8) % 3 != 0

    def loss(outputs, targets):
        return F.cross_entropy(outputs[counted], targets[counted])

    return Case(mlp(), loss, _batches(8, 8), refused="weight=")


def loss_in_bfloat16():
    """Admitted, and as coarse as bfloat16 is."""

    def loss(outputs, targets):
        return F.cross_entropy(outputs.bfloat16(), targets)

    return Case(
        mlp().float(),
        loss,
        _batches(24, 12, dtype=torch.float32),
        refuses=SMOOTH,
        tolerance=0.05,
    )


def sum_in_bfloat16():
    def loss(outputs, targets):
        return F.cross_entropy(outputs.bfloat16(), targets, reduction="sum")

    return Case(mlp().float(), loss, _batches(24, 12, dtype=torch.float32), refused=NO_MEAN)
