"""How often does the conformance suite reject a right estimator, or miss a bias of 1 %?

    hesstheory study conformance_error_rates [--runs 200] [--power-runs 1000] [--only NAME]

Right estimators of six kinds go through the whole ci profile with a seed of their own each time.
Two hundred runs of each would take hours of automatic differentiation, on networks whose Hessian is
the same every time. So the Hessian of a problem is held as a dense matrix and multiplied with the
probes. For the kind "forward-over-reverse" it is made by `torch.func.jvp` of `torch.func.grad`. The
draws, and with them all that the suite decides by chance, are those of the estimators in
`hesstheory.conformance.subjects.right`. "forward-over-reverse each time" is the one of that module
itself.

The power is that of `check_unbiased` against right estimators whose every block is 1 % too large.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hesstheory.conformance.contract import Estimator
from hesstheory.conformance.results import exit_code
from hesstheory.conformance.subjects.right import cut, forward_over_reverse, jvps_of_gradient
from hesstheory.conformance.suite import check_estimator
from hesstheory.curvature.matrix import hessian
from hesstheory.estimators.probes import Gaussian, Probe, Rademacher
from hesstheory.evidence.intervals import clopper_pearson
from hesstheory.problem.risk import Problem
from hesstheory.studies.campaign import Campaign
from hesstheory.studies.records import FINGERPRINT, Record, SpotCheck
from hesstheory.studies.study import Call, Parser, Study, call_study

_FIRST_SEED = 10_000  # far from the seeds of the tests, by which estimators were chosen

# --- right estimators -----------------------------------------------------------------------------

Matrix = Float64[Tensor, "params params"]
Probes = Float[Tensor, "params probes"]
Samples = Float[Tensor, "probes blocks"]
Dense = Callable[[Problem], Matrix]


def reverse_over_reverse(problem: Problem) -> Matrix:
    """The dense Hessian by the library's own products."""
    return hessian(problem).to_dense()


def jvp_of_grad(problem: Problem) -> Matrix:
    """The dense Hessian, forward over reverse."""
    problem = problem.double()
    eye = torch.eye(problem.num_params, dtype=torch.float64)
    rows = jvps_of_gradient(problem, cut(problem, eye)).values()
    return torch.cat([row.reshape(len(row), -1) for row in rows], dim=1)


# By problem, the state at which a Hessian was computed, and that Hessian.
_HELD: dict[Dense, WeakKeyDictionary[Problem, tuple[list[Tensor], Matrix]]] = {
    reverse_over_reverse: WeakKeyDictionary(),
    jvp_of_grad: WeakKeyDictionary(),
}


def held(problem: Problem, dense: Dense = reverse_over_reverse) -> Matrix:
    """The dense Hessian, computed once for every state of parameters and buffers."""
    state = [tensor.detach() for tensor in (*problem.model.parameters(), *problem.model.buffers())]
    known = _HELD[dense].get(problem)
    if known is None or not all(map(torch.equal, known[0], state)):
        known = ([tensor.clone() for tensor in state], dense(problem))
        _HELD[dense][problem] = known
    return known[1]


def one_product(problem: Problem, Z: Probes, dense: Dense = reverse_over_reverse) -> Samples:
    """Samples z_l·(Hz)_l."""
    forms = Z * (held(problem, dense) @ Z)
    return torch.stack([forms[index].sum(0) for index in problem.index.values()], dim=1)


def separated(problem: Problem, Z: Probes) -> Samples:
    """Samples z_lᵀ H_ll z_l."""
    H = held(problem)
    return torch.stack([(Z[i] * (H[i][:, i] @ Z[i])).sum(0) for i in problem.index.values()], dim=1)


def with_stderr(problem: Problem, samples: Samples) -> dict[str, tuple[float, float]]:
    """Means and standard errors by block."""
    errors = samples.std(0) / len(samples) ** 0.5
    pairs = zip(samples.mean(0).tolist(), errors.tolist(), strict=True)
    return dict(zip(problem.partition.blocks, pairs, strict=True))


def without_stderr(problem: Problem, samples: Samples) -> dict[str, float]:
    """Means by block."""
    return dict(zip(problem.partition.blocks, samples.mean(0).tolist(), strict=True))


def total_only(problem: Problem, samples: Samples) -> float:
    """The mean of the full trace."""
    return float(samples.mean(0).sum())


@dataclass(frozen=True)
class Right:
    """An estimator by its probes, its product and the form of its answer.

    A `factor` other than 1 makes it wrong.
    """

    probe: Probe
    product: Callable[[Problem, Probes], Samples] = one_product
    form: Callable[[Problem, Samples], object] = with_stderr
    factor: float = 1.0

    def __call__(self, problem: Problem, *, num_probes: int, generator: torch.Generator) -> object:
        Z = self.probe.sample(problem.num_params, num_probes, generator)
        return self.form(problem, self.factor * self.product(problem, Z))


SLOW = "forward-over-reverse each time"

