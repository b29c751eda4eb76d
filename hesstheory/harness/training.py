"""Training of a full-scale network, kept on disk so that a run that was stopped goes on."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from hesstheory.problem.batches import Batch
from hesstheory.run.files import write_atomically
from hesstheory.run.streams import stream
from hesstheory.zoo.data import Data
from hesstheory.zoo.training import descend

_TRAINED_ON = 4096  # images at most that training draws its batches from
_TRAINING_BATCH = 128  # as He, Zhang, Ren and Sun (2016) on CIFAR
_CHECKPOINT_EVERY = 20  # steps; a kill loses at most so many

# What is usual for such networks on CIFAR (He, Zhang, Ren and Sun 2016), but for the step: half of
# theirs, since a few tens of steps have no time to recover from a bad start.
_LEARNING_RATE = 0.05
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4


@dataclass(frozen=True)
class Training:
    """SGD with momentum and a step that falls as a half cosine.

    Every process does all steps, the one that `keeps` them writes checkpoints.
    Batch number t depends on the seed and t alone, so that a run that goes on is the run that was
    never stopped.
    """

    steps: int
    seed: int
    checkpoint: Path
    keeps: bool
    say: Callable[[str], None]

    def train(self, model: nn.Module, data: Data) -> None:
        """Trains from the checkpoint on, or from the start where there is none."""
        optimizer = SGD(
            model.parameters(), lr=_LEARNING_RATE, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY
        )
        start = self._restored(model, optimizer) if self.checkpoint.exists() else 0
        device = next(model.parameters()).device
        available = min(_TRAINED_ON, len(data.targets))
        size = min(_TRAINING_BATCH, len(data.targets))

        def batch_at(step: int) -> Batch:
            order = torch.randperm(available, generator=stream(self.seed, "batch", str(step)))
            rows = order[:size]
            return data.inputs[rows].to(device), data.targets[rows].to(device)

        def after_step(step: int, loss: Tensor) -> None:
            self._kept(step + 1, loss.item(), model, optimizer)

        descend(
            model.train(), F.cross_entropy, batch_at, optimizer, range(start, self.steps),
            learning_rate_at=self._learning_rate_at, after_step=after_step,
        )  # fmt: skip
        model.zero_grad(set_to_none=True)
        model.eval()

    def _learning_rate_at(self, step: int) -> float:
        """From its first value to almost none."""
        return _LEARNING_RATE * (1 + math.cos(math.pi * step / self.steps)) / 2

    def _kept(self, done: int, loss: float, model: nn.Module, optimizer: SGD) -> None:
        """Says and keeps how far training has come; a loss that is no number ends it."""
        if not math.isfinite(loss):
            raise ValueError(
                f"training diverged at step {done}: the loss is {loss}; take fewer steps"
            )
        if done % _CHECKPOINT_EVERY and done != self.steps:
            return
        if self.keeps:
            packed = io.BytesIO()
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(states | {"step": done}, packed)
            write_atomically(self.checkpoint, packed.getvalue())
        self.say(f"step {done} of {self.steps}: loss {loss:.4g}")

    def _restored(self, model: nn.Module, optimizer: SGD) -> int:
        """The number of steps that are done, with the states after them."""
        device = next(model.parameters()).device
        try:
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            start = int(state["step"])
            finite = all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
            if not (finite and 0 <= start <= self.steps):
                raise ValueError("a number that is not finite, or a step that is not one of these")
        except Exception as error:  # whatever a damaged file makes of unpickling
            reason = type(error).__name__
            raise ValueError(
                f"{self.checkpoint} cannot be read ({reason}): delete it, and --resume trains anew"
            ) from error
        self.say(f"training goes on at step {start} of {self.steps}")
        return start
