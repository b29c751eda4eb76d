"""Blocks in the order of their traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Ranking:
    """Blocks by trace, largest first, with intervals for values and ranks that hold all together at the level.

    `table` has a row per block: `value`, `low`, `high`, `rank` (1 is the largest), `rank_low`, `rank_high`.
    `num_probes_needed` is what would tell every pair of neighbours apart with this estimator, 0 where it is exact,
    infinite where a pair is equal.
    """

    table: pd.DataFrame
    method: str
    num_probes_needed: float

    @property
    def is_decided(self) -> bool:
        """Whether every block has one possible rank."""
        return bool((self.table["rank_low"] == self.table["rank_high"]).all())

    def __str__(self) -> str:
        state = (
            "decided"
            if self.is_decided
            else f"undecided: {self.num_probes_needed:.3g} probes would be needed"
        )
        return f"{self.table.to_string(float_format='{:.4g}'.format)}\n{self.method}; the order is {state}"
