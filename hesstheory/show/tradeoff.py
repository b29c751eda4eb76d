"""What another probe on the same mini-batch buys: total variance over the floor of batch noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn

from hesstheory.show.axes import (
    GREY,
    STAR,
    Look,
    distinct,
    dot,
    is_leftmost,
    legend_below,
    line,
    looks,
    palette,
    panels,
    shortened,
)
from hesstheory.show.figures import Plot
from hesstheory.show.rows import panels_of, parts, positive
from hesstheory.show.scales import log_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


def draw_tradeoff(canvas: Canvas, frame: pd.DataFrame) -> None:
    """A panel for each network and batch size, a curve for each block."""
    found = panels_of(frame, "batch_size")
    chosen = looks(distinct(frame["block"]))
    axes = panels(canvas, len(found), (2.9, 2.7), columns=3)
    for ax, (network, batch_size, part) in zip(axes, found, strict=True):
        _draw_curves(ax, part, chosen)
        ax.axhline(1, color="black", lw=1.1)
        ax.axhline(2, color=GREY, lw=0.9, ls=":")
        ax.set(title=f"{shortened(network)}\nbatch size {batch_size:g}", xlabel="probes K")
        ax.set_ylabel("total variance ÷ floor" if is_leftmost(ax) else "")
        log_axes(ax)
    handles = [dot(name, **look) for name, look in chosen.items()]
    handles += [line("predicted", color=GREY), dot("measured", color=GREY, marker="o")]
    star: Look = {**STAR, "color": GREY}
    handles.append(dot("K* (twice the floor)", **star))
    legend_below(canvas, [*handles, line("floor: batch noise alone", color="black", linewidth=1.1)])


def _draw_curves(ax: Axes, frame: pd.DataFrame, chosen: Mapping[str, Look]) -> None:
    """Predictions as lines, measurements as points, a star at K*."""
    named = palette(chosen)
    seaborn.lineplot(
        frame,
        x="num_probes",
        y="predicted_over_floor",
        hue="block",
        palette=named["palette"],
        estimator=None,  # every row is a point of a curve: no averages, no random resampling
        legend=False,
        ax=ax,
    )
    seaborn.scatterplot(
        frame[frame["measured_over_floor"] > 0],
        x="num_probes",
        y="measured_over_floor",
        hue="block",
        style="block",
        **named,
        s=30.0,
        linewidth=0,
        legend=False,
        ax=ax,
    )
    for block, part in parts(frame, "block"):
        k_star = part["k_star"].iloc[0]
        if np.isfinite(k_star) and k_star > 0:
            ax.plot([k_star], [2], color=chosen[block]["color"], **STAR)


def _over_floor(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds both variances over the floor."""
    floor = frame["floor"].where(frame["floor"] > 0)
    frame = frame.assign(
        predicted_over_floor=frame["predicted"] / floor,
        measured_over_floor=frame["measured"] / floor,
    )
    return positive("num_probes", "predicted_over_floor")(frame)


TRADEOFF = Plot(
    "probe_tradeoff",
    "total_variance",
    "What another probe buys on one mini-batch",
    "Total variance of a layer trace over the floor left by batch sampling, against the number of"
    " probes on that batch. Lines are predictions, points measurements; at K* (stars) the total is"
    " twice the floor.",
    ("network", "block"),
    ("batch_size", "num_probes", "predicted", "measured", "k_star", "floor"),
    _over_floor,
    draw_tradeoff,
)
