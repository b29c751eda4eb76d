"""Estimates from the outputs alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.estimators.from_outputs import LogitProbeTrace
from hesstheory.estimators.probes import Rademacher
from hesstheory.evidence.checks import Check
from hesstheory.evidence.sequential import Tail
from hesstheory.harness.stages.checks import ALPHA, MISSED, at_level
from hesstheory.harness.stages.stage import Found, Stage, by_layer, samples_of, vector
from hesstheory.harness.subject import Subject
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import timed
from hesstheory.run.streams import stream


def logit_probes(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """Estimates from the outputs alone, with signs for every sample of its own."""
    K = subject.settings.probes
    seconds, q = timed(lambda: _samples(subject), subject.device)
    q = q.cpu()
    stage = Stage(
        {
            "logit_estimate": by_layer(subject, q.mean(0)),
            "logit_stderr": by_layer(subject, q.std(0) / math.sqrt(K)),
        },
        seconds={"logit_probe": seconds / K},
    )
    stage.checks.append(_test(subject, before, q.mean(0)))
    return stage


def _samples(subject: Subject) -> Float[Tensor, "probes blocks"]:
    """A row per probe; every process draws all signs and keeps those of its own samples."""
    probe = PartOfSigns(subject.own_samples.start, subject.problem.num_samples)
    generator = stream(subject.settings.seed, "logit probes")
    state = generator.get_state()

    def forms(local: Problem) -> Tensor:
        generator.set_state(state)  # again where memory ran out and the batches were halved
        estimate = LogitProbeTrace(subject.settings.probes, probe=probe)(local, generator)
        return torch.tensor(estimate.samples.to_numpy())

    return subject.over_samples(forms)


def _test(subject: Subject, before: Mapping[str, Found], mean: Tensor) -> Check:
    """Is their mean the exact trace, in all layers together?"""
    K = subject.settings.probes
    exact = vector(before["exact"]["layers"]["exact"])
    error = (mean - exact).numpy()
    size = exact.abs().numpy()
    tail = _tail(subject, before)
    rounding = torch.finfo(subject.problem.dtype).eps ** 0.5 * size  # half the digits
    width = tail.half_width(K, ALPHA / len(error)) + rounding
    found = (width + tail.half_width(K, MISSED)) / np.where(size > 0, size, math.nan)
    bias = float(np.nanmax(found))
    worst = int(np.argmax(np.abs(error) / width))
    layer = list(subject.problem.partition.blocks)[worst]
    detail = (
        f"nearest to its bound {layer}: {error[worst]:.3g} of ±{width[worst]:.3g}; finds a bias "
        f"of {100 * bias:.2g} % of the trace in any layer"
    )
    value = float(abs(error[worst]))
    return at_level("logit probes", value, float(width[worst]), detail, ALPHA, K, bias)


def _tail(subject: Subject, before: Mapping[str, Found]) -> Tail:
    """The law of one probe, from the Gram matrices where there are all, else from traces alone."""
    dual = before["dual"]
    if dual["found"]["sketched"]:
        columns = subject.settings.num_classes - 1
        return tail_of_sample_traces(samples_of(before, "exact"), columns)
    norms = vector(dual["layers"]["logit_sd"]) / math.sqrt(2)
    return Tail.sign_form(norms, dual["found"]["logit_spectral"])


def tail_of_sample_traces(traces: Float[Tensor, "samples blocks"], columns: int) -> Tail:
    """What the law of a logit probe is at most, from the traces of the samples.

    M_n ≥ 0 is known by its trace t_n and its r columns alone:
    ‖M_n‖² − ‖diag M_n‖² ≤ (1 − 1/r) t_n² and ‖M_n − diag M_n‖₂ ≤ t_n.
    """
    N = len(traces)
    return Tail.sign_form(traces.norm(dim=0) * math.sqrt(1 - 1 / columns) / N, traces.amax(0) / N)


@dataclass(frozen=True)
class PartOfSigns:
    """Signs for all samples, of which a process keeps its own: the same whatever the shards."""

    start: int
    num_samples: int

    def kurtosis(self, num_params: int) -> float:
        """Of signs."""
        return Rademacher().kurtosis(num_params)

    def sample(
        self, num_params: int, num_probes: int, generator: torch.Generator
    ) -> Float[Tensor, "params probes"]:
        """Columns of this process's samples."""
        everyone = Rademacher().sample(num_params, self.num_samples, generator)
        return everyone[:, self.start : self.start + num_probes]
