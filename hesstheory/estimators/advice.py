"""Which estimator, how many probes, and which order of layers?"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hesstheory.curvature.matrix import hessian
from hesstheory.estimators.from_outputs import ControlVariateTrace, LogitProbeTrace
from hesstheory.estimators.inputs import checked_generator
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.outputs.fit import fitted
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate
from hesstheory.results.plans import Plan, Recommendation, configured_name
from hesstheory.results.ranking import Ranking

if TYPE_CHECKING:
    import pandas as pd


_PILOT = 16  # probes: with fewer, Student's factor for a joint statement on many layers costs more than it saves

_FEW_BLOCKS = (
    16  # up to so many, separated probes are tried: every one of them costs a product per block
)

_SMALL = 10_000  # parameters up to which the dense diagonal blocks are a plan

_MOST = 10**9  # probes that a plan may ask for


@dataclass(frozen=True)
class _Trial:
    """A pilot of one estimator: samples, the seconds that are paid once and those of every probe."""

    estimator: Any
    samples: pd.DataFrame
    once: float
    per_probe: float


def recommend(
    problem: Problem, relative_error: float, level: float, generator: torch.Generator
) -> Recommendation:
    """The cheapest way to all block traces of the Hessian, each within the relative error, jointly at the level.

    A pilot of 16 probes or more gives variances and times. The number of probes is that of Stein's two-stage rule
    (1945), which keeps the level for normal samples whatever their variance. Where the outputs are piecewise linear
    (claim G1) the plans are exact traces and logit probes, else parameter probes with and without the Gauss-Newton
    traces; below 10,000 parameters the dense blocks as well.
    Where the pilot cannot tell a trace from zero, a plan says so and promises nothing.
    """
    _check_request(relative_error, level)
    checked_generator(generator)
    problem = fitted(problem)
    unit = min(_timed(_gradient, problem)[0] for _ in range(3))
    plans, trials = list[Plan](), list[_Trial]()
    exact = [dense_traces, exact_traces] if problem.num_params <= _SMALL else [exact_traces]
    reference: pd.Series[float] | None = None
    for estimator in exact:
        with suppress(ValueError, TypeError, RuntimeError):  # not for this network, loss or dtype
            seconds, found = _timed(estimator, problem)
            reference = found.value
            plans.append(
                Plan(estimator, 0, 0 * reference, seconds / unit, seconds, max(problem.batch_sizes))
            )
    if plans and plans[-1].estimator is exact_traces:
        trials.append(_tried(LogitProbeTrace(), problem, generator))
    else:
        kinds: list[Any] = [
            LayerwiseTrace(),
            ControlVariateTrace(),
            ControlVariateTrace(exact=False),
        ]
        if len(problem.partition.blocks) <= _FEW_BLOCKS:
            kinds += [BlockSeparatedTrace(), ControlVariateTrace(separated=True)]
        for kind in kinds:
            with (
                suppress(ValueError, TypeError) if trials else nullcontext()
            ):  # no Gauss-Newton matrix to subtract
                trials.append(_tried(kind, problem, generator))
    values, errors = (reference, 0 * reference) if reference is not None else _most_certain(trials)
    surely = (values.abs() - _joint_quantile(level, len(values), _PILOT - 1) * errors).clip(lower=0)
    plans += [_plan(problem, trial, surely, relative_error, level, unit) for trial in trials]
    return Recommendation(
        tuple(sorted(plans, key=lambda plan: (plan.worst > relative_error, plan.gradients)))
    )


def dense_traces(problem: Problem) -> Estimate:
    """Exact traces of any network from its dense diagonal blocks, a product for every parameter: for small ones."""
    return Estimate.exact(hessian(problem).trace_by_block(), problem.num_params, "tr H")


def _tried(estimator: Any, problem: Problem, generator: torch.Generator) -> _Trial:
    """Runs of different length tell what is paid once; the longest, long enough for the clock, gives the samples."""
    once, count = _timed(replace(estimator, num_probes=1), problem, generator)[0], _PILOT
    while True:
        seconds, estimate = _timed(replace(estimator, num_probes=count), problem, generator)
        if seconds > 4 * once or seconds > 10.0:
            per_probe = max(seconds - once, 0.0) / (count - 1)
            return _Trial(estimator, estimate.samples, max(once - per_probe, 0.0), per_probe)
        count *= 4


def _most_certain(trials: Sequence[_Trial]) -> tuple[pd.Series[float], pd.Series[float]]:
    """For every block the mean of the pilot with the smallest standard error, and that error."""
    import pandas as pd

    means = pd.DataFrame({i: trial.samples.mean() for i, trial in enumerate(trials)})
    errors = pd.DataFrame(
        {i: trial.samples.std() / math.sqrt(len(trial.samples)) for i, trial in enumerate(trials)}
    )
    best = errors.idxmin(axis=1)
    return tuple(
        pd.Series({b: table.loc[b, best[b]] for b in table.index}) for table in (means, errors)
    )  # type: ignore[return-value]


def _plan(
    problem: Problem,
    trial: _Trial,
    sizes: pd.Series[float],
    relative_error: float,
    level: float,
    unit: float,
) -> Plan:
    """Stein's two-stage rule: n = (t s / ε|tr|)² with the pilot's deviation s and its degrees of freedom.

    `sizes` are what the |tr| surely exceed; one of zero cannot be told from zero, and no number of probes is promised.
    """
    factor = _joint_quantile(level, len(sizes), len(trial.samples) - 1)
    deviation = trial.samples.std()
    of_one = (factor * deviation / sizes).where(deviation > 0, 0.0)
    num_probes = math.ceil(min(max((float(of_one.max()) / relative_error) ** 2, 1), _MOST))
    seconds = trial.once + num_probes * trial.per_probe
    estimator = replace(trial.estimator, num_probes=num_probes)
    error = of_one / math.sqrt(num_probes)
    return Plan(estimator, num_probes, error, seconds / unit, seconds, max(problem.batch_sizes))


def _joint_quantile(level: float, num_statements: int, degrees: int) -> float:
    """Student's two-sided quantile for so many statements to hold together (Bonferroni)."""
    from scipy.stats import t

    return float(t.isf((1 - level) / (2 * num_statements), degrees))


