"""Small measures that checks of several kinds use, and the tolerances that they share.

`tests/conformance/test_tolerances.py` measures what each tolerance has to lie between.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hesstheory.conformance.contract import TOTAL, Answer
from hesstheory.conformance.problems.reference import Reference
from hesstheory.evidence.intervals import Interval

# All are relative to Σ_l |tr H_ll|, or to the largest answer.
#
# Two answers that one float64 computation gives are closer than this: no randomness is in them.
# The rounding of a sum of P ≤ 768 terms is about √P·eps = 6e-15 of it. Answers from other draws lie
# 1e-3 apart and more.
ROUNDING = 1e-12
# Two ways of writing one float64 computation agree to this: right estimators differ by 3e-16 at
# most. Arithmetic in float32 inside (eps = 1.2e-7) moves an answer by 1e-8 and more, if at all.
SAME = 1e-9
# An answer this close to the certified trace is exact, be it in float32: a diagonal that is cast to
# float32 is off by 3e-8. One probe is so close by chance with probability below 1e-4.
EXACT = 1e-6
# Of float32 problems: 3 √P·eps for P = 768 parameters.
SAME_IN_FLOAT32 = 1e-5
# What lower precision inside explains, 3e-8 for float32 with room for terms that cancel. Answers
# from other draws lie 1e-3 apart and more.
LOWER_PRECISION = 1e-4
# Times √P ≤ 14: the mean over all Hadamard columns is a trace up to 3e-16 for right estimators, and
# off by 1e-8 and more for float32 inside.
ENUMERATED = 1e-10


def distinct(rows: np.ndarray) -> np.ndarray:
    """Rows that differ by more than rounding.

    On a network, twelve probes give the same sum again by chance with probability below 1e-7, even
    if each is a coordinate.
    """
    digits = round(-np.log10(ROUNDING))
    distinct: np.ndarray = np.unique((rows / np.abs(rows).max()).round(digits), axis=0)
    return distinct


def is_exact(answer: Answer, reference: Reference) -> bool:
    """Whether the answer is the certified one, be it in single precision."""
    return relative_difference(answer.values, targets_of(answer, reference)) < EXACT


def targets_of(answer: Answer, reference: Reference) -> dict[str, float]:
    """The certified traces of what is answered: of the blocks, or of the total."""
    return {TOTAL: reference.total} if answer.is_total else reference.traces


def relative_difference(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Largest difference, relative to the sum of the sizes."""
    size = sum(abs(x) for x in a.values()) or 1.0
    return max(abs(a[block] - b[block]) for block in a) / size


def percent(found: Interval) -> str:
    """An effect relative to 1 with its interval, in per cent."""
    return f"{100 * found.effect:+.3g} % [{100 * found.low:+.3g}, {100 * found.high:+.3g}]"


def sign_of(effect: float) -> str:
    """The sign for a signature."""
    return "+" if effect > 0 else "−"
