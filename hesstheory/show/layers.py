"""Layers of a full-scale run: traces, errors of one probe, variances and K*, beside each other."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import NullLocator

from hesstheory.show.axes import COLOURS, GREY
from hesstheory.show.figures import Figure, pictures
from hesstheory.show.rows import Record
from hesstheory.show.scales import Values, log_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_LEAST = 1e-3  # ratios below it stand at the edge: the axis would otherwise show rounding

_ESTIMATE = COLOURS[0]
_LOGIT = COLOURS[1]
_OPTIMUM = COLOURS[2]
_EXACT = COLOURS[6]

_LABEL_WIDTH = 0.15  # of an axis: labels of ticks that are nearer would touch

_SHIFT = 0.18  # rows of the two estimators stand apart by a third of the distance of layers


def draw_layers(report: Record, title: str) -> Figure:
    """Draws four panels over the layers of a run.

    Parameters
    ----------
    report
        What `harness.json` holds: `layers` maps names to quantities, None where one is infinite.
    title
        One line above the panels.

    Returns
    -------
    Figure
        Named `layers`; its data hold every quantity of every layer.
    """

    def draw(canvas: Canvas) -> None:
        _draw_panels(canvas, report)
        canvas.suptitle(title, fontsize=9)

    svg, png = pictures(draw)
    caption = "Traces, error of one probe, variance and K* of every layer."
    return Figure("layers", title, caption, svg, png, _data(report))


def column(report: Record, quantity: str) -> Values:
    """A quantity of all layers, NaN where there is none."""
    values = [values.get(quantity) for values in report["layers"].values()]
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _data(report: Record) -> str:
    """All quantities of all layers as CSV, with every digit."""
    layers = report["layers"]
    quantities = list(dict.fromkeys(key for values in layers.values() for key in values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["layer", *quantities])
    for layer, values in layers.items():
        writer.writerow([layer, *(values.get(key, "") for key in quantities)])
    return out.getvalue()


def _draw_panels(canvas: Canvas, report: Record) -> None:
    """Four panels that share the names of the layers."""
    layers = list(report["layers"])
    rows = np.arange(float(len(layers)))
    # Inches: 0.17 a layer fits a label of 7 points, 1.6 the axis labels, legends and title.
    canvas.set_size_inches(11.0, 1.6 + 0.17 * len(layers))
    axes = canvas.subplots(1, 4, sharey=True)
    draws = (_draw_traces, _draw_deviations, _draw_variances, _draw_counts)
    for ax, draw in zip(axes, draws, strict=True):
        draw(ax, report, rows)
        ax.margins(y=0.01)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=7, handletextpad=0.4)
    axes[0].set_yticks(rows, layers, fontsize=7)
    axes[0].invert_yaxis()


def _draw_traces(ax: Axes, report: Record, rows: Values) -> None:
    """Estimates of two kinds of probes with two standard errors, and the exact traces."""
    num_probes = report["settings"]["probes"]
    for quantity, error, colour, label, shift in (
        ("estimate", "stderr", _ESTIMATE, "one-product", -_SHIFT),
        ("logit_estimate", "logit_stderr", _LOGIT, "logit probes", _SHIFT),
    ):
        ax.errorbar(
            column(report, quantity),
            rows + shift,
            xerr=2 * column(report, error),
            fmt="o",
            ms=2.5,
            lw=0.9,
            color=colour,
            label=f"{label}, K = {num_probes}",
        )
    exact = column(report, "exact")
    ax.plot(exact, rows, "|", color=_EXACT, ms=7, mew=1.4, label="exact")
    sizes = np.abs(exact[exact != 0])
    _symmetric(ax, float(np.nanmin(sizes)) if sizes.size else 1.0)
    ax.set_xlabel(f"tr {report['matrix']} of the layer (loss)\nbars: ± 2 standard errors")


def _symmetric(ax: Axes, smallest: float) -> None:
    """A symmetric-logarithmic axis, linear below the smallest trace, with few ticks.

    They are zero, the largest power of ten on either side, and one between where there is room.
    """
    ax.set_xscale("symlog", linthresh=smallest)
    low, high = ax.get_xlim()
    first = math.floor(math.log10(smallest))
    last = {sign: _exponent(sign * end, first) for sign, end in ((-1, low), (1, high))}
    length = 2 + sum(power - first for power in last.values())  # in decades; the linear part is two
    ticks = [0.0]
    for sign, power in last.items():
        middle = (first + power + 1) // 2
        has_room = (power - middle) / length > _LABEL_WIDTH
        ticks += [sign * 10.0**p for p in {middle if has_room else power, power} if p > first]
    ax.set_xticks(sorted(ticks))
    ax.xaxis.set_minor_locator(NullLocator())


def _exponent(value: float, least: int) -> int:
    """The largest power of ten up to a value, at least 10^`least`."""
    return max(least, math.floor(math.log10(value))) if value > 0 else least


def _draw_deviations(ax: Axes, report: Record, rows: Values) -> None:
    """The standard deviation of one probe, relative to the exact trace."""
    exact = np.abs(column(report, "exact"))
    for quantity, colour, label in (
        ("predicted_sd", _ESTIMATE, "one-product"),
        ("logit_sd", _LOGIT, "logit probe"),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):  # a layer whose trace is zero
            relative = column(report, quantity) / exact
        is_below = relative < _LEAST
        ax.plot(np.where(is_below, np.nan, relative), rows, "o", ms=3, color=colour, label=label)
        ax.plot(np.full(is_below.sum(), _LEAST), rows[is_below], "<", ms=4, color=colour)
    _ratio_axis(ax, "standard deviation of one probe\nover the exact trace (◂ below 0.1 %)")


def _draw_variances(ax: Axes, report: Record, rows: Values) -> None:
    """Measured over predicted variance, and the range that all layers keep if both are right."""
    low = column(report, "variance_low")
    high = column(report, "variance_high")
    label = "where all layers\nlie with 99.9 %"
    edge = np.maximum(low, _LEAST)
    ax.hlines(rows, edge, high, color=GREY, lw=1.0, alpha=0.6, label=label)
    is_beyond = low < _LEAST
    ax.plot(np.full(is_beyond.sum(), _LEAST), rows[is_beyond], "<", ms=3, color=GREY)
    measured = column(report, "variance_ratio")
    ax.plot(measured, rows, "o", ms=3, color=_ESTIMATE, label="measured")
    _ratio_axis(ax, "measured over predicted\nvariance of one probe")


def _ratio_axis(ax: Axes, label: str) -> None:
    """A logarithmic axis with a line at one."""
    ax.axvline(1.0, color=GREY, lw=0.9, ls=":")
    ax.set_xlabel(label)
    log_axes(ax, y=False)


def _draw_counts(ax: Axes, report: Record, rows: Values) -> None:
    """K* and the cheapest number of probes, beside the range that a rule of thumb names."""
    ax.axvspan(5, 10, color=GREY, alpha=0.2, lw=0, label="K in [5, 10]")
    ax.plot(column(report, "k_star"), rows, "o", ms=3, color=_ESTIMATE, label="K*")
    cheapest = column(report, "k_cost_optimal")
    ax.plot(cheapest, rows, "D", ms=2.5, mfc="white", color=_OPTIMUM, label="cheapest K")
    ax.set_xlabel("probes on one batch")
    log_axes(ax, y=False)