def rank_layers(
    problem: Problem,
    by: str = "mean_trace",
    level: float = 0.95,
    generator: torch.Generator | None = None,
    estimator: Any = None,
) -> Ranking:
    """Blocks in the order of tr H_ll / P_l (`by="mean_trace"`, as in HAWQ-V2, Dong et al. 2020) or of tr H_ll.

    Exact where claim G1 holds or the network is small, if no estimator is given; else from an estimator, 64 control
    variates by default, whose samples are compared pair by pair, so that what two layers share cancels. Student
    intervals, Bonferroni over all layers and pairs.
    """
    import pandas as pd

    if by not in ("mean_trace", "trace"):
        raise ValueError(f"by is {by!r}: pass 'mean_trace' or 'trace'")
    _check_level(level)
    if estimator is not None and (isinstance(estimator, type) or not callable(estimator)):
        name = getattr(estimator, "__name__", repr(estimator))
        raise TypeError(f"estimator is {name}: pass an instance, such as LayerwiseTrace(64)")
    counts = {
        block: len(index) if by == "mean_trace" else 1 for block, index in problem.index.items()
    }
    sizes = pd.Series(counts)
    if estimator is None:
        for exact in (exact_traces, dense_traces)[: 2 if problem.num_params <= _SMALL else 1]:
            with suppress(
                ValueError, TypeError, RuntimeError
            ):  # not for this network, loss or dtype
                return _exact_ranking(exact(problem).value / sizes, problem, exact.__name__)
    if generator is None:
        raise TypeError("the traces must be estimated: pass a torch.Generator")
    estimator = ControlVariateTrace(64) if estimator is None else estimator
    estimate = estimator(problem, generator)
    if len(estimate.samples) < 2:
        raise ValueError("one probe has no spread: give the estimator at least two")
    return _ranking(estimate.samples / sizes, level, configured_name(estimator))


def _exact_ranking(values: pd.Series[float], problem: Problem, method: str) -> Ranking:
    """Ranks of exact values; those that differ by rounding alone share theirs."""
    rounding = 1e3 * torch.finfo(problem.dtype).eps * values.abs()
    lower, upper = (values - rounding).to_numpy(), (values + rounding).to_numpy()
    larger = lower[:, None] > upper[None, :]
    needed = 0.0 if (larger | larger.T).sum() == len(values) * (len(values) - 1) else math.inf
    return Ranking(_ranked(values, lower, upper, larger), method, needed)


def _ranking(samples: pd.DataFrame, level: float, method: str) -> Ranking:
    K, L = samples.shape
    draws = samples.to_numpy()
    factor = _joint_quantile(level, L + L * (L - 1) // 2, K - 1)
    values, errors = samples.mean(), samples.std().to_numpy() / math.sqrt(K)
    gaps = values.to_numpy()[:, None] - values.to_numpy()[None, :]
    spreads = np.stack([(draws - draws[:, [m]]).std(0, ddof=1) for m in range(L)], axis=1)
    larger = gaps > factor * spreads / math.sqrt(K)
    order = np.argsort(-values.to_numpy(), kind="stable")
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = [(factor * spreads[a, b] / gaps[a, b]) ** 2 for a, b in itertools.pairwise(order)]
    table = _ranked(values, values - factor * errors, values + factor * errors, larger)
    return Ranking(
        table, method, float(np.ceil(np.nan_to_num(needed, nan=math.inf).max(initial=0.0)))
    )


def _ranked(values: pd.Series[float], low: Any, high: Any, larger: Any) -> pd.DataFrame:
    """`larger[l, m]`: l surely has the larger value."""
    import pandas as pd

    table = pd.DataFrame({"value": values, "low": low, "high": high})
    table["rank"] = values.rank(ascending=False, method="first").astype(int)
    table["rank_low"] = 1 + larger.sum(0)
    table["rank_high"] = len(values) - larger.sum(1)
    return table.sort_values("rank")


def _gradient(problem: Problem) -> None:
    for batch in problem.batches:
        torch.autograd.grad(problem.loss(batch), list(problem.params.values()), allow_unused=True)


def _timed(action: Callable[..., Any], problem: Problem, *arguments: Any) -> tuple[float, Any]:
    """Seconds, and what came out."""
    _wait_for(problem.device)
    before = time.perf_counter()
    result = action(problem, *arguments)
    _wait_for(problem.device)
    return time.perf_counter() - before, result


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check_request(relative_error: float, level: float) -> None:
    if not 0 < relative_error < 1:
        raise ValueError(f"relative_error is {relative_error}: pass a share such as 0.05")
    _check_level(level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: pass a probability, such as 0.95")
