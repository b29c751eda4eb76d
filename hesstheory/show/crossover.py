"""One full-vector probe against separated probes: which has the smaller variance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from hesstheory.show.axes import (
    COLOURS,
    GREY,
    Look,
    distinct,
    dot,
    legend_below,
    line,
    shortened,
    stage_dots,
)
from hesstheory.show.figures import Plot
from hesstheory.show.points import scatter
from hesstheory.show.rows import with_ratio
from hesstheory.show.scales import log_axes, padded_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_SIDES: dict[str, Look] = {
    "full-vector probe wins": {"color": COLOURS[0], "marker": "o"},
    "separated probes win": {"color": COLOURS[1], "marker": "^"},
}


def draw_crossover(canvas: Canvas, frame: pd.DataFrame) -> None:
    """Both variances on the left, their ratio by network on the right."""
    networks = distinct(frame["network"])
    canvas.set_size_inches(9.6, max(4.0, 0.34 * len(networks) + 1.1))
    left, right = canvas.subplots(1, 2)
    frame = frame.assign(winner=_winners(frame), place=_places(frame, networks))
    _draw_variances(left, frame)
    _draw_ratios(right, frame, networks)
    handles = [dot(label, **look) for label, look in _SIDES.items()]
    handles += stage_dots(distinct(frame["stage"]))
    legend_below(canvas, [*handles, line("equal variance", color=GREY, linewidth=0.9)])


def _winners(frame: pd.DataFrame) -> np.ndarray:
    """The side that wins, as the records say it."""
    full, separated = _SIDES
    wins = frame["full_vector_wins"].str.lower().isin(("true", "1", "1.0"))
    return np.where(wins, full, separated)


def _places(frame: pd.DataFrame, networks: list[str]) -> pd.Series:
    """A height for each row: the blocks of a network lie beside each other, in their order."""
    groups = frame.groupby("network", sort=False)["network"]
    order = groups.cumcount()
    crowd = groups.transform("size")
    band = frame["network"].map({name: i for i, name in enumerate(networks)})
    return band + 0.6 * ((order + 0.5) / crowd - 0.5)  # 0.6: bands stay apart


def _draw_variances(ax: Axes, frame: pd.DataFrame) -> None:
    """Full-vector over separated variance, with the line on which they are equal."""
    scatter(ax, frame, ("separated_variance", "full_variance"), "winner", _SIDES)
    limits = padded_log(frame[["separated_variance", "full_variance"]].to_numpy())
    ax.plot(limits, limits, color=GREY, lw=0.9, zorder=1)
    ax.set(
        xlim=limits,
        ylim=limits,
        xlabel="variance, separated probes (loss / weight²)²",
        ylabel="variance, one full-vector probe (loss / weight²)²",
    )
    log_axes(ax)


def _draw_ratios(ax: Axes, frame: pd.DataFrame, networks: list[str]) -> None:
    """The ratio of the variances, a band for each network."""
    scatter(ax, frame, ("full_over_separated", "place"), "winner", _SIDES)
    ax.axvline(1, color=GREY, lw=0.9, zorder=1)
    ax.set(
        xlim=padded_log(np.append(frame["full_over_separated"].to_numpy(), 1.0)),
        ylim=(len(networks) - 0.4, -0.6),
        xlabel="full-vector variance ÷ separated variance",
    )
    ax.set_yticks(range(len(networks)), [shortened(name) for name in networks])
    ax.hlines(np.arange(len(networks) - 1) + 0.5, *ax.get_xlim(), color="#e4e4e4", lw=0.6)
    ax.grid(axis="y", visible=False)
    log_axes(ax, y=False)


CROSSOVER = Plot(
    "full_vector_vs_separated",
    "crossover",
    "One full-vector probe against separated probes",
    "Variance of a block trace at equal numbers of Hessian products. Below the line (left) and"
    " left of 1 (right) one full-vector probe is better; cross-layer blocks decide.",
    ("network", "stage", "block", "full_vector_wins"),
    ("separated_variance", "full_variance", "ratio"),
    with_ratio("full_over_separated", "full_variance", "separated_variance"),
    draw_crossover,
)
