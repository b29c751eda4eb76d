"""Estimated against exact layer traces, a panel for each network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hesstheory.show.axes import (
    GREY,
    PALE,
    Look,
    distinct,
    dot,
    face,
    legend_below,
    line,
    looks,
    shortened,
    stage_dots,
)
from hesstheory.show.figures import Plot
from hesstheory.show.points import scatter, whiskers
from hesstheory.show.rows import finite, parts
from hesstheory.show.scales import signed_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_COLUMNS = 4


def draw_estimates(canvas: Canvas, frame: pd.DataFrame) -> None:
    """Estimates with their intervals above, errors in units of the interval below."""
    networks = distinct(frame["network"])
    chosen = looks(distinct(frame["probe"]))
    for place, (network, upper, lower) in enumerate(_panels(canvas, networks)):
        _draw_network(upper, lower, frame[frame["network"] == network], chosen)
        upper.set_title(shortened(network))
        if place % _COLUMNS == 0:
            upper.set_ylabel(r"estimated $\mathrm{tr}\,H_{ll}$" + "\n(loss / weight²)")
            lower.set_ylabel("error ÷ half\n95% interval")
        if place + _COLUMNS >= len(networks):
            lower.set_xlabel(r"exact $\mathrm{tr}\,H_{ll}$ (loss / weight²)")
    handles = [dot(f"{name} probes", **look) for name, look in chosen.items()]
    handles += stage_dots(distinct(frame["stage"]))
    truth = line("exact = estimated", color=GREY, linewidth=0.9)
    legend_below(canvas, [*handles, truth, Patch(color=PALE, label="95% interval covers")])


def _panels(canvas: Canvas, networks: list[str]) -> Iterator[tuple[str, Axes, Axes]]:
    """A large and a small panel for each network."""
    columns = min(len(networks), _COLUMNS)
    rows = math.ceil(len(networks) / columns)
    canvas.set_size_inches(max(2.7 * columns, 5.5), 3.7 * rows)
    axes = canvas.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        upper = axes[2 * row, column]
        lower = axes[2 * row + 1, column]
        if place < len(networks):
            yield networks[place], upper, lower
        else:
            upper.remove()
            lower.remove()


def _draw_network(
    upper: Axes, lower: Axes, frame: pd.DataFrame, chosen: Mapping[str, Look]
) -> None:
    """The two panels of one network."""
    lower.sharex(upper)
    reach = frame[["exact", "estimate", "low", "high"]].to_numpy()
    signed_scale(upper, reach[np.isfinite(reach)])
    upper.plot(upper.get_xlim(), upper.get_xlim(), color=GREY, lw=0.9, zorder=1)
    for probe, rows in parts(frame, "probe"):
        for stage, part in parts(rows, "stage"):
            look: Look = {**chosen[probe], "linestyle": "none"}
            look["markerfacecolor"] = face(stage, look["color"])
            upper.errorbar(
                part["exact"],
                part["estimate"],
                yerr=whiskers(part, "estimate"),
                elinewidth=0.9,
                capsize=2,
                **look,
            )
    upper.tick_params(labelbottom=False)
    _draw_errors(lower, frame, chosen)


def _draw_errors(ax: Axes, frame: pd.DataFrame, chosen: Mapping[str, Look]) -> None:
    """Errors over half the interval: an interval that covers leaves its point within ±1."""
    error = frame["estimate"] - frame["exact"]
    half = (frame["high"] - frame["estimate"]).where(error < 0, frame["estimate"] - frame["low"])
    frame = frame.assign(misfit=error / half.where(half > 0))
    ax.axhspan(-1, 1, color=PALE, lw=0)
    scatter(ax, frame, ("exact", "misfit"), "probe", chosen, size=12.0)
    reach = np.nanmax([1.5, *frame["misfit"].abs()])  # 1.5: the band is seen to end
    ax.set_ylim(-1.2 * reach, 1.2 * reach)
    ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))


ESTIMATES = Plot(
    "exact_vs_estimated",
    "estimates",
    "Estimated against exact layer traces",
    "Each point is the trace of one diagonal block. It compares the estimate from random probes,"
    " with its 95% interval, with the exact value. Axes are symmetric-logarithmic where a network"
    " spans decades. The strips below show the error in units of half the interval: about one"
    " point in twenty may leave the grey band.",
    ("network", "stage", "block", "probe"),
    ("exact", "estimate", "low", "high", "num_probes"),
    finite("exact", "estimate"),
    draw_estimates,
)
