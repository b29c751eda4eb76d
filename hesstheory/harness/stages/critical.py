"""How many probes are worth their cost beside the noise of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from hesstheory import theory
from hesstheory.harness.stages.stage import ByLayer, Found, by_layer
from hesstheory.harness.subject import Subject


def critical_probes(
    subject: Subject, before: Mapping[str, Found], variance: Tensor
) -> dict[str, ByLayer]:
    """K* = V(H_B)/Var_B[tr H_B] with the traces of single samples, and the K that costs least.

    Batches are drawn from a stream of fresh data, so that no part of the noise is left out.
    """
    spread = before["exact"]["layers"]["sample_trace_sd"]
    seconds = before["estimates"]["seconds"]
    critical = {
        layer: _critical(V, spread[layer], subject.problem.num_samples)
        for layer, V in by_layer(subject, variance).items()
    }
    cheapest = {layer: _cheapest(K, seconds) for layer, K in critical.items()}
    return {"k_star": critical, "k_cost_optimal": cheapest}


def _critical(variance: float, sample_deviation: float, batch_size: int) -> float:
    """K*, infinite where the batch adds no noise or the variance is not known."""
    floor = theory.batch_trace_variance(sample_deviation**2, batch_size, math.inf)
    if floor <= 0 or not math.isfinite(variance):
        return math.inf
    return float(theory.critical_num_probes(variance, floor))


def _cheapest(critical: float, seconds: Mapping[str, float]) -> float:
    """The K with the least variance for a given time, at least one."""
    if not math.isfinite(critical):
        return math.inf
    best = theory.cost_optimal_num_probes(seconds["graph"], seconds["product"], critical)
    return max(float(best), 1.0)
