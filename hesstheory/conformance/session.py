"""One estimator under check, and the findings."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from hesstheory.conformance.contract import Answer, Estimator, accepts, ask
from hesstheory.conformance.problems import Reference, references
from hesstheory.conformance.runs import Runs
from hesstheory.problem.risk import Problem
from hesstheory.run.streams import stream

PASSED, FAILED, SKIPPED, BLOCKED, INCONCLUSIVE = (
    "passed",
    "failed",
    "skipped",
    "blocked",
    "inconclusive",
)

SUITE_ALPHA = 1e-6

NUM_TESTS = 256  # more than the suite makes: blocks, problems and checks all counted

# Few probes, since the checks of spread need many runs: two, where K − 1 is half of K, and seventeen
# where blocks are small and draws far from normal; the last of two chunks of sixteen is then one probe.
SPREAD_PROBES = {"coupled": 2, "unequal": 17}
MARGIN_FACTOR = {"smoke": 5.0, "ci": 1.0, "full": 0.5}


@dataclass(frozen=True)
class Finding:
    """What a check found on one problem; `sign` is that of the effect, for comparison with known mistakes."""

    problem: str
    status: str
    detail: str
    sign: str = ""


class OutOfTime(Exception):
    """The time of a check is over between two runs."""


@dataclass
class Session:
    """One estimator under check: its runs are shared by all checks."""

    estimator: Estimator
    profile: str = "ci"
    num_probes: int = 32
    seed: int = 0
    probe: Any = None
    deadline: float = float("inf")
    hung: bool = False
    illegal: dict[str, str] = field(default_factory=dict)
    _runs: dict[tuple[str, int], Runs] = field(default_factory=dict)
    _references: dict[str, Reference] = field(default_factory=dict)

    def reference(self, name: str) -> Reference:
        """A reference problem of this check's own: what an estimator does to it harms no other check."""
        return self._references.setdefault(name, replace(references()[name]))

    def refresh(self) -> None:
        """Problems anew."""
        self._references.clear()

    @property
    def alpha(self) -> float:
        """Level of one test."""
        return SUITE_ALPHA / NUM_TESTS

    @cached_property
    def takes_probes(self) -> bool:
        return accepts(self.estimator, "num_probes", "generator", "probes")

    @property
    def is_thorough(self) -> bool:
        return self.profile == "full"

    def margin(self, reference: Reference) -> float:
        return reference.margin * MARGIN_FACTOR[self.profile]

    def runs(self, reference: Reference, num_probes: int | None = None) -> Runs:
        K = num_probes or self.num_probes
        key = (reference.name, K)
        if key not in self._runs:
            self._runs[key] = Runs(
                self.estimator, reference.problem, K, self.seed, reference.name, self.interrupt
            )
        self._runs[key].problem = reference.problem
        return self._runs[key]

    def spread(self, reference: Reference) -> Runs:
        """The runs whose spread is looked at."""
        return self.runs(reference, min(self.num_probes, SPREAD_PROBES[reference.name]))

    def interrupt(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def generator(self, *names: str) -> torch.Generator:
        return stream(self.seed, "check", *names)

    def ask(
        self, problem: Problem, generator: torch.Generator, probes: Any = None, num_probes: int = 0
    ) -> Answer:
        self.interrupt()
        return ask(self.estimator, problem, num_probes or self.num_probes, generator, probes)

    def legal(self, *names: str) -> list[Reference]:
        """The named reference problems that the estimator answers at all."""
        return [self.reference(name) for name in names if name not in self.illegal]
