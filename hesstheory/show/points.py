"""Points in a plane: hue and marker by name, hollow where the network is untrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn

from hesstheory.show.axes import Look, face
from hesstheory.show.rows import parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 20.0  # square points: the area of a marker of 4.5 points, as lines have it


def scatter(
    ax: Axes,
    frame: pd.DataFrame,
    place: tuple[str, str],
    hue: str,
    looks: Mapping[str, Look],
    size: float = _SIZE,
) -> None:
    """Draws the rows at the columns `place` = (x, y), each in the look of its column `hue`."""
    x, y = place
    for stage, rows in parts(frame, "stage"):
        for name, part in parts(rows, hue):
            look = looks[name]
            # One call for each look: a call with a column of looks writes every marker out in full,
            # and the SVG is two to three times as long.
            seaborn.scatterplot(
                part,
                x=x,
                y=y,
                color=face(stage, look["color"]),
                edgecolor=look["color"],
                marker=look["marker"],
                s=size,
                linewidth=1.1,
                zorder=2,  # above the line of agreement
                ax=ax,
            )
    ax.set(xlabel="", ylabel="")


def whiskers(part: pd.DataFrame, centre: str) -> np.ndarray:
    """Lengths from the centre of an interval down to `low` and up to `high`, as errorbar takes."""
    below = (part[centre] - part["low"]).clip(lower=0)
    above = (part["high"] - part[centre]).clip(lower=0)
    return np.array([below, above])
