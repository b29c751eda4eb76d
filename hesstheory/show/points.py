"""Points in a plane: hue and marker by name, hollow where the network is untrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn

from hesstheory.show.axes import Look, palette
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
    for stage, part in parts(frame, "stage"):
        seaborn.scatterplot(
            part,
            x=x,
            y=y,
            hue=hue,
            style=hue,
            **palette(looks),
            s=size,
            linewidth=1.1,
            zorder=2,  # above the line of agreement
            legend=False,
            ax=ax,
        )
        points = ax.collections[-1]
        # seaborn draws white rims; here the rim has the colour, so that a hollow point shows it
        points.set_edgecolor(points.get_facecolor())
        if stage == "untrained":
            points.set_facecolor("white")
    ax.set(xlabel="", ylabel="")


def whiskers(part: pd.DataFrame, centre: str) -> np.ndarray:
    """Lengths from the centre of an interval down to `low` and up to `high`, as errorbar takes."""
    below = (part[centre] - part["low"]).clip(lower=0)
    above = (part["high"] - part[centre]).clip(lower=0)
    return np.array([below, above])
