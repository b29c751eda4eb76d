"""One estimator under check, and the findings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from hesstheory.conformance.contract import Answer, Estimator, accepts, ask
from hesstheory.conformance.laws import Predicted, declared_laws
from hesstheory.conformance.problems.reference import Reference
from hesstheory.conformance.problems.registry import references
from hesstheory.conformance.runs import Runs
from hesstheory.estimators.probes import Probe
from hesstheory.evidence.budget import level_of_look
from hesstheory.evidence.checks import Status
from hesstheory.problem.risk import Problem
from hesstheory.run.streams import stream

# Few probes, since the checks of spread need many runs. Two: K − 1 is half of K. Seventeen where
# blocks are small and draws far from normal: the last of two chunks of sixteen is one probe.
SPREAD_PROBES = {"coupled": 2, "unequal": 17}
# Times a problem's margin. The runs that a bias needs grow with its inverse square: a fifth of the
# margin takes 25 times as long, half of it 4 times.
MARGIN_FACTOR = {"smoke": 5.0, "ci": 1.0, "full": 0.5}


@dataclass(frozen=True)
class Finding:
    """What a check found on one problem.

    Parameters
    ----------
    problem
        Name of the reference problem, empty where none was needed.
    status
        Passed, failed, skipped or inconclusive.
    detail
        What was seen, for the user.
    sign
        Sign of the effect, "+" or "−", for comparison with known mistakes.
    """

    problem: str
    status: Status
    detail: str
    sign: str = ""

    @classmethod
    def of(cls, problem: str, mistake: str, sign: str = "") -> Finding:
        """Failed by a mistake in words, passed where there is none."""
        return cls(problem, Status.FAILED if mistake else Status.PASSED, mistake, sign)


class OutOfTime(Exception):
    """The time of a check is over between two runs."""


@dataclass
class Session:
    """One estimator under check: its runs are shared by all checks.

    Parameters
    ----------
    alpha
        Level of one statistical test.
    probe
        Declares the distribution of the probes, in place of the estimator's own `variance_law`.
    deadline
        When the check under way has to end, by `time.monotonic`.
    check
        Name of the check under way.
    tests_made
        The statistical tests made so far: check, problem and quantity.
    illegal
        Why a problem has no legal answer, by its name.
    """

    estimator: Estimator
    alpha: float
    profile: str = "ci"
    num_probes: int = 32
    seed: int = 0
    probe: Probe | None = None
    deadline: float = float("inf")
    hung: bool = False
    check: str = ""
    tests_made: set[tuple[str, str, str]] = field(default_factory=set)
    illegal: dict[str, str] = field(default_factory=dict)
    _runs: dict[tuple[str, int], Runs] = field(default_factory=dict)
    _references: dict[str, Reference] = field(default_factory=dict)

    def reference(self, name: str) -> Reference:
        """A reference problem of this check's own: what is done to it harms no other check."""
        return self._references.setdefault(name, replace(references()[name]))

    def refresh(self) -> None:
        """Problems anew."""
        self._references.clear()

    def level(self, reference: Reference, quantity: str, looks: int = 1) -> float:
        """Level of one look at a test of a quantity, such as a block; the test is counted."""
        self.tests_made.add((self.check, reference.name, quantity))
        return level_of_look(self.alpha, looks)

    @cached_property
    def takes_probes(self) -> bool:
        """Whether the estimator takes the keyword `probes`."""
        return accepts(self.estimator, "num_probes", "generator", "probes")

    @property
    def laws(self) -> Mapping[str, Predicted]:
        """The variances that are possible by what is declared."""
        return declared_laws(self.estimator, self.probe)

    @property
    def declares_exactness(self) -> bool:
        """Whether the estimator says that its answers are the traces up to rounding."""
        return bool(getattr(self.estimator, "is_exact", False))

    @property
    def is_thorough(self) -> bool:
        """Whether time is no object."""
        return self.profile == "full"

    def margin(self, reference: Reference) -> float:
        """The relative bias of a block that the checks of this profile must find."""
        return reference.margin * MARGIN_FACTOR[self.profile]

    def runs(self, reference: Reference, num_probes: int | None = None) -> Runs:
        """The runs on a problem, made before or to be made."""
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
        """Ends a check whose time is over."""
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def generator(self, *names: str) -> torch.Generator:
        """A random stream of this name."""
        return stream(self.seed, "check", *names)

    def ask(
        self,
        problem: Problem,
        generator: torch.Generator,
        probes: torch.Tensor | None = None,
        num_probes: int = 0,
    ) -> Answer:
        """One legal answer, or what `contract.ask` raises."""
        self.interrupt()
        return ask(self.estimator, problem, num_probes or self.num_probes, generator, probes)

    def legal(self, *names: str) -> list[Reference]:
        """The named reference problems that the estimator answers at all."""
        return [self.reference(name) for name in names if name not in self.illegal]
