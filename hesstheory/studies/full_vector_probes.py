"""What do probes of all parameters see of the layers of a real network, and are the rankings right that rest on them?

`python tests/studies/full_vector_probes.py [--model resnet18] [--probes 200] [--steps 0 60] [--json FILE]`

The network is one of `zoo.FULL_SCALE` on the first digits as images, in eval mode and float32, untrained and after
steps of stochastic gradient descent on all digits. For every state of it:

1. The error of one full-vector probe (`LayerwiseTrace`, signs) of every layer, over the exact trace, beside that of a
   logit probe (`LogitProbeTrace`), and what they cost in gradients.
2. Claim T6.a. Every layer enters the outputs of these networks piecewise linearly as a whole, so that H_ll = G_ll
   (claim G2), and of G_ll the norm and the diagonal are known: the variance of probes supported on layer l, signs or
   normals, needs no sampling. One such probe of every layer costs the products of L full-vector probes. Batch-summed
   normal logit probes, whose variance is that of separated normal probes (claim G7), are sampled as a check.
3. Layers ranked by tr H_ll / P_l from fifty probes, as in HAWQ-V2 (Dong et al. 2020), against the true order, and the
   intervals of ranks by `rank_layers`. Each group of fifty is drawn without replacement from all probes, so that every
   one is distributed as fifty fresh ones; groups overlap, four in two hundred do not.

Intervals of variances are percentiles of a bootstrap over probes, 95 % for every layer alone, approximate.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory import (
    Estimate,
    Gaussian,
    LayerwiseTrace,
    LogitProbeTrace,
    Problem,
    exact_traces,
    rank_layers,
    zoo,
)
from hesstheory.outputs.loss_root import loss_root
from hesstheory.run.clock import cpu_seconds_of, cpu_timed
from hesstheory.run.files import write_atomically
from hesstheory.run.provenance import provenance
from hesstheory.run.streams import stream
from hesstheory.zoo.initial import set_running_statistics

_HELD = 2**29  # numbers of a dual factor that are held at once
_RESAMPLES = 2000


@dataclass(frozen=True)
class Setting:
    """What is measured: `probes` of each kind, `together` in a group, ranked from `rank_from` of them."""

    model: str = "resnet18"
    width: int = 64
    samples: int = 16
    probes: int = 200
    together: int = 10
    rank_from: int = 50
    redraws: int = 500
    learning_rate: float = 0.05
    seed: int = 0

    def generator(self, *names: object) -> torch.Generator:
        return stream(self.seed, "full-vector probes", *map(str, names))


# --- the network ------------------------------------------------------------------------------------------------------


def network(setting: Setting, steps: int) -> tuple[Problem, dict[str, float]]:
    """The problem after so many steps, and its risk before and after them."""
    data, generator = (
        zoo.images("digits", num_samples=setting.samples),
        setting.generator("weights"),
    )
    options = {"batch_size": setting.samples, "width": setting.width, "generator": generator}
    problem = zoo.full_scale_problem(setting.model, data, **options)
    before = risk(problem)
    losses = descend(problem.model, setting, steps)
    if steps:
        set_running_statistics(problem.model, data.inputs)
    trained = Problem(problem.model.eval(), problem.loss_fn, problem.batches)
    last = {"loss of the last ten mini-batches": statistics.mean(losses[-10:])} if steps else {}
    return trained, {"risk before": before, "risk after": risk(trained)} | last


def descend(model: nn.Module, setting: Setting, steps: int) -> list[float]:
    """Plain stochastic gradient descent on digits drawn with replacement, batch norm in train mode; losses by step."""
    inputs, targets = zoo.images("digits")
    generator, losses = setting.generator("training"), []
    descent = torch.optim.SGD(model.parameters(), lr=setting.learning_rate)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(inputs), (setting.samples,), generator=generator)
        descent.zero_grad()
        loss = F.cross_entropy(model(inputs[rows]), targets[rows])
        torch.autograd.backward(loss)
        descent.step()
        losses.append(loss.item())
    descent.zero_grad()
    return losses


def risk(problem: Problem) -> float:
    return sum(
        w * problem.loss(batch).item()
        for w, batch in zip(problem.weights, problem.batches, strict=True)
    )


def without_norms(problem: Problem) -> Problem:
    """The same risk in the weights of convolutions and linear layers alone, which are what is quantised."""
    model = copy.deepcopy(problem.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return Problem(model, problem.loss_fn, problem.batches)


def sizes(problem: Problem) -> pd.Series[int]:
    return pd.Series({block: len(index) for block, index in problem.index.items()})


# --- H_ll = G_ll without probes ---------------------------------------------------------------------------------------


def own_blocks(problem: Problem) -> pd.DataFrame:
    """tr G_ll, Σ G_ii², ‖G_ll‖², ‖G_ll²‖² and Σ_{m≠l} ‖G_lm‖² by block: G_lm = A_lᵀA_m, M_l = A_l A_lᵀ (claim G6).

    A row of A_l for every sample and column of the root of its loss: S_nᵀJ_nl / √N.
    """
    grams, found = {}, {}
    for blocks in grouped(problem):
        for block, A in dual_factors(problem, blocks):
            grams[block] = (A @ A.mT).double()
            diagonal = A.square().sum(0).double()
            found[block] = {
                "trace": float(diagonal.sum()),
                "diagonal2": float(diagonal.square().sum()),
            }
    total = sum(grams.values())
    for block, M in grams.items():
        found[block] |= {"norm2": float(M.square().sum()), "norm4": float((M @ M).square().sum())}
        found[block]["cross_ggn"] = float((M * (total - M)).sum())
    return pd.DataFrame(found).T


def grouped(problem: Problem) -> Iterator[list[str]]:
    """Blocks in groups whose dual factors can be held together."""
    outputs = len(problem.outputs(problem.batches[0])[0].flatten())
    group, held = [], 0
    for block, size in (sizes(problem) * problem.num_samples * outputs).items():
        if group and held + size > _HELD:
            yield group
            group, held = [], 0
        group.append(block)
        held += size
    yield group


def dual_factors(problem: Problem, blocks: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """A_l of the named blocks, one backward pass of one sample for every row."""
    params = {
        block: [problem.params[name] for name in problem.tensors_of(block)] for block in blocks
    }
    wanted = [p for tensors in params.values() for p in tensors]
    rows: dict[str, list[Tensor]] = {block: [] for block in blocks}
    for one in problem.samples():
        outputs = one.outputs(one.batches[0])
        root = loss_root(one, outputs, one.batches[0]) / math.sqrt(problem.num_samples)
        for column in root.unbind(2):
            slopes = iter(
                torch.autograd.grad(
                    outputs, wanted, column.reshape(outputs.shape), retain_graph=True
                )
            )
            for block, tensors in params.items():
                rows[block].append(torch.cat([next(slopes).flatten() for _ in tensors]))
    for block in blocks:
        yield block, torch.stack(rows.pop(block))


def separated_variance(own: pd.DataFrame, kurtosis: float) -> pd.Series[float]:
    """Claim T2 without cross blocks: 2‖H_ll‖² + (κ−3) Σ H_ii²."""
    return 2 * own["norm2"] + (kurtosis - 3) * own["diagonal2"]


# --- samples ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampled:
    """Samples of an estimator, a row per probe, and the cost of a probe in gradients and CPU seconds."""

    samples: pd.DataFrame
    gradients: float
    seconds: float


def gradient(problem: Problem) -> None:
    for batch in problem.batches:
        torch.autograd.grad(problem.loss(batch), list(problem.params.values()))


def sampled(
    problem: Problem, estimator: Any, setting: Setting, generator: torch.Generator
) -> Sampled:
    """All probes in groups, each timed beside a gradient."""
    found, costs, seconds = [], [], []
    for done in range(0, setting.probes, setting.together):
        few = replace(estimator, num_probes=min(setting.together, setting.probes - done))
        unit = min(cpu_seconds_of(lambda: gradient(problem)) for _ in range(2))
        taken, estimate = cpu_timed(lambda few=few: few(problem, generator))
        found.append(estimate.samples)
        costs.append(taken / few.num_probes / unit)
        seconds.append(taken / few.num_probes)
        print(
            f"  {done + few.num_probes} of {setting.probes}, {costs[-1]:.2f} gradients each",
            flush=True,
        )
    return Sampled(
        pd.concat(found, ignore_index=True), statistics.median(costs), statistics.median(seconds)
    )


KINDS = {
    "full": LayerwiseTrace(),
    "logit": LogitProbeTrace(),
    "summed": LogitProbeTrace(per_sample=False, probe=Gaussian()),
}


def variance_interval(
    samples: pd.DataFrame, generator: torch.Generator, level: float = 0.95
) -> pd.DataFrame:
    """Percentiles of the bootstrapped variance by column, `low` and `high`."""
    K, limits = len(samples), torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    rows = torch.randint(K, (_RESAMPLES, K), generator=generator)
    values = torch.from_numpy(samples.to_numpy(copy=True))
    quantiles = [torch.quantile(column[rows].var(1), limits) for column in values.unbind(1)]
    return pd.DataFrame(
        torch.stack(quantiles).numpy(), index=samples.columns, columns=["low", "high"]
    )


# --- what the samples say ---------------------------------------------------------------------------------------------


def layers(
    problem: Problem, traces: pd.Series[float], found: dict[str, Sampled], setting: Setting
) -> pd.DataFrame:
    """A row per layer: exact values, the errors of one probe of every kind, and claim T6.a."""
    exact = pd.DataFrame(
        {"parameters": sizes(problem), "trace": traces, "mean_trace": traces / sizes(problem)}
    )
    errors = [errors_of(kind, probes.samples, traces) for kind, probes in found.items()]
    return pd.concat([exact, *errors, crossover(own_blocks(problem), found, setting)], axis=1)


def errors_of(kind: str, samples: pd.DataFrame, traces: pd.Series[float]) -> pd.DataFrame:
    """Of one probe: its deviation, that over the trace, and the probes to relative errors; z of the mean of all."""
    deviation = samples.std()
    # Logit signs are exact for the head but for rounding, which has no z.
    known_to = deviation.clip(lower=math.sqrt(len(samples)) * 1e-5 * traces) / math.sqrt(
        len(samples)
    )
    return pd.DataFrame(
        {
            f"{kind}_deviation": deviation,
            f"{kind}_error": deviation / traces,
            f"{kind}_probes_to_10_percent": probes_to(0.10, deviation / traces),
            f"{kind}_probes_to_1_percent": probes_to(0.01, deviation / traces),
            f"{kind}_z": (samples.mean() - traces) / known_to,
        }
    )


def probes_to(error: float, of_one: pd.Series[float]) -> pd.Series[float]:
    """Probes until the standard error is so small, from the error of one."""
    return np.ceil((of_one / error) ** 2)


def crossover(own: pd.DataFrame, found: dict[str, Sampled], setting: Setting) -> pd.DataFrame:
    """Var full / (L·Var separated), below 1 where full-vector probes are the better ones, and what it is made of."""
    signs, normal = separated_variance(own, 1.0), separated_variance(own, 3.0)
    full = with_interval("full_variance", found["full"].samples, setting)
    summed = summed_against_prediction(found["summed"].samples.var(), own, setting.probes)
    exact = {
        "separated_variance": signs,
        "separated_variance_of_normals": normal,
        "trace_from_rows": own["trace"],
    }
    crossed = {"cross_norm2": full["full_variance"] - signs, "cross_norm2_of_ggn": own["cross_ggn"]}
    return pd.concat(
        [
            pd.DataFrame(exact | crossed),
            full,
            summed,
            full.div(len(own) * signs, axis=0).rename(
                columns=lambda name: name.replace("full_variance", "ratio")
            ),
            full.div(len(own) * normal, axis=0).rename(
                columns=lambda name: name.replace("full_variance", "ratio_of_normals")
            ),
        ],
        axis=1,
    )


def summed_against_prediction(
    variance: pd.Series[float], own: pd.DataFrame, num_probes: int
) -> pd.DataFrame:
    """Sample variance s² of summed normal logit probes over 2‖G_ll‖², and z by what s² itself varies by.

    Var s²/σ⁴ = 2/(K−1) + γ/K with the excess kurtosis γ = 12‖G_ll²‖²/‖G_ll‖⁴ of the quadratic form of normals.
    """
    ratio, excess = variance / separated_variance(own, 3.0), 12 * own["norm4"] / own["norm2"] ** 2
    z = (ratio - 1) / np.sqrt(2 / (num_probes - 1) + excess / num_probes)
    return pd.DataFrame(
        {"summed_variance": variance, "summed_over_prediction": ratio, "summed_variance_z": z}
    )


def with_interval(name: str, samples: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    interval = variance_interval(samples, setting.generator("bootstrap")).add_prefix(f"{name}_")
    return pd.concat([samples.var().rename(name), interval], axis=1)


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """The layers of a state in a few numbers."""
    return {
        "layers": len(table),
        **{
            f"error of one probe over the trace, {kind}": spread(table[f"{kind}_error"])
            for kind in KINDS
        },
        **{
            f"probes to 10 %, {kind}": spread(table[f"{kind}_probes_to_10_percent"])
            for kind in KINDS
        },
        "Var full / (L Var separated)": spread(table["ratio"]),
        "Var full / (L Var separated), separated probes normal": spread(table["ratio_of_normals"]),
        "full-vector probes better": int((table["ratio"] < 1).sum()),
        "whole interval better": int((table["ratio_high"] < 1).sum()),
        "whole interval worse": int((table["ratio_low"] > 1).sum()),
        "whole interval worse even than normals": int((table["ratio_of_normals_low"] > 1).sum()),
        "cross blocks of G over those of H, squared norms": spread(
            table["cross_norm2_of_ggn"] / table["cross_norm2"]
        ),
        "largest |z| of a mean": {kind: float(table[f"{kind}_z"].abs().max()) for kind in KINDS},
        "two routes to the trace, relative difference": float(
            (table["trace_from_rows"] / table["trace"] - 1).abs().max()
        ),
        "summed variance over prediction": spread(table["summed_over_prediction"]),
        "largest |z| of the summed variance": float(table["summed_variance_z"].abs().max()),
    }


def spread(values: pd.Series[float]) -> dict[str, float | str]:
    return {
        "least": float(values.min()), "median": float(values.median()), "most": float(values.max()),
        "least in": str(values.idxmin()), "most in": str(values.idxmax()),
    }  # fmt: skip


# --- rankings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """An estimator that returns the samples that it was given."""

    samples: pd.DataFrame

    def __call__(self, problem: Problem, generator: torch.Generator) -> Estimate:
        return Estimate(self.samples, len(self.samples))


def rankings(
    problem: Problem,
    traces: pd.Series[float],
    samples: pd.DataFrame,
    setting: Setting,
    generator: torch.Generator,
) -> dict[str, Any]:
    """How rankings by mean trace from few probes compare with the true one, over groups apart and over all groups."""
    K, few, blocks = len(samples), setting.rank_from, list(problem.partition.blocks)
    traces, samples = traces[blocks], samples[blocks]
    apart = list(torch.arange(K // few * few).split(few))
    drawn = [torch.randperm(K, generator=generator)[:few] for _ in range(setting.redraws)]
    rows = [
        compared(problem, traces, samples.iloc[group.numpy()], generator)
        for group in (*apart, *drawn)
    ]
    # Around the true traces the gaps between neighbours are true, and the spreads those of the probes.
    centred = rank_layers(
        problem, generator=generator, estimator=Held(samples - samples.mean() + traces)
    )
    return {
        "layers": len(blocks),
        "probes in a group": few,
        "groups apart": {"groups": len(apart)} | rates(rows[: len(apart)]),
        "groups drawn": {"groups": len(drawn)} | rates(rows[len(apart) :]),
        "probes that would decide the order": centred.num_probes_needed,
    }


def compared(
    problem: Problem, traces: pd.Series[float], samples: pd.DataFrame, generator: torch.Generator
) -> dict[str, float]:
    """One ranking against the true one; what is wrong is 1."""
    ranking = rank_layers(problem, generator=generator, estimator=Held(samples))
    table, exact = ranking.table.loc[traces.index], traces / sizes(problem)
    true = exact.rank(ascending=False)
    tops = [set(ranks.nsmallest(5).index) for ranks in (table["rank"], true)]
    return {
        "order wrong": float((table["rank"] != true).any()),
        "top five wrong": float(tops[0] != tops[1]),
        "wrong among the top five": float(len(tops[0] - tops[1])),
        "first wrong": float(table["rank"].idxmin() != true.idxmin()),
        "Kendall's tau": float(kendalltau(table["value"], exact).statistic),
        "negative traces": float((table["value"] < 0).mean()),
        "all ranks inside": float(
            table["rank_low"].le(true).all() and table["rank_high"].ge(true).all()
        ),
        "width of the intervals": float((table["rank_high"] - table["rank_low"]).mean()),
    }


def rates(rows: list[dict[str, float]]) -> dict[str, float]:
    found = pd.DataFrame(rows)
    return {
        **found.mean(),
        "least tau": float(found["Kendall's tau"].min()),
        "most tau": float(found["Kendall's tau"].max()),
    }


# --- a state of the network -------------------------------------------------------------------------------------------


def measured(setting: Setting, steps: int) -> dict[str, Any]:
    """Everything about the network after so many steps, ready for JSON."""
    start = time.perf_counter()
    problem, risks = network(setting, steps)
    print(f"{steps} steps: {risks}\n{problem!r}", flush=True)
    once, traces = cpu_timed(lambda: exact_traces(problem).value)
    unit = min(cpu_seconds_of(lambda: gradient(problem)) for _ in range(3))
    found = {}
    for kind, estimator in KINDS.items():
        print(f" {estimator!r:.100}", flush=True)
        found[kind] = sampled(problem, estimator, setting, setting.generator(steps, kind))
    table = layers(problem, traces, found, setting)
    ranked = {
        name: {
            kind: rankings(
                part, traces, found[kind].samples, setting, setting.generator(steps, kind, "groups")
            )
            for kind in ("full", "logit")
        }
        for name, part in {
            "all layers": problem,
            "convolutions and head": without_norms(problem),
        }.items()
    }
    return {
        "steps": steps,
        **risks,
        "parameters": problem.num_params,
        "gradient, CPU seconds": unit,
        "exact traces, gradients": once / unit,
        "a probe, gradients": {kind: probes.gradients for kind, probes in found.items()},
        "a probe, CPU seconds": {kind: probes.seconds for kind, probes in found.items()},
        "summary": summary(table),
        "rankings": ranked,
        "layers": [
            {"layer": block, **row}
            for block, row in zip(table.index, table.to_dict("records"), strict=True)
        ],
        "seconds": time.perf_counter() - start,
    }


def shown(state: dict[str, Any]) -> Table:
    """The layers of a state for the terminal."""
    table = Table(
        title=f"{state['steps']} steps, risk {state['risk after']:.3g}; errors are those of one probe"
    )
    for column in (
        "layer",
        "trace",
        "error, full",
        "probes to 10 %",
        "error, logit",
        "Var full/(L·Var sep.), 95 %",
    ):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    for row in state["layers"]:
        ratio = f"{row['ratio']:.2g} [{row['ratio_low']:.2g}, {row['ratio_high']:.2g}]"
        numbers = [
            f"{row[name]:.3g}"
            for name in ("trace", "full_error", "full_probes_to_10_percent", "logit_error")
        ]
        table.add_row(row["layer"], *numbers, ratio)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    plain = Setting()
    parser.add_argument("--model", choices=list(zoo.FULL_SCALE), default=plain.model)
    for name in ("width", "samples", "probes", "together", "rank_from", "redraws", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(plain, name))
    parser.add_argument("--learning-rate", type=float, default=plain.learning_rate)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[0, 60], help="of training, a state for each"
    )
    parser.add_argument("--json", type=Path, default=Path("reports/full_vector_probes.json"))
    chosen = vars(parser.parse_args(arguments))
    all_steps, file = chosen.pop("steps"), chosen.pop("json")
    setting, states, console = Setting(**chosen), list[dict[str, Any]](), Console()
    command = shlex.join(sys.argv if arguments is None else [Path(__file__).name, *arguments])
    for steps in all_steps:
        states.append(measured(setting, steps))
        record = {
            "provenance": provenance(command),
            "threads": torch.get_num_threads(),
            "setting": asdict(setting),
        }
        write_atomically(
            file, json.dumps(record | {"states": states}, indent=1, ensure_ascii=False) + "\n"
        )
        console.print(shown(states[-1]))
        console.print_json(
            data={name: states[-1][name] for name in ("summary", "rankings", "a probe, gradients")}
        )


if __name__ == "__main__":
    main()
