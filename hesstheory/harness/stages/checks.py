"""Checks of a full-scale run: exact ones up to rounding, and tests at a level."""

from __future__ import annotations

import torch
from torch import Tensor

from hesstheory.evidence.budget import SUITE_ALPHA
from hesstheory.evidence.checks import Check, Kind, Status
from hesstheory.harness.subject import Subject

# Level of each of the two tests of means, the joint z-test and that of the logit probes: that of
# a whole suite, since their bounds are known far out in the tail.
ALPHA = SUITE_ALPHA
# Level of the test of variances. Its bounds are quantiles of a million simulated runs. With the 62
# layers of ResNet-18 this level leaves 8 of them on either side; SUITE_ALPHA would leave none.
# A run whose numbers are right thus fails with probability 1e-3 + 2e-6 at most.
VARIANCE_ALPHA = 1e-3
POWER = 0.999
MISSED = 1e-3  # 1 − POWER, without its rounding
POWER_QUANTILE = 3.1  # standard normal: exceeded with probability 1 − POWER, rounded up


def at_most(name: str, value: float, bound: float, what: str) -> Check:
    """A number that rounding alone keeps from zero; NaN passes nothing."""
    status = Status.PASSED if value <= bound else Status.FAILED
    detail = f"{what}: {value:.2g}, at most {bound:.2g}"
    return Check(name, Kind.EXACT, status, detail, value, bound)


def close(
    name: str, error: Tensor, scale: Tensor, subject: Subject, tolerance: float, of: str = ""
) -> Check:
    """Relative errors of all layers within a tolerance."""
    nonzero = scale.clamp(min=torch.finfo(torch.float64).tiny)  # 0/0 is no error
    relative = (error.abs() / nonzero).reshape(-1, error.shape[-1]).amax(0)
    layer = list(subject.problem.partition.blocks)[int(relative.argmax())]
    what = f"largest relative error{of}, in {layer}"
    return at_most(name, float(relative.max()), tolerance, what)


def at_level(
    name: str,
    value: float,
    bound: float,
    detail: str,
    alpha: float,
    num_draws: int,
    detectable: float | None = None,
) -> Check:
    """A test of numbers that are drawn; `alpha` is the probability that right ones fail it."""
    status = Status.PASSED if value <= bound else Status.FAILED
    return Check(
        name, Kind.STATISTICAL, status, detail, value, bound, alpha, POWER, detectable, num_draws
    )
