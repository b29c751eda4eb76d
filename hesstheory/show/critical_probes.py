"""Map of K*, the number of probes at which probe noise equals batch noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch, Rectangle

from hesstheory.show.axes import distinct, shortened
from hesstheory.show.figures import Plot
from hesstheory.show.rows import parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

CLAIMED_RANGE = (5.0, 10.0)  # the rule of thumb that the map is drawn to judge

_CENTRE = math.sqrt(CLAIMED_RANGE[0] * CLAIMED_RANGE[1])  # of the range, on a logarithmic scale

_COLOURS = "PuOr"  # diverging and safe for colour-blind readers: orange low, purple high


def draw_critical_probes(canvas: Canvas, frame: pd.DataFrame) -> None:
    """A row of maps for each network, a map for each training step: blocks by batch sizes."""
    steps = distinct(frame["step"])
    sizes = sorted(distinct(frame["batch_size"]))
    networks = list(parts(frame, "network"))
    # Inches: 0.27 a block and 0.8 for title and ticks; 0.5 a batch size, 2.4 for names and bar.
    heights = [0.27 * part["block"].nunique() + 0.8 for _, part in networks]
    width = max(6.0, len(steps) * (0.5 * len(sizes) + 0.3) + 2.4)
    canvas.set_size_inches(width, max(3.0, sum(heights) + 0.5))
    axes = canvas.subplots(len(networks), len(steps), squeeze=False, height_ratios=heights)
    norm = _norm(_counts(frame))
    for row, (network, part) in zip(axes, networks, strict=True):
        blocks = distinct(part["block"])
        for ax, step in zip(row, steps, strict=True):
            cells = part[part["step"] == step].pivot(
                index="block", columns="batch_size", values="k_star"
            )
            _draw_map(ax, cells.reindex(index=blocks, columns=sizes), norm, ax is row[0])
            title = shortened(network) if ax is row[0] else ""
            ax.set_title(f"{title}\nstep {shortened(step, 12)}", loc="left")
    for ax in axes[-1]:
        ax.set_xlabel("batch size")
    _draw_bar(canvas, axes, norm, _counts(frame))
    box = Patch(facecolor="white", edgecolor="black", lw=1.8, label="inside the claimed range 5–10")
    canvas.legend(handles=[box], loc="outside lower center")


def _counts(frame: pd.DataFrame) -> pd.Series:
    """The counts that a logarithmic colour can show."""
    counts = frame["k_star"]
    return counts[counts.between(0, math.inf, inclusive="neither")]


def _norm(counts: pd.Series) -> LogNorm:
    """Colours centred at the claimed range, which is therefore palest, and wide enough for all."""
    decades = max([1.0, *np.abs(np.log10(counts / _CENTRE))])
    return LogNorm(_CENTRE / 10**decades, _CENTRE * 10**decades)


def _draw_map(ax: Axes, cells: pd.DataFrame, norm: LogNorm, is_first: bool) -> None:
    """One map, every cell with its count; a count inside the claimed range is framed."""
    painted = cells.clip(float(norm.vmin or 0.0), float(norm.vmax or 1.0))
    seaborn.heatmap(
        painted,  # zero and infinity have the last colours
        norm=norm,
        cmap=_COLOURS,
        cbar=False,
        xticklabels=False,  # seaborn would measure every label for overlap
        yticklabels=False,
        ax=ax,
    )
    rows, columns = cells.shape
    names = [shortened(block, 24) for block in cells.index]
    ax.set_xticks(np.arange(columns) + 0.5, [f"{size:g}" for size in cells.columns])
    ax.set_yticks(np.arange(rows) + 0.5 if is_first else [], names if is_first else [])
    ax.set(xlabel="", ylabel="", facecolor="#eeeeee")  # the colour of a cell without a count
    ax.tick_params(length=0)
    inks = _inks(painted.to_numpy(), norm)
    for (y, x), value in np.ndenumerate(cells.to_numpy()):
        _write(ax, (x, y), value, str(inks[y, x]))


def _write(ax: Axes, place: tuple[int, int], value: float, ink: str) -> None:
    """The count of one cell, in a frame where it lies inside the claimed range."""
    x, y = place
    is_inside = CLAIMED_RANGE[0] <= value <= CLAIMED_RANGE[1]
    text = ax.text(x + 0.5, y + 0.5, _written(value), ha="center", va="center", fontsize=7.5)
    text.set(color=ink, fontweight="bold" if is_inside else "normal")
    text.set_in_layout(False)  # it lies inside the axes; measuring 560 texts takes a second
    if is_inside:
        box = Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, fill=False, lw=1.8, ec="black")
        ax.add_patch(box)


def _inks(painted: np.ndarray, norm: LogNorm) -> np.ndarray:
    """White or black for each cell, whichever contrasts more with its colour."""
    colours = colormaps[_COLOURS](norm(np.nan_to_num(painted, nan=_CENTRE)))
    luminance = seaborn.utils.relative_luminance(colours.reshape(-1, 4))
    # The contrast ratios of WCAG 2 are equal where 1.05 / (L + 0.05) = (L + 0.05) / 0.05.
    return np.where(np.reshape(luminance, painted.shape) < 0.179, "white", "black")


def _draw_bar(canvas: Canvas, axes: np.ndarray, norm: LogNorm, counts: pd.Series) -> None:
    """The colour bar, no longer than the counts that are shown and the claimed range reach."""
    colours = ScalarMappable(norm=norm, cmap=_COLOURS)
    bar = canvas.colorbar(colours, ax=axes.ravel().tolist(), aspect=30, fraction=0.05, pad=0.02)
    bar.set_label("critical probe count K*")
    low, high = CLAIMED_RANGE
    for end in CLAIMED_RANGE:
        bar.ax.axhline(end, color="black", lw=1.4)
    bar.ax.set_ylim(min([low, *counts]), max([high, *counts]))
    bar.ax.minorticks_off()


def _written(value: float) -> str:
    """A count in at most four characters or so."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if value >= 1e6:
        return f"{value:.0e}".replace("e+0", "e")
    if value >= 9950:  # would be written 10.0k or longer with its last digits
        return f"{value / 1000:.0f}k"
    if value >= 20:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _first_of_cell(frame: pd.DataFrame) -> pd.DataFrame:
    """A cell shows one count: of repeated rows the first."""
    repeated = frame.duplicated(["network", "block", "step", "batch_size"])
    return frame.assign(drawn=(frame["k_star"] >= 0) & frame["batch_size"].notna() & ~repeated)


CRITICAL_PROBES = Plot(
    "critical_probes_map",
    "critical_probes",
    "Critical probe count by layer, training step and batch size",
    "K*, the number of probes at which probe noise equals batch noise. Paler cells are nearer to"
    " 5–10; cells inside that range are framed. Orange needs fewer probes, purple more.",
    ("network", "block", "step"),
    ("batch_size", "k_star"),
    _first_of_cell,
    draw_critical_probes,
)
