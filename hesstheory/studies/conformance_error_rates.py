"""How often does the conformance suite reject a right estimator, and how often does it notice a bias of 1 %?

`python tests/studies/conformance_error_rates.py [--runs 200] [--power-runs 1000] [--only NAME] [--json FILE]`

Right estimators of six kinds go through the whole ci profile with a seed of their own each time. Two hundred runs of
each would take hours of automatic differentiation on networks whose Hessian is the same every time, so the Hessian of a
problem is held as a dense matrix and multiplied with the probes, that of forward over reverse by `torch.func.jvp` of
`torch.func.grad`. The draws, and with them all that the suite decides by chance, are those of the estimators in
`hesstheory.conformance.correct`; "forward-over-reverse each time" is the one of that module itself.

The power is that of `check_unbiased` against right estimators whose every block is 1 % too large.

Every run is a line in FILE.runs.jsonl; called again with the same arguments, the study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from hesstheory import Gaussian, Problem, Rademacher, hessian
from hesstheory.conformance.subjects.right import cut, forward_over_reverse, jvps_of_gradient
from hesstheory.conformance.results import exit_code
from hesstheory.conformance.suite import check_estimator
from hesstheory.estimators.probes import Probe
from hesstheory.evidence.intervals import clopper_pearson
from hesstheory.run.files import append_line, write_atomically
from hesstheory.run.workers import scatter

Samples = Callable[[Problem, int, torch.Generator], torch.Tensor]

# --- right estimators -------------------------------------------------------------------------------------------------

Dense = Callable[[Problem], torch.Tensor]


def reverse_over_reverse(problem: Problem) -> torch.Tensor:
    return hessian(problem).to_dense()


def jvp_of_grad(problem: Problem) -> torch.Tensor:
    eye, problem = torch.eye(problem.num_params, dtype=torch.float64), problem.double()
    return torch.cat(
        [r.reshape(len(r), -1) for r in jvps_of_gradient(problem, cut(problem, eye)).values()],
        dim=1,
    )


_HELD: dict[Dense, WeakKeyDictionary[Problem, tuple[list[torch.Tensor], torch.Tensor]]] = {
    reverse_over_reverse: WeakKeyDictionary(),
    jvp_of_grad: WeakKeyDictionary(),
}


def held(problem: Problem, dense: Dense = reverse_over_reverse) -> torch.Tensor:
    """The dense Hessian, computed once for every state of parameters and buffers."""
    state = [tensor.detach() for tensor in (*problem.model.parameters(), *problem.model.buffers())]
    known = _HELD[dense].get(problem)
    if known is None or not all(map(torch.equal, known[0], state)):
        known = _HELD[dense][problem] = [tensor.clone() for tensor in state], dense(problem)
    return known[1]


def one_product(
    problem: Problem, Z: torch.Tensor, dense: Dense = reverse_over_reverse
) -> torch.Tensor:
    """Samples z_l·(Hz)_l, probes × blocks."""
    forms = Z * (held(problem, dense) @ Z)
    return torch.stack([forms[index].sum(0) for index in problem.index.values()], dim=1)


def separated(problem: Problem, Z: torch.Tensor) -> torch.Tensor:
    """Samples z_lᵀ H_ll z_l, probes × blocks."""
    H = held(problem)
    return torch.stack([(Z[i] * (H[i][:, i] @ Z[i])).sum(0) for i in problem.index.values()], dim=1)


def with_stderr(problem: Problem, samples: torch.Tensor) -> dict[str, tuple[float, float]]:
    errors = samples.std(0) / len(samples) ** 0.5
    return dict(
        zip(
            problem.partition.blocks,
            zip(samples.mean(0).tolist(), errors.tolist(), strict=True),
            strict=True,
        )
    )


def without_stderr(problem: Problem, samples: torch.Tensor) -> dict[str, float]:
    return dict(zip(problem.partition.blocks, samples.mean(0).tolist(), strict=True))


def total_only(problem: Problem, samples: torch.Tensor) -> float:
    return float(samples.mean(0).sum())


@dataclass(frozen=True)
class Right:
    """An estimator by its probes, its product and the form of its answer; `factor` other than 1 makes it wrong."""

    probe: Probe
    product: Callable[[Problem, torch.Tensor], torch.Tensor] = one_product
    form: Callable[[Problem, torch.Tensor], Any] = with_stderr
    factor: float = 1.0

    def __call__(self, problem: Problem, *, num_probes: int, generator: torch.Generator) -> Any:
        Z = self.probe.sample(problem.num_params, num_probes, generator)
        return self.form(problem, self.factor * self.product(problem, Z))


RIGHT: dict[str, Callable[..., Any]] = {
    "signs": Right(Rademacher()),
    "normal": Right(Gaussian()),
    "block-separated": Right(Rademacher(), separated),
    "forward-over-reverse": Right(Rademacher(), partial(one_product, dense=jvp_of_grad)),
    "forward-over-reverse each time": forward_over_reverse,
    "without stderr": Right(Rademacher(), form=without_stderr),
    "total only": Right(Rademacher(), form=total_only),
}
BIASED: dict[str, Callable[..., Any]] = {
    "signs, 1 % too large": Right(Rademacher(), factor=1.01),
    "normal, 1 % too large": Right(Gaussian(), factor=1.01),
    "total only, 1 % too large": Right(Rademacher(), form=total_only, factor=1.01),
}

# --- runs -------------------------------------------------------------------------------------------------------------


def one_run(task: tuple[str, int]) -> dict[str, Any]:
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


def rates(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By estimator: how many runs ended how, and the 95 % interval of the rate of rejection."""
    found: dict[str, dict[str, Any]] = {}
    for name in [*RIGHT, *BIASED]:
        codes = Counter(run["code"] for run in runs if run["estimator"] == name)
        if count := codes.total():
            interval = clopper_pearson(codes[1], count)
            found[name] = {"runs": count, "accepted": codes[0], "rejected": codes[1], "undecided": codes[3],
                           "rejection rate, 95 %": interval}  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="of every right estimator")
    parser.add_argument("--power-runs", type=int, default=1000, help="of every biased one")
    parser.add_argument(
        "--only", action="append", help="one of them, such as signs; may be given again"
    )
    parser.add_argument("--first-seed", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=Path("reports/conformance_error_rates.json"))
    chosen = parser.parse_args()
    book = chosen.json.with_suffix(".runs.jsonl")
    runs = [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []
    done = {(run["estimator"], run["seed"]) for run in runs}
    counts = dict.fromkeys(RIGHT, chosen.runs) | dict.fromkeys(BIASED, chosen.power_runs)
    counts = {
        name: count for name, count in counts.items() if not chosen.only or name in chosen.only
    }
    wanted = [
        (name, chosen.first_seed + n)
        for n in range(max(counts.values()))
        for name in counts
        if n < counts[name]
    ]
    for run in scatter(one_run, [task for task in wanted if task not in done], chosen.workers):
        append_line(book, run)
        runs.append(run)
        if run["code"] != (1 if run["estimator"] in BIASED else 0):
            print(run, flush=True)
        if len(runs) % 100 == 0:
            print(f"{len(runs)} of {len(wanted)}", flush=True)
    write_atomically(chosen.json, json.dumps(rates(runs), indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(rates(runs), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
