"""The best number of probes at a fixed budget."""

from __future__ import annotations

import math
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


def draw_budget(canvas: Canvas, frame: pd.DataFrame) -> None:
    """A panel for each network and ratio of costs, a curve for each block."""
    found = panels_of(frame, "overhead_ratio")
    chosen = looks(distinct(frame["block"]))
    axes = panels(canvas, len(found), (2.9, 2.7), columns=3)
    for ax, (network, ratio, part) in zip(axes, found, strict=True):
        seaborn.lineplot(
            part,
            x="num_probes",
            y="variance",
            hue="block",
            style="block",
            **palette(chosen),
            dashes=False,
            markersize=5.5,
            markeredgewidth=0,  # seaborn's white rims would cut the curve
            estimator=None,  # every row is a point of a curve: no averages, no random resampling
            legend=False,
            ax=ax,
        )
        for block, curve in parts(part.sort_values("num_probes"), "block"):
            _draw_optimum(ax, curve, chosen[block]["color"])
        costs = "" if math.isnan(ratio) else f"\n$c_0/c_1$ = {ratio:g}"
        ax.set(title=shortened(network) + costs, xlabel="probes per mini-batch K")
        ax.set_ylabel("variance at the fixed budget\n(loss / weight²)²" if is_leftmost(ax) else "")
        log_axes(ax)
    handles = [line(name, **look) for name, look in chosen.items()]
    star: Look = {**STAR, "color": GREY}
    legend_below(canvas, [*handles, dot("predicted optimum", **star)])


def _draw_optimum(ax: Axes, curve: pd.DataFrame, colour: str) -> None:
    """A star on the curve at K_opt, or a hollow one at its nearest end where K_opt is outside."""
    k_opt = curve["k_opt"].iloc[0]
    if not (np.isfinite(k_opt) and k_opt > 0):
        return
    probes = np.log(curve["num_probes"].to_numpy())
    variance = np.log(curve["variance"].to_numpy())
    x = float(np.clip(np.log(k_opt), probes.min(), probes.max()))
    y = float(np.interp(x, probes, variance))
    is_inside = math.isclose(x, math.log(k_opt))
    ax.plot([math.exp(x)], [math.exp(y)], color=colour if is_inside else "white", **STAR)


BUDGET = Plot(
    "budget_u_curve",
    "budget",
    "Best number of probes at a fixed budget",
    "Variance reached with a fixed budget when each mini-batch costs an overhead c₀ and each probe"
    " c₁. The star is the predicted optimum √(c₀/c₁ · K*). It is hollow at an end of the curve"
    " where the optimum lies beyond it.",
    ("network", "block"),
    ("num_probes", "variance", "k_opt", "overhead_ratio"),
    positive("num_probes", "variance"),
    draw_budget,
)
