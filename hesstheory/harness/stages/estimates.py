"""One-product estimates of all block traces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.harness.stages.checks import at_most
from hesstheory.harness.stages.matrices import MatrixOf, matrix_of
from hesstheory.harness.stages.stage import Found, Stage, by_layer
from hesstheory.harness.subject import Subject
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import best_of, seconds_of, timed

_GROUP = 8  # probes whose products are held at once: 8 vectors of ResNet-34 in float64 take 1.4 GB
_GRAPHS = 3  # built; the quickest counts
_LEAST_SECONDS = 1e-9  # of all products, where building the graphs took all the time that was seen


def groups_of(num_probes: int) -> Iterator[range]:
    """Numbers of the probes, in groups that are held at once."""
    for start in range(0, num_probes, _GROUP):
        yield range(start, min(start + _GROUP, num_probes))


def estimates(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """One-product estimates, a probe from a stream of its own each."""
    K = subject.settings.probes
    matrix = matrix_of(subject)
    graph = best_of(_GRAPHS, lambda: seconds_of(partial(_graphs, subject, matrix), subject.device))
    samples: list[Tensor] = []
    seconds = 0.0
    for group in groups_of(K):
        subject.say(f"products with probes {group.start + 1} to {group.stop} of {K}")
        taken, q = timed(partial(forms, subject, matrix, group), subject.device)
        seconds += taken
        samples.append(q)
    per_probe = max(seconds - len(samples) * graph, _LEAST_SECONDS) / K
    q = torch.cat(samples).cpu()
    repeated = K - len(torch.unique(q, dim=0))
    return Stage(
        {
            "estimate": by_layer(subject, q.mean(0)),
            "stderr": by_layer(subject, q.std(0) / math.sqrt(K)),
        },
        [at_most("probes differ", repeated, 0, "samples that repeat another one")],
        seconds={"product": per_probe, "graph": graph, "estimates": seconds},
        found={"samples": q.tolist()},
    )


def _graphs(subject: Subject, matrix: MatrixOf) -> None:
    """What is built before the first product, and dropped."""

    def build(problem: Problem) -> Tensor:
        for _ in matrix(problem).pushes():
            pass
        return torch.zeros(())

    if subject.settings.parallel == "data":
        subject.over_samples(build)
    else:
        subject.ranks.agreed(lambda: subject.halving(build, subject.problem))


def forms(subject: Subject, matrix: MatrixOf, numbers: range) -> Float[Tensor, "probes blocks"]:
    """q_l = z_lᵀ(Mz)_l of the numbered probes, on all samples."""
    if subject.settings.parallel == "data" or subject.ranks.count == 1:
        Z = subject.probes(numbers)
        return subject.over_samples(lambda local: matrix(local).quadratic_forms(Z))
    return _forms_of_all_processes(subject, matrix, numbers)


def _forms_of_all_processes(
    subject: Subject, matrix: MatrixOf, numbers: range
) -> Float[Tensor, "probes blocks"]:
    """The same where processes share the probes, each of which takes all samples."""
    mine = subject.ranks.share(len(numbers))
    shape = (len(numbers), len(subject.problem.partition.blocks))
    q = torch.zeros(*shape, dtype=torch.float64, device=subject.device)

    def work() -> Tensor:
        Z = subject.probes(range(numbers.start + mine.start, numbers.start + mine.stop))
        return subject.halving(lambda problem: matrix(problem).quadratic_forms(Z), subject.problem)

    if len(mine):
        q[mine.start : mine.stop] = subject.ranks.agreed(work)
    else:
        subject.ranks.agreed(lambda: None)
    return subject.ranks.total(q)