RIGHT: dict[str, Estimator] = {
    "signs": Right(Rademacher()),
    "normal": Right(Gaussian()),
    "block-separated": Right(Rademacher(), separated),
    "forward-over-reverse": Right(Rademacher(), partial(one_product, dense=jvp_of_grad)),
    SLOW: forward_over_reverse,
    "without stderr": Right(Rademacher(), form=without_stderr),
    "total only": Right(Rademacher(), form=total_only),
}
BIASED: dict[str, Estimator] = {
    "signs, 1 % too large": Right(Rademacher(), factor=1.01),
    "normal, 1 % too large": Right(Gaussian(), factor=1.01),
    "total only, 1 % too large": Right(Rademacher(), form=total_only, factor=1.01),
}

# --- runs -----------------------------------------------------------------------------------------


def one_run(task: tuple[str, int]) -> Record:
    """The outcome of one estimator at one seed."""
    name, seed = task
    if name in BIASED:
        results = check_estimator(BIASED[name], "ci", seed=seed, checks=["check_unbiased"])
    else:
        results = check_estimator(RIGHT[name], "ci", seed=seed)
    open_ones = {
        r.check: f"{r.status}: {r.detail}"
        for r in results
        if r.status in ("failed", "inconclusive")
    }
    return {"estimator": name, "seed": seed, "code": exit_code(results), "not passed": open_ones}


def rates(runs: Iterable[Record]) -> Record:
    """By estimator: how many runs ended how, and the 95 % interval of the rate of rejection."""
    codes: dict[str, Counter[int]] = {name: Counter() for name in (*RIGHT, *BIASED)}
    for run in runs:
        codes[run["estimator"]][run["code"]] += 1
    return {
        name: {
            "runs": ended.total(),
            "accepted": ended[0],
            "rejected": ended[1],
            "undecided": ended[3],
            "rejection rate, 95 %": clopper_pearson(ended[1], ended.total()),
        }
        for name, ended in codes.items()
        if ended
    }


def spot_check(record: Record) -> SpotCheck:
    """Repeats one run of every estimator all of whose runs ended alike.

    The estimator that differentiates each time is left out: one of its runs takes minutes.
    """
    tasks = [
        (name, _FIRST_SEED)
        for name in (*RIGHT, *BIASED)
        if name != SLOW and record.get(name, {}).get("runs") in _all_alike(record.get(name, {}))
    ]
    recorded = [0 if record[name]["accepted"] else 1 for name, _ in tasks]
    found = [one_run(task)["code"] for task in tasks]
    names = ", ".join(name for name, _ in tasks)
    return SpotCheck.of_outcomes(f"outcome of seed {_FIRST_SEED}: {names}", found, recorded)


def _all_alike(counts: Record) -> list[int]:
    """The numbers that `runs` equals where all runs were accepted, or all rejected."""
    return [counts[key] for key in ("accepted", "rejected") if key in counts]


def _work(task: tuple[str, int], folder: Path) -> Record:
    """One run of the campaign."""
    return one_run(task)


def tasks_of(counts: Mapping[str, int], first_seed: int) -> dict[str, tuple[str, int]]:
    """Estimators take turns, so that a study that is stopped early has some runs of each."""
    return {
        f"{name} {first_seed + n}": (name, first_seed + n)
        for n in range(max(counts.values()))
        for name in counts
        if n < counts[name]
    }


def _add_options(parser: Parser) -> None:
    """Which estimators, and how many runs of each."""
    parser.add_argument("--runs", type=int, default=200, help="of every right estimator")
    parser.add_argument("--power-runs", type=int, default=1000, help="of every biased one")
    parser.add_argument(
        "--only", action="append", help="one of them, such as signs; may be given again"
    )
    parser.add_argument("--first-seed", type=int, default=_FIRST_SEED)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)


def _run(call: Call) -> bool:
    """Does the runs that are missing; the record is written at the end."""
    options = call.options
    counts = dict.fromkeys(RIGHT, options.runs) | dict.fromkeys(BIASED, options.power_runs)
    if unknown := set(options.only or ()) - counts.keys():
        raise ValueError(f"no estimator {unknown.pop()!r}: choose from {', '.join(counts)}")
    chosen = {name: count for name, count in counts.items() if name in (options.only or counts)}
    tasks = tasks_of(chosen, options.first_seed)
    campaign = Campaign(call.runs, _work, call.header[FINGERPRINT])
    runs = []
    for _, run in campaign.runs(tasks, workers=options.workers):
        assert run is not None  # no time limit was given
        runs.append(run)
        if run["code"] != (1 if run["estimator"] in BIASED else 0):
            print(run, flush=True)
        if len(runs) % 100 == 0:
            print(f"{len(runs)} of {len(tasks)}", flush=True)
    call.write(rates(runs))
    print(json.dumps(rates(runs), indent=2, ensure_ascii=False))
    return True


STUDY = Study(
    "conformance_error_rates",
    "How often does the conformance suite reject a right estimator, or miss a bias of 1 %?",
    _run,
    _add_options,
    spot_check,
)

if __name__ == "__main__":
    sys.exit(call_study(STUDY))
