"""Which estimator, and how many probes?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from hesstheory.autograd.graph import differentiating
from hesstheory.estimators.from_outputs import ControlVariateTrace, LogitProbeTrace
from hesstheory.estimators.inputs import checked_generator
from hesstheory.estimators.joint import joint_quantile
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.estimators.without_probes import REFUSALS, ways_without_probes
from hesstheory.evidence.intervals import check_level
from hesstheory.outputs.fit import fitted
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.results.plans import Plan, Recommendation
from hesstheory.run.clock import wall_timed

if TYPE_CHECKING:
    import pandas as pd

# Probes of a pilot. With fewer, Student's factor for a joint statement on many layers costs more
# probes than the pilot saves.
_PILOT = 16

# Blocks up to which separated probes are tried: each of them costs a product per block.
_FEW_BLOCKS = 16

# Probes that a plan may ask for. At a millisecond each these take twelve days.
_MOST = 10**9

# A pilot goes on until it lasts this many times the first probe, or so many seconds: then the cost
# of a probe is told from what is paid once.
_TIMES_FIRST = 4
_LONG_SECONDS = 10.0

_Kind = LayerwiseTrace | BlockSeparatedTrace | ControlVariateTrace | LogitProbeTrace


@dataclass(frozen=True)
class Trial:
    """A pilot of one estimator: samples, the seconds paid once and those of every probe."""

    estimator: _Kind
    samples: pd.DataFrame
    once: float
    per_probe: float


@differentiating()
def recommend(
    problem: Problem, relative_error: float, level: float, generator: torch.Generator
) -> Recommendation:
    """The cheapest way to all block traces of the Hessian within a relative error.

    A pilot of 16 probes or more gives variances and times. The number of probes is that of Stein's
    two-stage rule (1945), which keeps the level for normal samples whatever their variance. Where
    the outputs are piecewise linear (claim G1) the plans are exact traces and logit probes. Else
    they are parameter probes with and without the Gauss-Newton traces. Below 10,000 parameters
    dense blocks are a plan as well. Where the pilot cannot tell a trace from zero, a plan says so
    and promises nothing.

    Parameters
    ----------
    problem
        What is measured; small runs on it are timed.
    relative_error
        Half-width of every block's interval over its trace, in (0, 1).
    level
        Probability that all intervals hold jointly, in (0, 1).
    generator
        Draws the pilots.

    Returns
    -------
    Recommendation
        Plans that keep the error, cheapest first, then those that do not.

    Raises
    ------
    ValueError
        `relative_error` or `level` is out of range.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import recommend, zoo
    >>> generator = torch.Generator().manual_seed(0)
    >>> problem = zoo.problem("tiny_relu", generator, num_samples=8)
    >>> plan = recommend(problem, 0.1, 0.95, generator).best
    >>> plan.worst <= 0.1
    True
    """
    check_level(relative_error, "relative_error", "pass a share such as 0.05")
    check_level(level)
    checked_generator(generator)
    with suppress(TypeError):  # outputs that are no tensor: no plan reads them, so none needs room
        problem = fitted(problem)
    # The least of three: the first one warms up.
    unit = min(_seconds_of_gradient(problem) for _ in range(3))
    plans, reference = _exact_plans(problem, unit)
    has_exact_outputs = any(plan.estimator is exact_traces for plan in plans)
    trials = _trials(problem, generator, has_exact_outputs)
    values, errors = _most_certain(trials) if reference is None else (reference, 0 * reference)
    uncertain = joint_quantile(level, len(values), _PILOT - 1) * errors
    surely = (values.abs() - uncertain).clip(lower=0)
    plans += [plan_of(problem, trial, surely, relative_error, level, unit) for trial in trials]
    order = sorted(plans, key=lambda plan: (plan.worst > relative_error, plan.gradients))
    return Recommendation(tuple(order))


def _seconds_of_gradient(problem: Problem) -> float:
    """Wall seconds of one gradient of the whole risk, the unit of cost."""

    def work() -> None:
        params = list(problem.params.values())
        for batch in problem.batches:
            torch.autograd.grad(problem.loss(batch), params, allow_unused=True)

    return wall_timed(work, problem.device).seconds


def _exact_plans(problem: Problem, unit: float) -> tuple[list[Plan], pd.Series[float] | None]:
    """Plans without a probe, and the exact traces if there is one."""
    plans = list[Plan]()
    reference: pd.Series[float] | None = None
    # The cheapest comes last: its traces are those of the same outputs that logit probes measure.
    for estimator in reversed(ways_without_probes(problem)):
        with suppress(*REFUSALS):
            seconds, found = wall_timed(partial(estimator, problem), problem.device)
            reference = found.value
            size = max(problem.batch_sizes)
            plans.append(Plan(estimator, 0, 0 * reference, seconds / unit, seconds, size))
    return plans, reference


def _trials(problem: Problem, generator: torch.Generator, piecewise_linear: bool) -> list[Trial]:
    """Pilots of the estimators that may be worth it."""
    if piecewise_linear:
        return [tried(LogitProbeTrace(), problem, generator)]
    # What the first one raises is the user's to see: products of the Hessian must work.
    trials = [tried(LayerwiseTrace(), problem, generator)]
    others: list[_Kind] = [ControlVariateTrace(), ControlVariateTrace(exact=False)]
    if len(problem.partition.blocks) <= _FEW_BLOCKS:
        others += [BlockSeparatedTrace(), ControlVariateTrace(separated=True)]
    for kind in others:
        with suppress(ValueError, TypeError):  # no Gauss-Newton matrix to subtract
            trials.append(tried(kind, problem, generator))
    return trials


def tried(estimator: _Kind, problem: Problem, generator: torch.Generator) -> Trial:
    """A pilot: runs of different length tell what is paid once, the longest gives the samples."""

    def run(num_probes: int) -> tuple[float, pd.DataFrame]:
        seconds, estimate = wall_timed(
            lambda: estimator(problem, generator, num_probes=num_probes), problem.device
        )
        return seconds, estimate.samples

    once, _ = run(1)
    count = _PILOT
    while True:
        seconds, samples = run(count)
        if seconds > _TIMES_FIRST * once or seconds > _LONG_SECONDS:
            # The runs differ by count − 1 probes; the rest of the short one is paid once.
            per_probe = max(seconds - once, 0.0) / (count - 1)
            return Trial(estimator, samples, max(once - per_probe, 0.0), per_probe)
        count *= 4


def _most_certain(trials: Sequence[Trial]) -> tuple[pd.Series[float], pd.Series[float]]:
    """For every block the mean of the pilot with the smallest standard error, and that error."""
    import pandas as pd

    means = pd.DataFrame({i: trial.samples.mean() for i, trial in enumerate(trials)})
    errors = pd.DataFrame(
        {i: trial.samples.std() / math.sqrt(len(trial.samples)) for i, trial in enumerate(trials)}
    )
    best = errors.idxmin(axis=1)

    def chosen(table: pd.DataFrame) -> pd.Series[float]:
        return pd.Series({block: table.loc[block, best[block]] for block in table.index})

    return chosen(means), chosen(errors)


def plan_of(
    problem: Problem,
    trial: Trial,
    sizes: pd.Series[float],
    relative_error: float,
    level: float,
    unit: float,
) -> Plan:
    """Stein's two-stage rule n = (t s / ε|tr|)², s and the degrees of freedom from the pilot.

    Parameters
    ----------
    problem
        What is measured.
    trial
        The pilot.
    sizes
        What every |tr| surely exceeds. One of zero cannot be told from zero, and no number of
        probes is promised.
    relative_error
        ε.
    level
        Probability that all intervals hold jointly.
    unit
        Seconds of one gradient.
    """
    factor = joint_quantile(level, len(sizes), len(trial.samples) - 1)
    deviation = trial.samples.std()
    of_one = (factor * deviation / sizes).where(deviation > 0, 0.0)
    num_probes = math.ceil(min(max((float(of_one.max()) / relative_error) ** 2, 1), _MOST))
    seconds = trial.once + num_probes * trial.per_probe
    estimator = replace(trial.estimator, num_probes=num_probes)
    error = of_one / math.sqrt(num_probes)
    return Plan(estimator, num_probes, error, seconds / unit, seconds, max(problem.batch_sizes))
