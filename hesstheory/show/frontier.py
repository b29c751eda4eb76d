"""Cost against accuracy: the figure of the benchmark, drawn from its rows as `figures` draws those of the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from hesstheory.show import figures

ERROR = 0.01

_OTHERS = ("plain", "peer", "total")


def draw(rows: Iterable[Mapping[str, Any]], directory: str | Path) -> figures.Figure:
    """Draw the error of the worst layer over the work, from rows of problem, way, kind, work and error."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(list(rows), columns=["problem", "way", "kind", "work", "error"]).assign(
        claim="", check=""
    )
    return figures._draw(_FRONTIER, frame, Path(directory))


def _drawable(frame: pd.DataFrame) -> pd.DataFrame:
    """An exact way has its work alone."""
    sound = figures._positive("work", "error")(frame)["drawn"]
    return frame.assign(drawn=sound | (frame["kind"].eq("exact") & frame["work"].gt(0)))


def _draw_frontier(canvas: Canvas, frame: pd.DataFrame) -> None:
    problems = figures._names(frame["problem"])
    looks, titles = _looks(frame), dict(zip(frame["way"], frame["kind"], strict=True))
    axes = figures._grid(canvas, len(problems), 3.9, 2.9, columns=2)
    for ax, problem in zip(axes, problems, strict=True):
        for way, curve in figures._parts(frame[frame["problem"] == problem], "way"):
            _curve(ax, curve, looks[way])
        ax.axhline(ERROR, color=figures.GREY, lw=0.9, ls=":", zorder=1)
        ax.annotate(
            "1 %",
            (0.995, ERROR),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
        )
        ax.set(title=figures._short(problem, 60), xlabel="work (gradients)")
        ax.set_ylabel(
            "relative standard error\nof the worst layer" if figures._leftmost(ax) else ""
        )
        ax.margins(x=0.04, y=0.03)
        figures._log(ax)
    handles = [figures._line(_label(way, titles[way]), **look) for way, look in looks.items()]
    figures._legend(canvas, handles)


def _curve(ax: Axes, curve: pd.DataFrame, look: Mapping[str, Any]) -> None:
    """Marked at its first probe and where it reaches 1 %; an exact way stands on the axis."""
    if (curve["kind"] == "exact").all():
        ax.plot(
            curve["work"],
            [0.0],
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            zorder=5,
            **look,
        )
        return
    marked = np.flatnonzero(
        np.isclose(curve["error"], ERROR) | (np.arange(len(curve)) == 0)
    ).tolist()
    ax.plot(curve["work"], curve["error"], markevery=marked, **look)


def _variant(way: str) -> dict[str, Any]:
    """How a variant differs from its family: hollow, and dotted where it probes one layer at a time."""
    if "," not in way:
        return {}
    return (
        {"markerfacecolor": "white", "linestyle": ":", "marker": "D"}
        if "separated" in way
        else {"markerfacecolor": "white", "linestyle": "-."}
    )


def _looks(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Ours in colours, a variant (named after a comma) hollow in that of its parent; others dashed in grey."""
    kinds = dict(zip(frame["way"], frame["kind"], strict=True))
    ours = [way for way, kind in kinds.items() if kind == "ours"]
    families = figures._looks(figures._names(way.partition(",")[0] for way in ours))
    looks = {way: {**families[way.partition(",")[0]], **_variant(way)} for way in ours}
    looks |= {
        way: {"color": "black", "marker": "*", "markersize": 11, "linestyle": "none"}
        for way, kind in kinds.items()
        if kind == "exact"
    }
    others = [way for way, kind in kinds.items() if kind in _OTHERS]
    for way, marker in zip(others, figures.MARKERS, strict=False):
        looks[way] = {
            "color": figures.GREY,
            "marker": marker,
            "markerfacecolor": "white",
            "linestyle": "--",
        }
    return looks


def _label(way: str, kind: str) -> str:
    return way + {"total": " (total only)", "exact": " (rounding)"}.get(kind, "")


_FRONTIER = figures._Plot(
    "frontier",
    "frontier",
    "What accuracy costs",
    "Relative standard error of the layer that is worst, against the work in gradients of the same batch, from one "
    "probe on. A way that takes one layer at a time gives each the probes that it needs. Stars are exact but for "
    "rounding; dashed grey lines are plain torch and other libraries. PyHessian knows the total trace alone, and is "
    "judged on that. Costs are lines through the costs at two numbers of probes.",
    ("problem", "way", "kind"),
    ("work", "error"),
    _drawable,
    _draw_frontier,
)
