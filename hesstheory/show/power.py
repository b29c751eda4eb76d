"""How often a statistical check rejects, by the size of the true effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from hesstheory.show.axes import GREY, Look, distinct, dot, legend_below, line, looks
from hesstheory.show.figures import Plot
from hesstheory.show.points import whiskers
from hesstheory.show.rows import finite, parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


def draw_power(canvas: Canvas, frame: pd.DataFrame) -> None:
    """Measured rates with their intervals, and the theory as lines where there is one."""
    canvas.set_size_inches(6.2, 3.7)
    ax = canvas.subplots()
    chosen = looks(distinct(frame["draws"]))
    for name, part in parts(frame.sort_values("effect"), "draws"):
        _draw_curve(ax, part, chosen[name])
    ax.axvline(1, color=GREY, lw=0.9, ls="--")
    ax.set(
        xlabel="true effect (margins)",
        ylabel="share of runs rejected, 95% interval",
        ylim=(-0.03, 1.03),  # markers at 0 and 1 are not cut
    )
    handles = [dot(f"{name} draws", **look) for name, look in chosen.items()]
    if frame["theory"].notna().any():
        handles.append(line("theory", color=GREY))
    legend_below(canvas, [*handles, line("margin", color=GREY, linewidth=0.9, linestyle="--")])


def _draw_curve(ax: Axes, part: pd.DataFrame, look: Look) -> None:
    """Rates of one kind of draws; a dotted line joins them where no theory is known."""
    lengths = whiskers(part, "rejection_rate")
    ax.errorbar(
        part["effect"], part["rejection_rate"], yerr=lengths, capsize=2, linestyle="none", **look
    )
    if part["theory"].notna().any():
        ax.plot(part["effect"], part["theory"], color=look["color"])
    else:
        ax.plot(part["effect"], part["rejection_rate"], color=look["color"], ls=":", lw=0.9)


POWER = Plot(
    "power_curve",
    "power",
    "Power of the statistical checks",
    "How often a check rejects, by the size of the true effect in units of its margin, with 95%"
    " intervals.",
    ("draws",),
    ("effect", "rejection_rate", "low", "high", "theory"),
    finite("effect", "rejection_rate"),
    draw_power,
)
