"""Dense Hessians, ours and others', each in a fresh process."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hesstheory.bench import cost
from hesstheory.bench.problems import SETTINGS
from hesstheory.conformance.subjects import peers
from hesstheory.curvature.matrix import hessian
from hesstheory.problem.risk import Problem
from hesstheory.run import clock, memory


def _flat_risk(problem: Problem) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    sizes = [p.numel() for p in problem.params.values()]

    def risk(theta: Tensor) -> Tensor:
        pieces = zip(problem.params.items(), torch.split(theta, sizes), strict=True)
        named = {name: piece.view_as(p) for (name, p), piece in pieces}
        return problem.loss_fn(functional_call(problem.model, named, (inputs,)), targets)

    return risk, torch.cat([p.detach().flatten() for p in problem.params.values()])


def _dense_torch_func(problem: Problem) -> Any:
    """torch.func.hessian as it comes: P copies of all activations at once."""
    risk, theta = _flat_risk(problem)
    return torch.func.hessian(risk)(theta)


def _dense_in_chunks(problem: Problem) -> Any:
    """The same forward over reverse, in chunks of columns: a user who tunes it by hand."""
    risk, theta = _flat_risk(problem)
    slope = torch.func.grad(risk)
    column = torch.func.vmap(lambda v: torch.func.jvp(slope, (theta,), (v,))[1], chunk_size=256)
    return column(torch.eye(len(theta), dtype=theta.dtype))


def _dense_curvlinops(problem: Problem) -> Any:
    """Applied to the identity."""
    import curvlinops

    params, data = list(problem.params.values()), list(problem.batches)
    operator = curvlinops.HessianLinearOperator(
        problem.model, nn.CrossEntropyLoss(), params, data, check_deterministic=False
    )
    return operator @ torch.eye(problem.num_params, dtype=problem.dtype)


DENSE: Mapping[str, Callable[[Problem], Tensor]] = {
    "hessian(problem).to_dense()": lambda problem: hessian(problem).to_dense(),
    "torch.func.hessian": _dense_torch_func,
    "torch.func in chunks": _dense_in_chunks,
    "curvlinops": _dense_curvlinops,
}


def dense_once(way: str, tiny: bool) -> tuple[float, float, int | None, float]:
    """CPU seconds of a gradient and of a dense Hessian, peak memory above what was there before, and its norm."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    DENSE[way](SETTINGS["dense"].build(True, False))  # loads the libraries
    problem = SETTINGS["dense"].build(tiny, False)
    unit = clock.cpu_seconds_of(lambda: cost.gradient(problem))
    before = memory.resident_now()
    seconds, H = clock.cpu_timed(lambda: DENSE[way](problem))
    peak = None if before is None else memory.resident_peak() - before
    return unit, seconds, peak, float(H.norm())


def measure_dense(repeats: int, tiny: bool, say: cost.Say) -> dict[str, Any]:
    """Dense Hessians in float64, each in a fresh process; their norms must agree."""
    problem, absent = SETTINGS["dense"].build(tiny, False), {}
    if "curvlinops-for-pytorch" not in peers.installed():
        absent["curvlinops"] = "not installed: pip install 'hesstheory[peers]'"
    found: dict[str, list[Any]] = {way: [] for way in DENSE if way not in absent}
    for way in [way for _ in range(repeats) for way in found]:
        say(f"dense Hessian by {way}")
        try:
            found[way].append(cost.in_a_process(dense_once, way, tiny))
        except MemoryError as error:
            absent[way] = str(error)
    found = {way: results for way, results in found.items() if results and way not in absent}
    norms = [norm for results in found.values() for *_, norm in results]
    if max(norms) - min(norms) > 1e-10 * max(norms):
        raise AssertionError(f"the dense Hessians differ: their norms are {norms}")
    if not found:
        raise MemoryError(
            f"no dense Hessian of {problem.num_params} parameters fits into memory: name other problems"
        )
    seconds = {
        way: statistics.median(result[1] for result in results) for way, results in found.items()
    }
    unit = statistics.median(result[0] for results in found.values() for result in results)
    ours, matrix = seconds[next(iter(DENSE))], 8 * problem.num_params**2
    ways = {
        way: {
            "kind": "ours" if way == next(iter(DENSE)) else "peer",
            "seconds": seconds[way],
            "gradients": seconds[way] / unit,
            "times_ours": seconds[way] / ours,
            "peak_in_matrices": None
            if results[0][2] is None
            else max(result[2] for result in results) / matrix,
        }
        for way, results in found.items()
    }
    return {
        "about": SETTINGS["dense"].about,
        "num_params": problem.num_params,
        "num_samples": problem.num_samples,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "gradient_seconds": unit,
        "repeats": repeats,
        "ways": ways,
        "absent": absent,
        "frontier": [],
    }
