"""Backward passes, counted, and one network under several losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory.claims.context import Case
from hesstheory.problem.risk import Problem


class CountedPasses(nn.Module):
    """A network that counts the backward passes through it, one for every column.

    Columns that come all at once are refused, after which the library passes them one by one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.model(x)
        if outputs.requires_grad:
            outputs.register_hook(self._counted)
        return outputs

    def _counted(self, slope: Tensor) -> None:
        slope.detach().sum().item()  # RuntimeError for several columns at once
        self.count += 1


def passes(problem: Problem, act: Callable[[Problem], object]) -> int:
    """Backward passes of an action, through all batches together."""
    counting = CountedPasses(problem.model)
    counted = Problem(counting, problem.loss_fn, problem.batches)
    counting.count = 0  # the hook makes the problem try its derivatives when it is built
    act(counted)
    return counting.count


@lru_cache(maxsize=16)
def with_other_losses(case: Case) -> dict[str, Case]:
    """The network of a classifier under three losses."""
    hot = [(x, F.one_hot(y, 3).double()) for x, y in case.problem.batches]
    squares, binary = (Problem(case.problem.model, loss, hot) for loss in (F.mse_loss, _binary))
    named = {"cross-entropy": case.problem, "squares": squares, "binary": binary}
    return {
        name: Case(case.network, f"{case.stage}, {name}", problem)
        for name, problem in named.items()
    }


def _binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets)
