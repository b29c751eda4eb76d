"""What the figures share: palette, markers, style, panels and the legend below them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

from matplotlib.lines import Line2D

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Name = TypeVar("Name")

LineStyle = Literal["-", "--", "-.", ":", "none"]

# Okabe & Ito (2008) without its yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# More markers than colours: a name beyond the seventh repeats a colour but not its marker.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")

GREY = "#767676"  # the palest grey that still has a contrast of 4.5 on white (WCAG 2, AA)

PALE = "#dddddd"  # bands and boxes behind the data

# The sizes suit a page of 72 rem, on which a figure of 10 inches fills the width.
# The keys have a type with a name only in the newest matplotlib.
STYLE: dict[Any, object] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.titley": 1.0,  # the same place, without measuring all ticks for one that is in the way
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "svg.hashsalt": "hesstheory",  # without it the ids in an SVG differ from run to run
}


class Look(TypedDict, total=False):
    """How a line or a point is drawn: keywords of `Axes.plot`."""

    color: str
    marker: str
    markerfacecolor: str
    markeredgecolor: str
    markeredgewidth: float
    markersize: float
    linestyle: LineStyle
    linewidth: float
    zorder: float


class Palette(TypedDict):
    """Colours and markers by name: keywords of seaborn, which sizes its lines and points alike."""

    palette: dict[str, str]
    markers: dict[str, str]


STAR: Look = {
    "marker": "*",
    "markersize": 11,
    "markeredgecolor": "black",
    "markeredgewidth": 0.6,
    "linestyle": "none",
    "zorder": 5,  # above curves and points
}


def distinct(values: Iterable[Name]) -> list[Name]:
    """Each value once, in the order of the records."""
    return list(dict.fromkeys(values))


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A colour and a marker for each name.

    Both carry the name, so that neither colour vision nor a colour printer is needed.
    """
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }


def palette(chosen: Mapping[str, Look]) -> Palette:
    """The same looks as seaborn takes them."""
    return {
        "palette": {name: look["color"] for name, look in chosen.items()},
        "markers": {name: look["marker"] for name, look in chosen.items()},
    }


def face(stage: str, colour: str) -> str:
    """Untrained networks are hollow."""
    return "white" if stage == "untrained" else colour


def shortened(text: str, limit: int = 30) -> str:
    """A name as matplotlib must be given it.

    It is cut to fit; a dollar does not start a formula, a leading underscore does not hide a label.
    """
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


# --- panels and legend ----------------------------------------------------------------------------


def panels(canvas: Canvas, count: int, size: tuple[float, float], columns: int) -> list[Axes]:
    """A grid of `count` axes of the given size in inches, at most `columns` beside each other."""
    columns = 2 if count == 4 else min(count, columns)
    rows = math.ceil(count / columns)
    width, height = size
    canvas.set_size_inches(max(columns * width, 5.5), rows * height)  # 5.5: room for the legend
    axes: list[Axes] = canvas.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return axes[:count]


def is_leftmost(ax: Axes) -> bool:
    """Whether the axes stand in the first column, where the label of y is written."""
    place = ax.get_subplotspec()
    return place is not None and place.is_first_col()


def legend_below(canvas: Canvas, handles: Sequence[Artist]) -> None:
    """A legend below the axes, in rows of about equal length, for which the canvas grows."""
    width, height = canvas.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    # Inches at 8 points: 0.55 for the handle and the gap, 0.075 for a letter, 0.19 for a row.
    widest = max(1, min(len(handles), int(width / (0.55 + 0.075 * longest))))
    rows = math.ceil(len(handles) / widest)
    canvas.set_size_inches(width, height + 0.15 + 0.19 * rows)
    columns = math.ceil(len(handles) / rows)
    canvas.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def dot(label: str, **look: Unpack[Look]) -> Line2D:
    """An entry of the legend: a point."""
    pointed: Look = {"linestyle": "none", **look}
    return Line2D([], [], label=shortened(label), **pointed)


def line(label: str, **look: Unpack[Look]) -> Line2D:
    """An entry of the legend: a line."""
    return Line2D([], [], label=shortened(label), **look)


def stage_dots(stages: Iterable[str]) -> list[Line2D]:
    """Entries of the legend: hollow for untrained networks, filled for others."""
    return [
        dot(stage, marker="o", color=GREY, markerfacecolor=face(stage, GREY)) for stage in stages
    ]
