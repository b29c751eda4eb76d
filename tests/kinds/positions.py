"""Outputs per pixel and token: layouts, ignored targets, smoothing, class weights, squares."""

from __future__ import annotations

import torch
from kinds.case import Case
from torch import nn
from torch.nn import functional as F

WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


class Segmenter(nn.Module):
    """Three classes a pixel."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 2, 3, padding=1)
        self.up = nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return self.up(torch.relu(self.down(x)))


class Language(nn.Module):
    """Five tokens a position."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, ids):
        return self.head(torch.relu(self.body(self.embed(ids))))


def _images(number):
    return torch.randn(number, 1, 4, 4), torch.randint(3, (number, 4, 4))


def _tokens(number):
    return torch.randint(5, (number, 4)), torch.randint(5, (number, 4))


def _count(batch):
    return int((batch[1] >= 0).sum())


def _ignored(batch):
    inputs, targets = batch
    targets.view(-1)[::3] = -100
    return inputs, targets


def logits_per_pixel():
    return Case(Segmenter(), F.cross_entropy, [_images(3), _images(2)])


def logits_per_pixel_in_float32():
    x, y = _images(3)
    return Case(Segmenter().float(), F.cross_entropy, [(x.float(), y)])


def logits_per_pixel_with_ignored_targets():
    batches = [_ignored(_images(3)), _ignored(_images(2))]
    return Case(
        Segmenter(),
        F.cross_entropy,
        batches,
        {"weight": _count},
        shares=[_count(batch) for batch in batches],
    )


def logits_per_pixel_with_label_smoothing():
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return Case(Segmenter(), loss, [_images(3), _images(2)])


def logits_per_pixel_with_class_weights():
    batches = [_images(3), _images(2)]
    return Case(
        Segmenter(),
        nn.CrossEntropyLoss(weight=WEIGHTS),
        batches,
        {"weight": lambda batch: float(WEIGHTS[batch[1]].sum())},
        shares=[float(WEIGHTS[y].sum()) for _, y in batches],
    )


def squares_per_pixel():
    batches = [(x, torch.randn(len(x), 3, 4, 4)) for x, _ in (_images(3), _images(2))]
    return Case(Segmenter(), F.mse_loss, batches)


def binary_logits_per_pixel():
    batches = [(x, torch.rand(len(x), 3, 4, 4)) for x, _ in (_images(3), _images(2))]
    return Case(Segmenter(), F.binary_cross_entropy_with_logits, batches)


def dice_loss_per_image():
    """Pixels of an image meet in the loss, images do not; it is not convex."""

    def loss(outputs, targets):
        p = outputs.softmax(1)[:, 1].flatten(1)
        y = (targets == 1).flatten(1).to(p)
        return (1 - (2 * (p * y).sum(1) + 1) / ((p + y).sum(1) + 1)).mean()

    no = "not convex"
    return Case(
        Segmenter(),
        loss,
        [_images(3), _images(2)],
        refuses={
            "exact H": no,
            "LogitProbeTrace": no,
            "LogitProbeTrace of the sum": no,
            "exact_traces of G": no,
            "sample_traces of G": no,
            "R": no,
        },
    )


def tokens_with_classes_last():
    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    return Case(Language(), loss, [_tokens(3), _tokens(2)])


def tokens_with_classes_first():
    return Case(
        Language(),
        F.cross_entropy,
        [_tokens(3), _tokens(2)],
        {"outputs": lambda out: out.transpose(1, 2)},
    )


def tokens_flattened_by_the_model():
    """A row for every token: four for a sample."""

    class Flat(Language):
        def forward(self, ids):
            return super().forward(ids).flatten(0, 1)

    batches = [(ids, targets.flatten()) for ids, targets in (_tokens(3), _tokens(2))]
    return Case(
        Flat(),
        F.cross_entropy,
        batches,
        {"weight": lambda batch: len(batch[1])},
    )


def tokens_flattened_by_the_model_without_weights():
    class Flat(Language):
        def forward(self, ids):
            return super().forward(ids).flatten(0, 1)

    batches = [(ids, targets.flatten()) for ids, targets in (_tokens(3), _tokens(2))]
    return Case(Flat(), F.cross_entropy, batches, refused="3 inputs but 12 targets.*weight=")


def next_tokens_with_padding():
    """Every token is the target of the one before; padding is ignored."""

    def loss(outputs, targets):
        return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    def weight(batch):
        return int((batch[1][:, 1:] >= 0).sum())

    def batch(number):
        ids, _ = _tokens(number)
        targets = ids.clone()
        targets[0, 2:] = -100
        return ids, targets

    batches = [batch(3), batch(2)]
    return Case(
        Language(), loss, batches, {"weight": weight}, shares=[weight(batch) for batch in batches]
    )


def tokens_with_smoothing_and_ignored_targets():
    smooth = nn.CrossEntropyLoss(label_smoothing=0.2)

    def loss(outputs, targets):
        return smooth(outputs.flatten(0, 1), targets.flatten())

    batches = [_ignored(_tokens(3)), _ignored(_tokens(2))]
    return Case(
        Language(),
        loss,
        batches,
        {"weight": _count},
        shares=[_count(batch) for batch in batches],
    )


class Tied(nn.Module):
    """Embedding and head share their weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.relu(self.embed(ids)))


def tied_embedding_and_head():
    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def renamed(traces):
        return {"embed+head": sum(traces.values())}

    return Case(
        Tied(),
        loss,
        [_tokens(3), _tokens(2)],
        right=lambda case: renamed(Case(case.model, loss, case.batches).traces()),
        right_ggn=lambda case: renamed(Case(case.model, loss, case.batches).ggn_traces()),
        refuses={"exact H": "tie"},
    )
