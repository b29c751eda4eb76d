"""The same network in another mode or with a tied head: what changes in its traces."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from hesstheory.curvature.matrix import ggn, hessian
from hesstheory.evidence.checks import empirical
from hesstheory.harness.stages.stage import Found, Stage
from hesstheory.harness.subject import Subject
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.zoo.full_scale import TwoExits

_MOST_PROBES = 8  # common to both modes; they show a difference and test nothing


def train_mode(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """Batch norm by the statistics of the batch.

    That is another function with another Hessian, which couples the samples.
    """
    K = min(subject.settings.probes, _MOST_PROBES)
    model = copy.deepcopy(subject.problem.model).train()
    whole = Problem(model, F.cross_entropy, subject.problem.batches, allow_train_mode=True)
    Z = subject.probes(range(K))
    q = {
        name: hessian(problem).quadratic_forms(Z).sum(1).cpu()
        for name, problem in (("eval", subject.problem), ("train", whole))
    }
    found = {name: _mean_of(values) for name, values in q.items()}
    change = _mean_of(q["train"] - q["eval"])
    train = found["train"]
    evaluated = found["eval"]
    detail = (
        f"tr H {train['trace']:.4g} ± {train['stderr']:.2g} in train mode, "
        f"{evaluated['trace']:.4g} ± {evaluated['stderr']:.2g} in eval mode; difference "
        f"{change['trace']:.4g} ± {change['stderr']:.2g} (K = {K}, common probes)"
    )
    return Stage(
        checks=[empirical("batch norm in train mode", detail)], found={"batch_norm": found}
    )


def _mean_of(forms: Tensor) -> dict[str, float]:
    """Estimate of a trace with its standard error."""
    K = len(forms)
    return {
        "trace": float(forms.mean()),
        "stderr": float(forms.std() / math.sqrt(K)),
        "probes": K,
    }


def tied_head(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """One classifier for two exits beside a classifier for each.

    2 tr U₁₂ is what the cross-instance block adds.
    """
    traces = {"tied": _of_heads(subject, True), "untied": _of_heads(subject, False)}
    tied = sum(traces["tied"].values())
    apart = sum(traces["untied"].values())
    detail = (
        f"tr of the head {tied:.4g} tied, {apart:.4g} for its two instances: the cross-instance "
        f"blocks add {tied - apart:.4g}, {100 * (tied - apart) / tied:.3g} % of it"
    )
    return Stage(checks=[empirical("tied head", detail)], found={"head": traces})


def _of_heads(subject: Subject, tied: bool) -> dict[str, float]:
    """Exact Gauss-Newton traces of the heads."""
    model = TwoExits(subject.problem.model, tied=tied).eval()
    problem = Problem(model, F.cross_entropy, subject.problem.batches)

    def traces(local: Problem) -> Tensor:
        return torch.tensor(exact_traces(local, ggn).value.to_numpy())

    of_blocks = subject.over_samples(traces, problem)
    return {
        block: float(trace)
        for block, trace in zip(problem.partition.blocks, of_blocks, strict=True)
        if block.startswith("head")
    }
