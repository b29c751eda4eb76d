"""Errors of one probe by layer, beside exact traces and exact variances."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from hesstheory.problem.risk import Problem
from hesstheory.studies.own_blocks import own_blocks, separated_variance
from hesstheory.studies.probe_samples import KINDS, Sampled, Setting, sizes
from hesstheory.studies.records import Record

_RESAMPLES = 2000  # of a bootstrap: ends of a 95 % interval have 50 resamples beyond them
_ROUNDING = 1e-5  # of a trace in float32, a hundred times its epsilon: sums of many terms


def layers(
    problem: Problem, traces: pd.Series[float], found: Mapping[str, Sampled], setting: Setting
) -> pd.DataFrame:
    """A row per layer: exact values, the errors of one probe of every kind, and claim T6.a."""
    exact = pd.DataFrame(
        {"parameters": sizes(problem), "trace": traces, "mean_trace": traces / sizes(problem)}
    )
    errors = [errors_of(kind, probes.samples, traces) for kind, probes in found.items()]
    return pd.concat([exact, *errors, crossover(own_blocks(problem), found, setting)], axis=1)


def errors_of(kind: str, samples: pd.DataFrame, traces: pd.Series[float]) -> pd.DataFrame:
    """Of one probe: its deviation, also over the trace, and the probes to relative errors.

    z is that of the mean of all probes.
    """
    deviation = samples.std()
    relative = deviation / traces
    # Logit signs are exact for the head but for rounding, which has no z.
    rounding = math.sqrt(len(samples)) * _ROUNDING * traces
    known_to = deviation.clip(lower=rounding) / math.sqrt(len(samples))
    return pd.DataFrame(
        {
            f"{kind}_deviation": deviation,
            f"{kind}_error": relative,
            f"{kind}_probes_to_10_percent": probes_to(0.10, relative),
            f"{kind}_probes_to_1_percent": probes_to(0.01, relative),
            f"{kind}_z": (samples.mean() - traces) / known_to,
        }
    )


def probes_to(error: float, of_one: pd.Series[float]) -> pd.Series[float]:
    """Probes until the standard error is so small, from the error of one."""
    return pd.Series(np.ceil((of_one / error).to_numpy() ** 2), of_one.index)


def crossover(own: pd.DataFrame, found: Mapping[str, Sampled], setting: Setting) -> pd.DataFrame:
    """Var full / (L·Var separated), and what it is made of.

    It is below 1 where full-vector probes are the better ones.
    """
    signs = separated_variance(own, 1.0)
    normal = separated_variance(own, 3.0)
    full = with_interval("full_variance", found["full"].samples, setting)
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
            summed_against_prediction(found["summed"].samples.var(), own, setting.probes),
            _over(len(own) * signs, full, "ratio"),
            _over(len(own) * normal, full, "ratio_of_normals"),
        ],
        axis=1,
    )


def _over(variance: pd.Series[float], full: pd.DataFrame, name: str) -> pd.DataFrame:
    """Variances of full-vector probes, with their intervals, over another."""
    ratio = full.div(variance, axis=0)
    return ratio.rename(columns=lambda column: str(column).replace("full_variance", name))


def summed_against_prediction(
    variance: pd.Series[float], own: pd.DataFrame, num_probes: int
) -> pd.DataFrame:
    """Sample variance s² of summed normal logit probes over 2‖G_ll‖².

    z is in units of what s² itself varies by: Var s²/σ⁴ = 2/(K−1) + γ/K with the excess kurtosis
    γ = 12‖G_ll²‖²/‖G_ll‖⁴ of the quadratic form of normals.
    """
    ratio = variance / separated_variance(own, 3.0)
    excess = 12 * own["norm4"] / own["norm2"] ** 2
    z = (ratio - 1) / np.sqrt(2 / (num_probes - 1) + excess / num_probes)
    return pd.DataFrame(
        {"summed_variance": variance, "summed_over_prediction": ratio, "summed_variance_z": z}
    )


def with_interval(name: str, samples: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """Variances by column with their intervals."""
    interval = variance_interval(samples, setting.generator("bootstrap")).add_prefix(f"{name}_")
    return pd.concat([samples.var().rename(name), interval], axis=1)


def summary(table: pd.DataFrame) -> Record:
    """The layers of a state in a few numbers."""
    two_routes = (table["trace_from_rows"] / table["trace"] - 1).abs().max()
    return {
        "layers": len(table),
        **_spreads(table, "error of one probe over the trace", "error"),
        **_spreads(table, "probes to 10 %", "probes_to_10_percent"),
        **_crossover_summary(table),
        "largest |z| of a mean": {kind: float(table[f"{kind}_z"].abs().max()) for kind in KINDS},
        "two routes to the trace, relative difference": float(two_routes),
        "summed variance over prediction": spread(table["summed_over_prediction"]),
        "largest |z| of the summed variance": float(table["summed_variance_z"].abs().max()),
    }


def _spreads(table: pd.DataFrame, name: str, column: str) -> Record:
    """How a number of every kind of probe spreads over the layers."""
    return {f"{name}, {kind}": spread(table[f"{kind}_{column}"]) for kind in KINDS}


def _crossover_summary(table: pd.DataFrame) -> Record:
    """In how many layers full-vector probes are the better ones."""
    blocks = table["cross_norm2_of_ggn"] / table["cross_norm2"]
    return {
        "Var full / (L Var separated)": spread(table["ratio"]),
        "Var full / (L Var separated), separated probes normal": spread(table["ratio_of_normals"]),
        "full-vector probes better": int((table["ratio"] < 1).sum()),
        "whole interval better": int((table["ratio_high"] < 1).sum()),
        "whole interval worse": int((table["ratio_low"] > 1).sum()),
        "whole interval worse even than normals": int((table["ratio_of_normals_low"] > 1).sum()),
        "cross blocks of G over those of H, squared norms": spread(blocks),
    }


def spread(values: pd.Series[float]) -> Record:
    """Least, median and most, and where."""
    return {
        "least": float(values.min()), "median": float(values.median()), "most": float(values.max()),
        "least in": str(values.idxmin()), "most in": str(values.idxmax()),
    }  # fmt: skip


def variance_interval(
    samples: pd.DataFrame, generator: torch.Generator, level: float = 0.95
) -> pd.DataFrame:
    """Percentiles of the bootstrapped variance by column, `low` and `high`."""
    K = len(samples)
    limits = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    rows = torch.randint(K, (_RESAMPLES, K), generator=generator)
    values = torch.from_numpy(samples.to_numpy(copy=True))
    quantiles = [torch.quantile(column[rows].var(1), limits) for column in values.unbind(1)]
    return pd.DataFrame(
        torch.stack(quantiles).numpy(), index=samples.columns, columns=["low", "high"]
    )
