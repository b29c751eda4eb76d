"""A problem with its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import NamedTuple

from hesstheory.conformance.contract import TOTAL
from hesstheory.problem.risk import Problem

# Beside this folder, in that of `hesstheory.conformance`.
CERTIFIED = "certified.json"


class Norms(NamedTuple):
    """What the variance of one probe on block l depends on, in the order of a `VarianceLaw`."""

    own: float  # ‖H_ll‖²
    diagonal: float  # Σ_{i∈l} H_ii²
    cross: float  # Σ_{m≠l} ‖H_lm‖²


@dataclass(frozen=True)
class Reference:
    """A problem with its answer.

    Parameters
    ----------
    name
        Its name in findings and in `certified.json`.
    hunts
        The mistakes that it is built to show.
    margin
        The relative bias of a block that the checks must find. A block whose trace is zero must
        come out zero.
    build
        Builds the problem anew.
    """

    name: str
    hunts: str
    margin: float
    build: Callable[[], Problem]

    @cached_property
    def problem(self) -> Problem:
        """The problem, built once."""
        return self.build()

    @property
    def traces(self) -> dict[str, float]:
        """Certified tr H_ll by block."""
        return {block: values["trace"] for block, values in certified()[self.name].items()}

    @property
    def total(self) -> float:
        """Certified tr H."""
        return sum(self.traces.values())

    @property
    def size(self) -> float:
        """Σ_l |tr H_ll|, the scale of what is relative to all blocks; 1 where it is zero."""
        return sum(map(abs, self.traces.values())) or 1.0

    @property
    def quantities(self) -> list[str]:
        """What an estimator may answer: every block, and the total where there are several."""
        blocks = list(self.traces)
        return blocks if len(blocks) == 1 else [*blocks, TOTAL]

    def norms(self, block: str) -> Norms:
        """Certified norms of a block."""
        of = certified()[self.name][block]
        return Norms(of["own"], of["diagonal"], of["cross"])


@cache
def certified() -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """problem → block → trace, own = ‖H_ll‖², diagonal = Σ_i H_ii², cross = Σ_{m≠l} ‖H_lm‖²."""
    text = (files("hesstheory.conformance") / CERTIFIED).read_text(encoding="utf-8")
    values: Mapping[str, Mapping[str, Mapping[str, float]]] = json.loads(text)
    return values
