"""What does this machine have, and does a known trace come out of it?"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import torch

from hesstheory import zoo
from hesstheory.curvature.matrix import hessian
from hesstheory.estimators.enumerations import hadamard_columns
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.run.precision import precision_switches
from hesstheory.run.provenance import provenance
from hesstheory.run.streams import stream

_PEERS = ("curvlinops", "pyhessian", "hessian_eigenthings", "skerch")


def facts() -> dict[str, str]:
    """Versions, devices and precision switches, by name."""
    found = provenance("hesstheory doctor")
    del found["command"]
    found["threads"] = str(torch.get_num_threads())
    found["CUDA devices"] = (
        ", ".join(_device(i) for i in range(torch.cuda.device_count())) or "none"
    )
    found["distributed backends"] = ", ".join(_backends()) or "none"
    found["data folder"] = os.environ.get(
        "HESSTHEORY_DATA", "~/.cache/hesstheory (set HESSTHEORY_DATA for another)"
    )
    found["peer libraries"] = (
        ", ".join(name for name in _PEERS if importlib.util.find_spec(name)) or "none"
    )
    return found | {name: str(value) for name, value in precision_switches().items()}


def _device(index: int) -> str:
    """Name and memory of a CUDA device."""
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"


def _backends() -> Iterator[str]:
    """What processes can talk over here."""
    if torch.distributed.is_available():
        yield from (
            name
            for name in ("gloo", "nccl", "mpi")
            if getattr(torch.distributed, f"is_{name}_available")()
        )


# Relative: float64 sums of a network of a few hundred parameters agree to 1e-14; a device that
# rounds to float32 misses by 1e-7.
_SAME = 1e-10


def checks() -> Iterator[tuple[str, bool, str]]:
    """Traces of a small network on every device, by two routes each.

    Yields
    ------
    tuple
        Name, outcome and detail.
    """
    for name in ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]:
        problem = _on(name)
        dense = hessian(problem).trace_by_block()
        exact = exact_traces(problem).value
        error = float((dense - exact).abs().max() / dense.abs().max())
        detail = f"relative error {error:.1g} beside the dense Hessian"
        yield f"exact traces on {name}", error < _SAME, detail
        Z = hadamard_columns(problem.num_params).to(problem.device)
        q = hessian(problem).quadratic_forms(Z).mean(0).cpu().numpy()
        error = float(abs(q - dense.to_numpy()).max() / dense.abs().max())
        detail = f"relative error {error:.1g} with {Z.shape[1]} Hadamard probes"
        yield f"one-product traces on {name}", error < _SAME, detail


def _on(device: str) -> Problem:
    """A small network whose exact traces are known to hold, on a device."""
    problem = zoo.problem("relu_mlp", stream(0, "doctor"))
    model = problem.model.to(device)
    return Problem(
        model, problem.loss_fn, [(x.to(device), y.to(device)) for x, y in problem.batches]
    )
