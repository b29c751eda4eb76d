"""Runs of an estimator on one problem, run r from random stream r."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from hesstheory.conformance.contract import TOTAL, Answer, Estimator, ask
from hesstheory.problem.risk import Problem
from hesstheory.run.streams import stream

# From 64 runs on, Student's interval of a mean is trusted at the suite's level; 8192 of a few
# milliseconds each are what a minute affords.
FIRST_LOOK = 64
LAST_LOOK = 8192


@dataclass
class Runs:
    """Estimates of one problem, run r from random stream r; more are made when asked for."""

    estimator: Estimator
    problem: Problem
    num_probes: int
    seed: int
    name: str
    interrupt: Callable[[], None] = lambda: None
    answers: list[Answer] = field(default_factory=list)

    def first(self, count: int) -> list[Answer]:
        """The first `count` runs."""
        while len(self.answers) < count:
            self.interrupt()
            generator = self.generator(len(self.answers))
            self.answers.append(ask(self.estimator, self.problem, self.num_probes, generator))
        return self.answers[:count]

    def generator(self, run: int) -> torch.Generator:
        """The random stream of a run."""
        return stream(self.seed, self.name, str(self.num_probes), str(run))

    def values(self, count: int) -> dict[str, np.ndarray]:
        """Values by block and in total."""
        answers = self.first(count)
        blocks = [] if answers[0].is_total else list(answers[0].values)
        found = {block: np.array([answer.values[block] for answer in answers]) for block in blocks}
        if len(blocks) != 1:
            found[TOTAL] = np.array([answer.total for answer in answers])
        return found

    def errors(self, count: int) -> dict[str, np.ndarray] | None:
        """Claimed standard errors by block."""
        answers = self.first(count)
        if answers[0].stderr is None:
            return None
        return {
            b: np.array([(answer.stderr or {})[b] for answer in answers]) for b in answers[0].stderr
        }


def looks(first: int = FIRST_LOOK, last: int = LAST_LOOK) -> list[int]:
    """Numbers of runs at which is looked, each twice the one before."""
    counts = [first]
    while counts[-1] < last:
        counts.append(2 * counts[-1])
    return counts
