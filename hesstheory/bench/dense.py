"""Dense Hessians, ours and others', each in a fresh process."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hesstheory.bench import cost, processes
from hesstheory.bench.marks import Record
from hesstheory.bench.problems import SETTINGS
from hesstheory.conformance.subjects import peers
from hesstheory.curvature.matrix import hessian
from hesstheory.problem.risk import Problem
from hesstheory.run import clock, memory


def _flat_risk(problem: Problem) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The risk as a function of one vector, and the vector of the parameters."""
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    sizes = [p.numel() for p in problem.params.values()]

    def risk(theta: Tensor) -> Tensor:
        pieces = zip(problem.params.items(), torch.split(theta, sizes), strict=True)
        named = {name: piece.view_as(p) for (name, p), piece in pieces}
        return problem.loss_fn(functional_call(problem.model, named, (inputs,)), targets)

    return risk, torch.cat([p.detach().flatten() for p in problem.params.values()])


def _dense_torch_func(problem: Problem) -> Tensor:
    """torch.func.hessian as it comes: P copies of all activations at once."""
    risk, theta = _flat_risk(problem)
    H: Tensor = torch.func.hessian(risk)(theta)
    return H


_COLUMNS_AT_ONCE = 256  # as many copies of all activations: what a machine of 8 GB holds


def _dense_in_chunks(problem: Problem) -> Tensor:
    """The same forward over reverse, in chunks of columns: a user who tunes it by hand."""
    risk, theta = _flat_risk(problem)
    slope = torch.func.grad(risk)
    column = torch.func.vmap(
        lambda v: torch.func.jvp(slope, (theta,), (v,))[1], chunk_size=_COLUMNS_AT_ONCE
    )
    H: Tensor = column(torch.eye(len(theta), dtype=theta.dtype))
    return H


def _dense_curvlinops(problem: Problem) -> Tensor:
    """Applied to the identity."""
    import curvlinops

    params = list(problem.params.values())
    data = list(problem.batches)
    operator = curvlinops.HessianLinearOperator(
        problem.model, nn.CrossEntropyLoss(), params, data, check_deterministic=False
    )
    H: Tensor = operator @ torch.eye(problem.num_params, dtype=problem.dtype)
    return H


DENSE: Mapping[str, Callable[[Problem], Tensor]] = {
    "hessian(problem).to_dense()": lambda problem: hessian(problem).to_dense(),
    "torch.func.hessian": _dense_torch_func,
    "torch.func in chunks": _dense_in_chunks,
    "curvlinops": _dense_curvlinops,
}


_SAME_NORM = 1e-10  # relative: sums of 10⁸ float64 squares differ by 1e-12


@dataclass(frozen=True)
class _Run:
    """CPU seconds of a gradient and of a dense Hessian, its norm and its peak of memory."""

    gradient: float
    seconds: float
    peak: int | None
    norm: float


def dense_once(way: str, tiny: bool) -> _Run:
    """One dense Hessian, in the process that calls."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    DENSE[way](SETTINGS["dense"].build(True, False))  # loads the libraries
    problem = SETTINGS["dense"].build(tiny, False)
    unit = clock.cpu_seconds_of(lambda: cost.gradient(problem))
    before = memory.resident_now()
    seconds, H = clock.cpu_timed(lambda: DENSE[way](problem))
    peak = None if before is None else memory.resident_peak() - before
    return _Run(unit, seconds, peak, float(H.norm()))


def measure_dense(repeats: int, tiny: bool, say: cost.Say) -> Record:
    """Dense Hessians in float64, each in a fresh process; their norms must agree.

    Parameters
    ----------
    repeats
        Runs of every way, of which the median counts.
    tiny
        Whether the problem is the small one, for tests.
    say
        Is told which way runs.

    Raises
    ------
    AssertionError
        Two ways found different matrices.
    MemoryError
        None of them fits into memory.
    """
    problem = SETTINGS["dense"].build(tiny, False)
    found, absent = _runs(repeats, tiny, say)
    if not found:
        raise MemoryError(
            f"no dense Hessian of {problem.num_params} parameters fits into memory: "
            "name other problems"
        )
    norms = [run.norm for runs in found.values() for run in runs]
    if max(norms) - min(norms) > _SAME_NORM * max(norms):
        raise AssertionError(f"the dense Hessians differ: their norms are {norms}")
    unit = statistics.median(run.gradient for runs in found.values() for run in runs)
    return {
        "about": SETTINGS["dense"].about,
        "num_params": problem.num_params,
        "num_samples": problem.num_samples,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "gradient_seconds": unit,
        "repeats": repeats,
        "ways": _entries(found, unit, problem.num_params),
        "absent": absent,
        "frontier": [],
    }


def _runs(repeats: int, tiny: bool, say: cost.Say) -> tuple[dict[str, list[_Run]], dict[str, str]]:
    """Runs of every way that can do it, taken in turns, and why the others cannot."""
    absent = {}
    if "curvlinops-for-pytorch" not in peers.installed():
        absent["curvlinops"] = "not installed: pip install 'hesstheory[peers]'"
    found: dict[str, list[_Run]] = {way: [] for way in DENSE if way not in absent}
    for way in [way for _ in range(repeats) for way in found]:
        say(f"dense Hessian by {way}")
        try:
            found[way].append(processes.in_a_process(dense_once, way, tiny))
        except MemoryError as error:
            absent[way] = str(error)
    return {way: runs for way, runs in found.items() if runs and way not in absent}, absent


def _entries(found: Mapping[str, list[_Run]], unit: float, num_params: int) -> dict[str, Record]:
    """What the report says of every way; the matrix itself is the unit of memory."""
    ours = next(iter(DENSE))
    seconds = {way: statistics.median(run.seconds for run in runs) for way, runs in found.items()}
    matrix = torch.float64.itemsize * num_params**2
    return {
        way: {
            "kind": "ours" if way == ours else "peer",
            "seconds": seconds[way],
            "gradients": seconds[way] / unit,
            "times_ours": seconds[way] / seconds[ours] if ours in seconds else None,
            "peak_in_matrices": _peak(runs, matrix),
        }
        for way, runs in found.items()
    }


def _peak(runs: Sequence[_Run], matrix: int) -> float | None:
    """The highest of all runs, in matrices; None where it cannot be read."""
    known = [run.peak for run in runs if run.peak is not None]
    return max(known) / matrix if known else None
