"""Cost against accuracy: the figure of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from hesstheory.show.axes import (
    GREY,
    MARKERS,
    Look,
    distinct,
    is_leftmost,
    legend_below,
    line,
    looks,
    panels,
    shortened,
)
from hesstheory.show.figures import Plot
from hesstheory.show.rows import parts, positive
from hesstheory.show.scales import log_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

ERROR = 0.01  # the accuracy at which ways are compared: 1 % in the worst layer

_OTHERS = ("plain", "peer", "total")

_EXACT: Look = {"color": "black", "marker": "*", "markersize": 11, "linestyle": "none"}


def draw_frontier(canvas: Canvas, frame: pd.DataFrame) -> None:
    """A panel for each problem, a curve for each way."""
    kinds = dict(zip(frame["way"], frame["kind"], strict=True))
    chosen = _looks(kinds)
    problems = list(parts(frame, "problem"))
    axes = panels(canvas, len(problems), (3.9, 2.9), columns=2)
    for ax, (problem, part) in zip(axes, problems, strict=True):
        for way, curve in parts(part, "way"):
            _draw_curve(ax, curve, chosen[way])
        _draw_mark(ax)
        ax.set(title=shortened(problem, 60), xlabel="work (gradients)")
        ax.set_ylabel("relative standard error\nof the worst layer" if is_leftmost(ax) else "")
        ax.margins(x=0.04, y=0.03)
        log_axes(ax)
    legend_below(canvas, [line(_label(way, kinds[way]), **look) for way, look in chosen.items()])


def _draw_mark(ax: Axes) -> None:
    """The line at 1 %, with its label at the right end."""
    ax.axhline(ERROR, color=GREY, lw=0.9, ls=":", zorder=1)
    place = ("axes fraction", "data")
    ax.annotate("1 %", (0.995, ERROR), xycoords=place, ha="right", va="bottom", fontsize=8)


def _draw_curve(ax: Axes, curve: pd.DataFrame, look: Look) -> None:
    """Marked at its first probe and where it reaches 1 %; an exact way stands on the axis."""
    if (curve["kind"] == "exact").all():
        axis = ax.get_xaxis_transform()
        standing: Look = {**look, "zorder": 5}
        ax.plot(curve["work"], [0.0] * len(curve), transform=axis, clip_on=False, **standing)
        return
    is_first = np.arange(len(curve)) == 0
    marked = np.flatnonzero(np.isclose(curve["error"], ERROR) | is_first).tolist()
    ax.plot(curve["work"], curve["error"], markevery=marked, **look)


def _looks(kinds: Mapping[str, str]) -> dict[str, Look]:
    """Ours in colours, a variant (named after a comma) in that of its family; others in grey."""
    ours = [way for way, kind in kinds.items() if kind == "ours"]
    families = looks(distinct(way.partition(",")[0] for way in ours))
    chosen = {way: _varied(way, families[way.partition(",")[0]]) for way in ours}
    chosen |= {way: _EXACT for way, kind in kinds.items() if kind == "exact"}
    others = [way for way, kind in kinds.items() if kind in _OTHERS]
    for way, marker in zip(others, MARKERS, strict=False):
        dashed: Look = {"color": GREY, "marker": marker, "linestyle": "--"}
        chosen[way] = {**dashed, "markerfacecolor": "white"}
    return chosen


def _varied(way: str, family: Look) -> Look:
    """A variant is hollow, and dotted where it probes one layer at a time."""
    if "," not in way:
        return family
    hollow: Look = {**family, "markerfacecolor": "white", "linestyle": "-."}
    if "separated" in way:
        return {**hollow, "linestyle": ":", "marker": "D"}
    return hollow


def _label(way: str, kind: str) -> str:
    """The name of a way, with what it cannot do."""
    return way + {"total": " (total only)", "exact": " (rounding)"}.get(kind, "")


def _drawable(frame: pd.DataFrame) -> pd.DataFrame:
    """An exact way has its work alone."""
    sound = positive("work", "error")(frame)["drawn"]
    return frame.assign(drawn=sound | (frame["kind"].eq("exact") & frame["work"].gt(0)))


FRONTIER = Plot(
    "frontier",
    "frontier",
    "What accuracy costs",
    "Relative standard error of the worst layer, against the work in gradients of the same batch,"
    " from one probe on. A way that takes one layer at a time gives each the probes that it needs."
    " Stars are exact but for rounding. Dashed grey lines are plain torch and other libraries."
    " PyHessian knows the total trace alone, and is judged on that. Costs are lines through the"
    " costs at two numbers of probes.",
    ("problem", "way", "kind"),
    ("work", "error"),
    _drawable,
    draw_frontier,
)
