"""Roots by position are those of the dense loss Hessian, and positions that meet have none."""

from __future__ import annotations

import pytest
import torch
from builders import stream
from torch import nn
from torch.func import jacrev
from torch.nn import functional as F

from hesstheory import NotConvex, Problem, exact_traces
from hesstheory.outputs.separable import DiagonalRoot, SoftmaxRoot, separable_root

WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def pixels(side=8, number=2):
    """Images and a model of one convolution for three classes a pixel."""
    x = torch.randn(number, 1, side, side, generator=stream(), dtype=torch.float64)
    return x, torch.randint(3, (number, side, side), generator=stream(1))


def ignored(targets):
    targets = targets.clone()
    targets.view(-1)[::3] = -100
    return targets


def tokens(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class PerPixel(nn.Module):
    """Classes along axis 1, or along the last one."""

    def __init__(self, last=False):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)
        self.last = last

    def forward(self, x):
        f = self.conv(x)
        return f.flatten(2).mT if self.last else f


X, Y = pixels()
SOFTMAXES = {
    "N, C, H, W": (False, F.cross_entropy, Y),
    "N, T, V": (True, tokens, Y.flatten(1)),
    "ignored targets": (False, F.cross_entropy, ignored(Y)),
    "ignored targets, N, T, V": (True, tokens, ignored(Y.flatten(1))),
    "label smoothing": (False, nn.CrossEntropyLoss(label_smoothing=0.2), Y),
    "class weights": (False, nn.CrossEntropyLoss(weight=WEIGHTS), Y),
    "sums": (False, nn.CrossEntropyLoss(reduction="sum"), Y),
}
DIAGONALS = {
    "squares": (False, lambda f, y: (f - 1).square().mean(), Y),
    "binary logits": (
        True,
        lambda f, y: F.binary_cross_entropy_with_logits(f, torch.ones_like(f)),
        Y,
    ),
    "squares with a mask": (
        False,
        lambda f, y: (((f - 1) ** 2).mean(1) * (y > 0)).sum() / (y > 0).sum(),
        Y,
    ),
}


def problem_of(build, last, loss_fn, targets):
    model = build(lambda: PerPixel(last))
    weight = {"weight": lambda batch: len(batch[0])}
    with pytest.MonkeyPatch.context() as patch:
        # Sums and masks are no means over images: the root does not ask.
        patch.setattr("hesstheory.problem.first_pass.why_no_mean", lambda *batch: "")
        return Problem(model, loss_fn, [(X, targets)], **weight)


def dense(problem, n):
    """The Hessian of the loss in the outputs of sample n."""
    outputs = problem.outputs(problem.batches[0]).detach()

    def loss(f):
        whole = torch.cat([outputs[:n], f.view_as(outputs[n])[None], outputs[n + 1 :]])
        return problem.loss_fn(whole, problem.batches[0][1])

    return jacrev(jacrev(loss))(outputs[n].flatten())


CASES = [pytest.param(SoftmaxRoot, case, id=name) for name, case in SOFTMAXES.items()]
CASES += [pytest.param(DiagonalRoot, case, id=name) for name, case in DIAGONALS.items()]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_root_is_that_of_the_dense_hessian(kind, case, build):
    problem = problem_of(build, *case)
    outputs = problem.outputs(problem.batches[0])
    root = separable_root(problem, outputs, problem.batches[0])
    assert isinstance(root, kind)
    K = 64 * (2 if kind is SoftmaxRoot else 3)
    assert root.num_columns == K
    parts = [root.columns(slice(start, min(start + 25, K))) for start in range(0, K, 25)]
    S = torch.cat(parts).flatten(2)
    units = torch.eye(root.num_signs)
    combined = torch.stack([root.combination(e.expand(len(outputs), -1)) for e in units]).flatten(2)
    for n in range(len(outputs)):
        H = dense(problem, n)
        for columns in (S[:, n], combined[:, n]):
            torch.testing.assert_close(columns.mT @ columns, H, rtol=1e-10, atol=1e-14)


def neighbours(outputs, targets):
    """Squares of differences between pixels that lie side by side."""
    return F.cross_entropy(outputs, targets) + 1e-3 * outputs.diff(dim=2).square().mean()


def dice(outputs, targets):
    p = outputs.softmax(1)[:, 1].flatten(1)
    return -(p.sum(1).log()).mean()


@pytest.mark.parametrize("loss_fn", [neighbours, dice])
def test_positions_that_meet_have_no_root(loss_fn, build):
    problem = problem_of(build, False, loss_fn, Y)
    assert separable_root(problem, problem.outputs(problem.batches[0]), problem.batches[0]) is None


def test_a_softmax_with_a_little_else_is_not_taken_for_one(build):
    """A millionth of squares on top is another Hessian."""

    def nearly(outputs, targets):
        return F.cross_entropy(outputs, targets) + 1e-6 * outputs.square().mean()

    problem = problem_of(build, False, nearly, Y)
    assert separable_root(problem, problem.outputs(problem.batches[0]), problem.batches[0]) is None


def test_few_outputs_have_a_dense_root(build):
    model = build(lambda: nn.Linear(3, 4))
    problem = Problem(model, F.cross_entropy, [(torch.ones(2, 3), torch.tensor([0, 1]))])
    assert separable_root(problem, problem.outputs(problem.batches[0]), problem.batches[0]) is None


def test_a_diagonal_that_is_not_convex_is_refused(build):
    problem = problem_of(build, False, lambda f, y: -f.square().mean(), Y)
    with pytest.raises(NotConvex, match="not convex"):
        separable_root(problem, problem.outputs(problem.batches[0]), problem.batches[0])


def test_too_many_columns_are_refused_with_their_cost(build):
    """A column is a backward pass: 96×96 pixels would take 18,432 of them."""
    x, y = pixels(side=96, number=1)
    problem = Problem(build(PerPixel), F.cross_entropy, [(x, y)])
    with pytest.raises(ValueError, match=r"18,432 backward passes.*LogitProbeTrace"):
        exact_traces(problem)
