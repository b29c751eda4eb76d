"""Blocks in the order of their traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Ranking:
    """Blocks by trace, the largest first, with intervals for their values and their ranks.

    All intervals hold jointly at the level that was asked for.

    Parameters
    ----------
    table
        A row per block: `value`, `low`, `high`, `rank` (1 is the largest), `rank_low`,
        `rank_high`.
    method
        What measured the traces.
    num_probes_needed
        Probes that would tell every pair of neighbours apart with this estimator: 0 where it is
        exact, infinite where two are equal.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import rank_layers, zoo
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> ranking = rank_layers(problem)
    >>> ranking.is_decided, ranking.method
    (True, 'exact_traces')
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
        table = self.table.to_string(float_format="{:.4g}".format)
        return f"{table}\n{self.method}; the order is {state}"
