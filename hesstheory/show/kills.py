"""The kill matrix: which check notices which wrong estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn
from matplotlib.colors import ListedColormap

from hesstheory.show.axes import COLOURS, distinct, dot, legend_below, shortened
from hesstheory.show.figures import Plot
from hesstheory.show.rows import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MOST_ROWS = 40  # more mutants than this stand in two columns, so that the figure fits a page


def draw_kills(canvas: Canvas, frame: pd.DataFrame) -> None:
    """A row for each mutant, a column for each check."""
    table = frame.pivot(index="mutant", columns="noticed_by", values="killed")
    table = table.loc[distinct(frame["mutant"]), distinct(frame["noticed_by"])]
    half = -(-len(table) // 2) if len(table) > _MOST_ROWS else len(table)
    parts = [table.iloc[start : start + half] for start in range(0, len(table), half)]
    # Inches: 0.19 a check and 2.7 for the names of mutants, 0.155 a mutant and 2.4 for the checks.
    canvas.set_size_inches(len(parts) * (0.19 * table.shape[1] + 2.7), 0.155 * half + 2.4)
    axes = canvas.subplots(1, len(parts), squeeze=False)[0]
    for ax, part in zip(axes, parts, strict=True):
        _draw_part(ax, part)
    handles = [dot("noticed", marker="s", color=COLOURS[0])]
    if (table.sum(axis=1) == 0).any():
        handles.append(dot("noticed by no check", marker="x", color=COLOURS[1]))
    legend_below(canvas, handles)


def _draw_part(ax: Axes, table: pd.DataFrame) -> None:
    """Some rows of the matrix; a cross beside a mutant that no check notices."""
    seaborn.heatmap(
        (table > 0).astype(float),
        vmin=0,
        vmax=1,
        cmap=ListedColormap(["#f1f1f1", COLOURS[0]]),
        cbar=False,
        linewidths=0.8,
        linecolor="white",
        rasterized=True,  # else the SVG writes every cell out, a megabyte for 140 mutants
        xticklabels=False,  # seaborn would measure every label for overlap, a third of the time
        yticklabels=False,
        ax=ax,
    )
    rows, columns = table.shape
    ax.set_xticks(np.arange(columns) + 0.5, [_words(name) for name in table.columns])
    ax.set_yticks(np.arange(rows) + 0.5, [_words(name) for name in table.index])
    alive = np.flatnonzero(table.sum(axis=1).to_numpy() == 0)
    crosses = np.full(len(alive), -0.5)
    ax.scatter(crosses, alive + 0.5, marker="x", color=COLOURS[1], s=24, clip_on=False)
    ax.set(xlabel="", ylabel="", xlim=(-1 if alive.size else 0, columns))
    ax.xaxis.tick_top()
    ax.tick_params("x", rotation=90, labelsize=7, length=0)
    ax.tick_params("y", rotation=0, labelsize=6.5, length=0)


def _words(name: str) -> str:
    """The name of a mutant or of a check in words."""
    return shortened(name.removeprefix("check_"), 44).replace("_", " ")


KILL_MATRIX = Plot(
    "kill_matrix",
    "kills",
    "Which check notices which wrong estimator",
    "Every row is an estimator that is wrong on purpose, every column a check of the conformance"
    " suite.",
    ("mutant", "noticed_by"),
    ("killed",),
    finite("killed"),
    draw_kills,
)
