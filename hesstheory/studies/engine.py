"""What do torch.compile and channels-last memory bring? Costs in eager gradients of the same problem, alternating.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_engine.py --json reports/engine.json

Autograd cannot differentiate a compiled module twice, so that a compiled product is one by torch.func (forward over
reverse), and compiled exact traces do not exist. Compilation itself is not counted; it needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp

from hesstheory import LayerwiseTrace, Problem, exact_traces
from hesstheory.bench.cost import clock_of, gradient
from hesstheory.bench.problems import SETTINGS
from hesstheory.run.files import write_atomically
from hesstheory.run.provenance import provenance
from hesstheory.run.streams import stream

_PROBES = 4


def ways(problem: Problem) -> Mapping[str, Callable[[], object]]:
    """What is timed, by name."""
    last, compiled = _channels_last(problem), torch.compile(problem.model)
    (batch,), tensors = problem.batches, list(problem.params.values())
    product, start = _product(problem), dict(problem.params)
    tangent = {name: torch.ones_like(p) for name, p in start.items()}
    compiled_product = torch.compile(product)

    def compiled_gradient() -> None:
        torch.autograd.grad(problem.loss_fn(compiled(batch[0]), batch[1]), tensors)

    return {
        "gradient, compiled": compiled_gradient,
        "gradient, channels last": lambda: gradient(last),
        f"LayerwiseTrace({_PROBES})": lambda: LayerwiseTrace(_PROBES)(problem, stream(0)),
        f"LayerwiseTrace({_PROBES}), channels last": lambda: LayerwiseTrace(_PROBES)(
            last, stream(0)
        ),
        "one product by torch.func": lambda: product(start, tangent),
        "one product by torch.func, compiled": lambda: compiled_product(start, tangent),
        "exact_traces": lambda: exact_traces(problem),
        "exact_traces, channels last": lambda: exact_traces(last),
    }


def _channels_last(problem: Problem) -> Problem:
    model = copy.deepcopy(problem.model).to(memory_format=torch.channels_last)
    batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in problem.batches]
    return Problem(model, problem.loss_fn, batches)


def _product(problem: Problem) -> Callable[[dict[str, Tensor], dict[str, Tensor]], Any]:
    ((x, y),) = problem.batches

    def loss(params: dict[str, Tensor]) -> Tensor:
        return problem.loss_fn(functional_call(problem.model, params, (x,)), y)

    return lambda at, along: jvp(grad(loss), (at,), (along,))[1]


def main() -> None:
    """Times every way on every problem; a way that fails says so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=["mlp", "cnn", "resnet18"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "provenance": provenance("bench_engine.py"),
        "threads": torch.get_num_threads(),
    }
    for name in options.problems:
        problem = SETTINGS[name].build(options.tiny, True)
        clock, calls = clock_of(problem), dict(ways(problem))
        costs: dict[str, list[float]] = {}
        report[name] = {"gradient_seconds": None, "gradients": {}}
        for key, call in list(calls.items()):
            try:
                call()
            except Exception as error:
                report[name]["gradients"][key] = (
                    f"{type(error).__name__}: {str(error).splitlines()[0]}"
                )
                del calls[key]
        for _ in range(options.repeats):
            for key, call in calls.items():
                costs.setdefault(key, []).append(clock(call))
        report[name]["gradients"] |= {key: statistics.median(found) for key, found in costs.items()}
        report[name]["gradient_seconds"] = statistics.median(clock.units)
        print(name, json.dumps(report[name], indent=2))
        write_atomically(options.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
