"""Small measures that checks of several kinds use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hesstheory.conformance.contract import TOTAL, Answer
from hesstheory.conformance.problems import Reference
from hesstheory.evidence.intervals import Interval

SAME = 1e-9  # relative: answers of equal generator states differ by rounding only, and float32 inside shows


def distinct(rows: np.ndarray) -> np.ndarray:
    """Rows that differ by more than rounding.

    On a network, twelve probes give the same sum again by chance with probability < 1e-7 even if each is a coordinate.
    """
    distinct: np.ndarray = np.unique((rows / np.abs(rows).max()).round(12), axis=0)
    return distinct


def is_exact(answer: Answer, reference: Reference) -> bool:
    return relative_difference(answer.values, targets_of(answer, reference)) < 1e-6


def targets_of(answer: Answer, reference: Reference) -> dict[str, float]:
    return {TOTAL: sum(reference.traces.values())} if answer.is_total else reference.traces


def relative_difference(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Largest difference, relative to the sum of the sizes."""
    size = sum(abs(x) for x in a.values()) or 1.0
    return max(abs(a[block] - b[block]) for block in a) / size


def percent(found: Interval) -> str:
    return f"{100 * found.effect:+.3g} % [{100 * found.low:+.3g}, {100 * found.high:+.3g}]"


def sign_of(effect: float) -> str:
    return "+" if effect > 0 else "−"
