"""Exact block traces: the ground truth of a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.curvature.matrix import ggn, hessian
from hesstheory.harness.stages.stage import Found, Stage, by_layer
from hesstheory.harness.subject import Subject
from hesstheory.outputs.traces import sample_traces
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import timed


def exact(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """Exact block traces, image by image."""

    def work() -> Float[Tensor, "samples blocks"]:
        return subject.each_sample(lambda local: traces_of_samples(subject, local))

    seconds, traces = timed(work, subject.device)
    return Stage(
        {
            "exact": by_layer(subject, traces.mean(0)),
            "sample_trace_sd": by_layer(subject, traces.std(0)),
        },
        seconds={"exact_traces": seconds},
        found={"samples": traces.tolist()},
    )


def traces_of_samples(subject: Subject, problem: Problem) -> Float[Tensor, "samples blocks"]:
    """Exact traces of every image, of the matrix that is measured."""
    matrix = hessian if subject.piecewise_linear else ggn
    return torch.tensor(sample_traces(problem, matrix).to_numpy())
