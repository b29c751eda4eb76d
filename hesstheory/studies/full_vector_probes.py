"""How far do full-vector probes err on a real network, and are rankings from them right?

    OMP_NUM_THREADS=1 hesstheory study full_vector_probes [--model resnet18] [--probes 200]

The network is one of `zoo.FULL_SCALE` on the first digits as images, in eval mode and float32. It
is untrained, or trained by stochastic gradient descent on all digits. For every state of it:

1. The error of one full-vector probe (`LayerwiseTrace`, signs) of every layer, over the exact
   trace, beside that of a logit probe (`LogitProbeTrace`), and what they cost in gradients.
2. Claim T6.a. Every layer enters the outputs of these networks piecewise linearly as a whole, so
   that H_ll = G_ll (claim G2). The norm and the diagonal of G_ll are known. So the variance of
   probes supported on layer l, signs or normals, needs no sampling. One such probe of every layer
   costs the products of L full-vector probes. Batch-summed normal logit probes have the variance of
   separated normal probes (claim G7); they are sampled as a check.
3. Layers ranked by tr H_ll / P_l from fifty probes, as in HAWQ-V2 (Dong et al. 2020), against the
   true order, and the intervals of ranks by `rank_layers`. Each group of fifty is drawn without
   replacement from all probes, so that every one is distributed as fifty fresh ones. Groups
   overlap; four in two hundred do not.

Intervals of variances are percentiles of a bootstrap over probes, 95 % for every layer alone,
approximate.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hesstheory import zoo
from hesstheory.bench.cost import gradient
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem
from hesstheory.run.clock import best_of, cpu_seconds_of, cpu_timed
from hesstheory.studies.probe_errors import layers, summary
from hesstheory.studies.probe_rankings import rankings, without_norms
from hesstheory.studies.probe_samples import KINDS, Sampled, Setting, network, sampled
from hesstheory.studies.records import Record, SpotCheck
from hesstheory.studies.rounding import rounding_of_traces
from hesstheory.studies.study import Call, Parser, Study, call_study

# --- a state of the network -----------------------------------------------------------------------


def measured(setting: Setting, steps: int) -> Record:
    """Everything about the network after so many steps, ready for JSON."""
    start = time.perf_counter()
    problem, risks = network(setting, steps)
    print(f"{steps} steps: {risks}\n{problem!r}", flush=True)
    once, exact = cpu_timed(partial(exact_traces, problem))
    unit = best_of(3, partial(cpu_seconds_of, partial(gradient, problem)))
    found = _sampled(problem, setting, steps)
    table = layers(problem, exact.value, found, setting)
    return {
        "steps": steps,
        **risks,
        "parameters": problem.num_params,
        "gradient, CPU seconds": unit,
        "exact traces, gradients": once / unit,
        "a probe, gradients": {kind: probes.gradients for kind, probes in found.items()},
        "a probe, CPU seconds": {kind: probes.seconds for kind, probes in found.items()},
        "summary": summary(table),
        "rankings": _ranked(problem, exact.value, found, setting, steps),
        "layers": [
            {"layer": block, **row}
            for block, row in zip(table.index, table.to_dict("records"), strict=True)
        ],
        "seconds": time.perf_counter() - start,
    }


def _sampled(problem: Problem, setting: Setting, steps: int) -> dict[str, Sampled]:
    """Samples of every kind of probe, each from a stream of its own."""
    found = {}
    for kind, estimator in KINDS.items():
        print(f" {estimator!r:.100}", flush=True)
        found[kind] = sampled(problem, estimator, setting, setting.generator(steps, kind))
    return found


def _ranked(
    problem: Problem,
    traces: pd.Series[float],
    found: Mapping[str, Sampled],
    setting: Setting,
    steps: int,
) -> Record:
    """Rankings of all layers, and of those alone that are quantised."""
    parts = {"all layers": problem, "convolutions and head": without_norms(problem)}
    return {
        name: {
            kind: rankings(
                part, traces, found[kind].samples, setting, setting.generator(steps, kind, "groups")
            )
            for kind in ("full", "logit")
        }
        for name, part in parts.items()
    }


def shown(state: Record) -> Table:
    """The layers of a state for the terminal."""
    title = f"{state['steps']} steps, risk {state['risk after']:.3g}; errors are those of one probe"
    table = Table(title=title)
    table.add_column("layer", no_wrap=True)
    for column in (
        *("trace", "error, full", "probes to 10 %", "error, logit"),
        "Var full/(L·Var sep.), 95 %",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    keys = ("trace", "full_error", "full_probes_to_10_percent", "logit_error")
    for row in state["layers"]:
        ratio = f"{row['ratio']:.2g} [{row['ratio_low']:.2g}, {row['ratio_high']:.2g}]"
        table.add_row(row["layer"], *(f"{row[key]:.3g}" for key in keys), ratio)
    return table


# --- the study ------------------------------------------------------------------------------------


def spot_check(record: Record) -> SpotCheck:
    """Builds the untrained network again and compares its risk and its exact traces."""
    state = next((state for state in record["states"] if state["steps"] == 0), None)
    if state is None:
        raise ValueError("the record has no untrained state: run the study again")
    problem, risks = network(Setting(**record["setting"]), 0)
    traces = exact_traces(problem).value
    return SpotCheck.of_numbers(
        f"risk and exact traces of {len(traces)} layers of the untrained network",
        [risks["risk before"], *(traces[row["layer"]] for row in state["layers"])],
        [state["risk before"], *(row["trace"] for row in state["layers"])],
        rounding_of_traces(problem, _traces),
    )


def _traces(problem: Problem) -> Tensor:
    """Exact traces of all layers."""
    return torch.tensor(exact_traces(problem).value.to_numpy())


def _add_options(parser: Parser) -> None:
    """Those of `Setting`, and the states of the network."""
    plain = Setting()
    parser.add_argument("--model", choices=list(zoo.FULL_SCALE), default=plain.model)
    for name in ("width", "samples", "probes", "together", "rank_from", "redraws", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(plain, name))
    parser.add_argument("--learning-rate", type=float, default=plain.learning_rate)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[0, 60], help="of training, a state for each"
    )


def _run(call: Call) -> bool:
    """Measures one state after another; the record is written after each."""
    options = vars(call.options)
    setting = Setting(**{field.name: options[field.name] for field in fields(Setting)})
    console = Console()
    states: list[Record] = []
    for steps in call.options.steps:
        states.append(measured(setting, steps))
        call.write(
            {
                "threads": torch.get_num_threads(),
                "setting": asdict(setting),
                "states": states,
            }
        )
        console.print(shown(states[-1]))
        shown_too = ("summary", "rankings", "a probe, gradients")
        console.print_json(data={name: states[-1][name] for name in shown_too})
    return True


STUDY = Study(
    "full_vector_probes",
    "How far do full-vector probes err on a real network, and are rankings from them right?",
    _run,
    _add_options,
    spot_check,
)

if __name__ == "__main__":
    sys.exit(call_study(STUDY))
