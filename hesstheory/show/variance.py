"""Measured against predicted: variances of layer traces, and ratios of variances."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from hesstheory.show.axes import GREY, distinct, dot, legend_below, line, looks, stage_dots
from hesstheory.show.figures import Plot
from hesstheory.show.points import scatter
from hesstheory.show.rows import with_ratio
from hesstheory.show.scales import log_axes, padded_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_ROUNDING = 1e-9  # relative; if all agree to this, the strip counts units in the last place

_EPS = float(np.finfo(float).eps)


def draw_predicted(canvas: Canvas, frame: pd.DataFrame, quantity: str, unit: str) -> None:
    """Measured over predicted values above, their ratio below."""
    canvas.set_size_inches(6.2, 5.2)
    upper, lower = canvas.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    chosen = looks(distinct(frame["probe"]))
    scatter(upper, frame, ("predicted", "measured"), "probe", chosen)
    limits = padded_log(frame[["predicted", "measured"]].to_numpy())
    upper.plot(limits, limits, color=GREY, lw=0.9, zorder=1)
    upper.set(xlim=limits, ylim=limits, ylabel=f"measured {quantity}\n{unit}")
    log_axes(upper)
    away = float((frame["measured_over_predicted"] - 1).abs().max())
    if away < _ROUNDING:
        frame = frame.assign(ulps=(frame["measured_over_predicted"] - 1) / _EPS)
        scatter(lower, frame, ("predicted", "ulps"), "probe", chosen)
        _strip(lower, 0.0, "(measured ÷\npredicted − 1)\n÷ 2.2·10⁻¹⁶")
    else:
        scatter(lower, frame, ("predicted", "measured_over_predicted"), "probe", chosen)
        _strip(lower, 1.0, "measured ÷\npredicted")
        half = 1.25 * max(0.02, away)  # 2 %: less is not seen at the size of a marker
        lower.set_ylim(max(0.0, 1 - half), 1 + half)
    lower.set_xlabel(f"predicted {quantity} {unit}")
    handles = [dot(f"{name} probes", **look) for name, look in chosen.items()]
    handles += stage_dots(distinct(frame["stage"]))
    legend_below(canvas, [*handles, line("measured = predicted", color=GREY, linewidth=0.9)])


def _strip(ax: Axes, centre: float, label: str) -> None:
    """The line of agreement and the label of the strip."""
    ax.axhline(centre, color=GREY, lw=0.9, zorder=1)
    ax.set_ylabel(label)


VARIANCE = Plot(
    "predicted_vs_measured_variance",
    "variance",
    "Measured against predicted variance",
    "Variance of a layer trace, measured over repeated draws, against its closed form; below,"
    " their ratio. For probes with independent entries the form is"
    " 2‖H_ll‖² + (κ−3) Σ H_ii² + Σ_{m≠l} ‖H_lm‖².",
    ("network", "stage", "block", "probe"),
    ("predicted", "measured"),
    with_ratio("measured_over_predicted", "measured", "predicted"),
    partial(draw_predicted, quantity="variance", unit="(loss / weight²)²"),
)

GAIN = Plot(
    "gain_over_full_vector",
    "gain",
    "What the outputs spare the probes",
    "Variance of one full-vector probe on H, divided by that of a better probe, by layer. The"
    " better probe is one logit probe for piecewise-linear networks. For other networks it is one"
    " probe on R = H − G beside the exact traces of G. At 1 nothing is gained.",
    ("network", "stage", "block", "probe"),
    ("predicted", "measured"),
    with_ratio("measured_over_predicted", "measured", "predicted"),
    partial(draw_predicted, quantity="gain", unit="(ratio of variances)"),
)
