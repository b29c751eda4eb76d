"""Which order of layers?"""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

from hesstheory.autograd.graph import differentiating
from hesstheory.estimators.from_outputs import ControlVariateTrace
from hesstheory.estimators.joint import joint_quantile
from hesstheory.estimators.protocol import Estimator
from hesstheory.estimators.without_probes import REFUSALS, ways_without_probes
from hesstheory.evidence.intervals import check_level
from hesstheory.problem.risk import Problem
from hesstheory.results.plans import configured_name
from hesstheory.results.ranking import Ranking

if TYPE_CHECKING:
    import pandas as pd

# Roundings, in units of eps, within which two exact traces count as equal. Equal layers of a small
# network differ by a few; a thousand leaves room for depth and is far below a real difference.
_ROUNDINGS = 1e3

# Probes of the estimator that is taken where none is given.
_DEFAULT_PROBES = 64


@differentiating()
def rank_layers(
    problem: Problem,
    by: str = "mean_trace",
    level: float = 0.95,
    generator: torch.Generator | None = None,
    estimator: Estimator | None = None,
) -> Ranking:
    """Blocks in the order of tr H_ll / P_l, or of tr H_ll.

    The ranking is exact where claim G1 holds or the network is small, if no estimator is given.
    Else samples are compared pair by pair, so that what two layers share cancels. Student
    intervals are corrected by Bonferroni over all layers and pairs.

    Parameters
    ----------
    problem
        What is measured.
    by
        `"mean_trace"`: tr H_ll / P_l, as in HAWQ-V2 (Dong et al. 2020). `"trace"`: tr H_ll.
    level
        Probability that all intervals hold jointly, in (0, 1).
    generator
        Draws the probes, if the traces must be estimated.
    estimator
        What estimates them, 64 control variates by default.

    Returns
    -------
    Ranking
        Blocks, largest first, with joint intervals of values and ranks.

    Raises
    ------
    ValueError
        `by` or `level` is out of range, or the estimator uses one probe.
    TypeError
        The estimator is no instance, or a generator is needed.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import rank_layers, zoo
    >>> problem = zoo.problem("tiny_relu", torch.Generator().manual_seed(0), num_samples=8)
    >>> ranking = rank_layers(problem, by="trace")
    >>> ranking.table["rank"].tolist()
    [1, 2]
    """
    import pandas as pd

    if by not in ("mean_trace", "trace"):
        raise ValueError(f"by is {by!r}: pass 'mean_trace' or 'trace'")
    check_level(level)
    _check_instance(estimator)
    is_mean = by == "mean_trace"
    sizes = pd.Series({b: len(index) if is_mean else 1 for b, index in problem.index.items()})
    if estimator is None:
        for exact in ways_without_probes(problem):
            with suppress(*REFUSALS):
                return _exact_ranking(exact(problem).value / sizes, problem, exact.__name__)
        estimator = ControlVariateTrace(_DEFAULT_PROBES)
    if generator is None:
        raise TypeError("the traces must be estimated: pass a torch.Generator")
    samples = estimator(problem, generator).samples
    if len(samples) < 2:
        raise ValueError("one probe has no spread: give the estimator at least two")
    return ranking_of(samples / sizes, level, configured_name(estimator))


def _check_instance(estimator: object) -> None:
    """Raises TypeError for a class, or for what cannot be called."""
    if estimator is not None and (isinstance(estimator, type) or not callable(estimator)):
        name = getattr(estimator, "__name__", repr(estimator))
        raise TypeError(f"estimator is {name}: pass an instance, such as LayerwiseTrace(64)")


def _exact_ranking(values: pd.Series[float], problem: Problem, method: str) -> Ranking:
    """Ranks of exact values; those that differ by rounding alone share theirs."""
    rounding = _ROUNDINGS * torch.finfo(problem.dtype).eps * values.abs()
    lower = (values - rounding).to_numpy()
    upper = (values + rounding).to_numpy()
    larger = lower[:, None] > upper[None, :]
    num_decided = int((larger | larger.T).sum())
    needed = 0.0 if num_decided == len(values) * (len(values) - 1) else math.inf
    return Ranking(_ranked(values, lower, upper, larger), method, needed)


def ranking_of(samples: pd.DataFrame, level: float, method: str) -> Ranking:
    """A ranking from samples, a row per probe and a column per block."""
    K, L = samples.shape
    draws = samples.to_numpy()
    factor = joint_quantile(level, L + L * (L - 1) // 2, K - 1)
    values = samples.mean()
    errors = samples.std().to_numpy() / math.sqrt(K)
    gaps = values.to_numpy()[:, None] - values.to_numpy()[None, :]
    # Of differences, probe by probe: what two layers share does not blur their order.
    spreads = np.stack([(draws - draws[:, [m]]).std(0, ddof=1) for m in range(L)], axis=1)
    larger = gaps > factor * spreads / math.sqrt(K)
    table = _ranked(values, values - factor * errors, values + factor * errors, larger)
    order = np.argsort(-values.to_numpy(), kind="stable")
    # Equal neighbours give x/0 = ∞ probes, or 0/0, which no number tells apart either.
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = [(factor * spreads[a, b] / gaps[a, b]) ** 2 for a, b in itertools.pairwise(order)]
    most = np.nan_to_num(needed, nan=math.inf, posinf=math.inf).max(initial=0.0)
    return Ranking(table, method, float(np.ceil(most)))


def _ranked(
    values: pd.Series[float],
    low: pd.Series[float] | np.ndarray,
    high: pd.Series[float] | np.ndarray,
    larger: np.ndarray,
) -> pd.DataFrame:
    """The table of a ranking, where `larger[l, m]` says that l surely has the larger value."""
    import pandas as pd

    table = pd.DataFrame({"value": values, "low": low, "high": high})
    table["rank"] = values.rank(ascending=False, method="first").astype(int)
    table["rank_low"] = 1 + larger.sum(0)
    table["rank_high"] = len(values) - larger.sum(1)
    return table.sort_values("rank")
