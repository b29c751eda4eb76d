"""Gradients of single samples, side by side and one by one."""

from __future__ import annotations

import pytest
import torch
from builders import close
from torch import nn
from torch.nn import functional as F

from hesstheory import (
    Problem,
    exact_traces,
    ggn,
)
from hesstheory.outputs.per_sample import linearised
from hesstheory.outputs.sample_gradients import one_by_one


class Attends(nn.Module):
    """Tokens that see one another; `spoilt` says how samples depend on their batch."""

    def __init__(self, spoilt=""):
        super().__init__()
        self.embed, self.attend, self.norm = (
            nn.Linear(4, 6),
            nn.MultiheadAttention(6, 2, batch_first=True),
            nn.LayerNorm(6),
        )
        self.last, self.spoilt = nn.Linear(6, 3), spoilt

    def forward(self, x):
        h = self.embed(x)
        h = self.norm(h + self.attend(h, h, h, need_weights=False)[0]).mean(1)
        if self.spoilt == "mean of the batch":
            h = h + h.mean(0)
        if self.spoilt == "size of the batch":
            h = h * len(x)
        if self.spoilt == "slope of the batch":
            h = h + h.mean(0) - h.mean(0).detach()
        if self.spoilt == "a number":
            h = h * (1 + 0 * h.sum().item())
        return self.last(h)


def attending(build, spoilt=""):
    model, x = (
        build(lambda: Attends(spoilt)).double().eval(),
        build(lambda: torch.randn(12, 5, 4)).double(),
    )
    return Problem(
        model,
        F.cross_entropy,
        [(x, torch.arange(12) % 3)],
        allow_surrogate=spoilt == "slope of the batch",
    )


def test_samples_without_a_rule_go_through_the_model_side_by_side(build):
    problem = attending(build)
    line = linearised(problem, problem.batches[0])
    assert "attend.in_proj_weight" in line.others
    assert line.side_by_side is not None
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())


def test_side_by_side_is_one_by_one(build):
    problem = attending(build)
    line = linearised(problem, problem.batches[0])
    u = build(lambda: torch.randn(12, 3)).double()
    params = {name: problem.params[name] for name in line.others}
    together, apart = line.side_by_side(u), one_by_one(line.outputs, params, u)
    assert together.keys() == apart.keys()
    for name, squares in apart.items():
        torch.testing.assert_close(together[name], squares, rtol=1e-12, atol=1e-20)
        assert not together[name].requires_grad


@pytest.mark.parametrize(
    "spoilt", ["mean of the batch", "size of the batch", "slope of the batch", "a number"]
)
def test_a_model_that_is_another_one_for_single_samples_is_differentiated_in_its_batch(
    spoilt, build
):
    problem = attending(build, spoilt)
    line = linearised(problem, problem.batches[0])
    assert line.side_by_side is None
