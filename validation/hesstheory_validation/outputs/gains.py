"""How much less variance an estimator has than one full-vector probe."""

from __future__ import annotations

import numpy as np

from hesstheory import theory
from hesstheory.claims.context import Case
from hesstheory.evidence.checks import Check, empirical
from hesstheory_validation.subjects import Row


def gains(case: Case, predicted: np.ndarray, measured: np.ndarray, probe: str) -> list[Row]:
    """Variance T2 of one full-vector probe on H over that of another estimator, by block; ∞ where
    the latter has none.

    T2 decides that its formula is what enumeration gives.
    """
    blocks = case.problem.index
    whole = np.array(
        [float(theory.probe_variance(case.block(l, l), case.cross_blocks(l), 1.0)) for l in blocks]
    )
    ratios = [
        np.divide(whole, variance, out=np.full(len(whole), np.inf), where=variance > 1e-15 * whole)
        for variance in (predicted, measured)
    ]
    return [
        {
            "network": case.network,
            "stage": case.stage,
            "block": l,
            "probe": probe,
            "predicted": p,
            "measured": m,
        }
        for l, p, m in zip(case.problem.index, *ratios, strict=True)
    ]


def how_large(name: str, rows: list[Row]) -> Check:
    """Smallest, median and largest gain by stage of training."""
    parts = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        gains = np.array([row["measured"] for row in rows if row["stage"] == stage])
        low, middle, high = np.quantile(gains, [0, 0.5, 1], method="nearest")
        parts.append(
            f"{stage}: {low:.2g} to {high:.2g}, median {middle:.2g}, over {len(gains)} layers"
        )
    return empirical(name, "; ".join(parts))
