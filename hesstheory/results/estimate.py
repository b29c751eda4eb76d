"""Traces by block, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Estimate:
    """Traces by block with what is needed to judge them.

    `samples` holds one row per probe and one column per block; `num_matvecs` counts products with the P×P matrix.
    """

    samples: pd.DataFrame
    num_matvecs: int

    @cached_property
    def value(self) -> pd.Series[float]:
        """Mean over the probes, by block."""
        return self.samples.mean()

    @cached_property
    def stderr(self) -> pd.Series[float]:
        """Standard error of the mean over independent probes, s/√K; NaN for a single probe."""
        return self.samples.std(ddof=1) / math.sqrt(len(self.samples))

    def confidence_interval(self, level: float = 0.95) -> pd.DataFrame:
        """Student intervals of each block's trace, columns `low` and `high`; good where K is not tiny."""
        import pandas as pd
        from scipy.stats import t

        if not 0 < level < 1:
            raise ValueError(f"level is {level}: pass the coverage, such as 0.95")
        if len(self.samples) < 2:
            raise ValueError("one probe has no standard error: use at least two probes")
        half = t.ppf((1 + level) / 2, len(self.samples) - 1) * self.stderr
        return pd.DataFrame({"low": self.value - half, "high": self.value + half})

    def __sub__(self, other: Estimate) -> Estimate:
        """The change of the traces, probe by probe: with the same probes in both (generators in the same state), what
        they have in common cancels, and the standard error is that of the change."""
        if not isinstance(other, Estimate):
            raise TypeError(
                f"an Estimate minus a {type(other).__name__}: subtract an Estimate, or use .value"
            )
        if self.samples.shape != other.samples.shape or list(self.samples) != list(other.samples):
            raise ValueError(
                f"{len(self.samples)} probes of {self.samples.shape[1]} blocks minus {len(other.samples)} probes of "
                f"{other.samples.shape[1]} blocks: subtract estimates of one network by one estimator"
            )
        return Estimate(self.samples - other.samples, self.num_matvecs + other.num_matvecs)

    def __repr__(self) -> str:
        import pandas as pd

        return f"Estimate({self.num_matvecs} products)\n{pd.DataFrame({'value': self.value, 'stderr': self.stderr})}"


def as_mapping(estimate: Estimate) -> Mapping[str, tuple[float, float]]:
    """{block: (trace, stderr)}: the plainest form of an estimate, which the conformance contract also accepts."""
    return {
        block: (float(estimate.value[block]), float(estimate.stderr[block]))
        for block in estimate.value.index
    }
