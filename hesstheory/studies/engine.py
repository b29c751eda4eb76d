"""What do torch.compile and channels-last memory bring?

    OMP_NUM_THREADS=1 hesstheory study engine

Costs are in eager gradients of the same problem; all ways take turns. Autograd cannot differentiate
a compiled module twice. A compiled product is therefore one by torch.func (forward over reverse),
and compiled exact traces do not exist. Compilation itself is not counted; it needs a C++ compiler.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp

from hesstheory.bench.cost import clock_of, gradient
from hesstheory.bench.problems import SETTINGS
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.run.streams import stream
from hesstheory.studies.records import Record
from hesstheory.studies.study import Call, Parser, Study, call_study

_PROBES = 4  # enough that what is paid once does not decide

Parameters = dict[str, Tensor]
Product = Callable[[Parameters, Parameters], object]


def ways(problem: Problem) -> Mapping[str, Callable[[], object]]:
    """What is timed, by name."""
    last = _channels_last(problem)
    product = _product(problem)
    start = dict(problem.params)
    tangent = {name: torch.ones_like(p) for name, p in start.items()}
    compiled_product = torch.compile(product)

    return {
        "gradient, compiled": _compiled_gradient(problem),
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


def _compiled_gradient(problem: Problem) -> Callable[[], object]:
    """The gradient by a compiled forward and backward pass."""
    compiled = torch.compile(problem.model)
    ((x, y),) = problem.batches
    tensors = list(problem.params.values())
    return lambda: torch.autograd.grad(problem.loss_fn(compiled(x), y), tensors)


def _channels_last(problem: Problem) -> Problem:
    """The same problem with pixels outside and channels inside in memory."""
    model = copy.deepcopy(problem.model)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in problem.batches]
    return Problem(model, problem.loss_fn, batches)


def _product(problem: Problem) -> Product:
    """H times a tangent at some parameters, forward over reverse."""
    ((x, y),) = problem.batches

    def loss(params: Parameters) -> Tensor:
        return problem.loss_fn(functional_call(problem.model, params, (x,)), y)

    return lambda at, along: jvp(grad(loss), (at,), (along,))[1]


def _add_options(parser: Parser) -> None:
    """Problems and rounds."""
    parser.add_argument("--problems", nargs="*", default=["mlp", "cnn", "resnet18"])
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which medians are kept")
    parser.add_argument("--tiny", action="store_true", help="tiny problems: is all in place?")


def _run(call: Call) -> bool:
    """Times every way on every problem; a way that fails says so."""
    report: Record = {"threads": torch.get_num_threads()}
    for name in call.options.problems:
        problem = SETTINGS[name].build(call.options.tiny, True)
        report[name] = _costs(problem, call.options.repeats)
        print(name, json.dumps(report[name], indent=2))
        call.write(report)
    return True


def _costs(problem: Problem, repeats: int) -> Record:
    """Medians over rounds in which all ways take turns, so that a slow minute slows all of them."""
    clock = clock_of(problem)
    calls = dict(ways(problem))
    failed = {name: reason for name, call in calls.items() if (reason := _failure(call))}
    costs: dict[str, list[float]] = {name: [] for name in calls if name not in failed}
    for _ in range(repeats):
        for name, found in costs.items():
            found.append(clock(calls[name]))
    medians = {name: statistics.median(found) for name, found in costs.items()}
    return {
        "gradient_seconds": statistics.median(clock.units),
        "gradients": {**failed, **medians},
    }


def _failure(call: Callable[[], object]) -> str:
    """Why a way cannot be timed, from its first call, which also compiles it; empty if it can."""
    try:
        call()
    except Exception as error:  # whatever a compiler raises
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


STUDY = Study(
    "engine",
    "What do torch.compile and channels-last memory bring?",
    _run,
    _add_options,
)

if __name__ == "__main__":
    sys.exit(call_study(STUDY))
