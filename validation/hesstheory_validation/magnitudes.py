"""What the sides of an exact check are made of: sizes of their terms and numbers of roundings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hesstheory.claims.context import Case

EPS = float(np.finfo(np.float64).eps)

# Operations on the path through a small network and its derivatives, beside the sums.
PATH = 64


def roundings(case: Case, num_probes: int) -> int:
    """Roundings on the longest path to a mean of q_l.

    They are those of the sums over parameters, samples and (pairwise) probes, and of the passes
    through the network.
    """
    return case.problem.num_params + case.problem.num_samples + num_probes.bit_length() + PATH


def absolute_rows(case: Case) -> Tensor:
    """Σ_{i∈l} Σ_j |H_ij|, the absolute values that q_l is made of when the probes are signs."""
    return torch.stack([case.H[index].abs().sum() for index in case.problem.index.values()])


def variance_magnitude(q: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """What the roundings of a variance scale with, when those of q scale with `magnitude`.

    An error δ in every q moves mean (q − q̄)² by at most 2δ mean|q − q̄| ≤ 4δ mean|q|.
    mean q² is its own rounding.
    """
    return 4 * magnitude * np.abs(q).mean(0) + (q**2).mean(0)
