"""The bias made by probing the instances of a tied tensor separately."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from hesstheory.show.axes import COLOURS, GREY, Look, dot, legend_below, shortened
from hesstheory.show.figures import Plot
from hesstheory.show.rows import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_ROUNDING = 1e-9  # relative to Σ tr U_rr: below it a bias is none

_BOUNDS = "#c4c4c4"

_UNBIASED: Look = {"color": COLOURS[6], "marker": "o", "markersize": 7}
_HIGH: Look = {"color": COLOURS[1], "marker": ">", "markersize": 7}
_LOW: Look = {"color": COLOURS[0], "marker": "<", "markersize": 7}


def draw_tied_bias(canvas: Canvas, frame: pd.DataFrame) -> None:
    """An arrow from zero to the bias of each tied tensor, over the bounds where there are any."""
    canvas.set_size_inches(7.2, 0.26 * len(frame) + 1.0)
    ax = canvas.subplots()
    places = np.arange(len(frame))
    lows = frame["relative_bound_low"]
    highs = frame["relative_bound_high"]
    ax.use_sticky_edges = False  # bars would otherwise end at the edge of the axes
    ax.barh(places, highs - lows, left=lows, height=0.36, color=_BOUNDS, zorder=1)
    for ends in (lows, highs):
        ax.vlines(ends, places - 0.3, places + 0.3, color=GREY, lw=1.1)
    for y, bias in zip(places, frame["relative_bias"], strict=True):
        _draw_arrow(ax, float(y), float(bias))
    ax.axvline(0, color="black", lw=0.9, zorder=2)
    ax.set_yticks(places, [shortened(label, 56) for label in _labels(frame)])
    ax.set(
        ylim=(len(frame) - 0.4, -0.6),
        xlabel=r"bias of separate probes ÷ $|\Sigma_r\,\mathrm{tr}\,U_{rr}|$",
    )
    ax.grid(axis="y", visible=False)
    signs = {"over-estimates": _HIGH, "unbiased": _UNBIASED, "under-estimates": _LOW}
    handles = [dot(label, **look) for label, look in signs.items()]
    bounds = Patch(color=_BOUNDS, label="bounds for positive semi-definite U")
    legend_below(canvas, [*handles, bounds])


def _draw_arrow(ax: Axes, y: float, bias: float) -> None:
    """An arrow from zero to the bias, and the number beside the axes."""
    look = _look(bias)
    ax.plot([0, bias], [y, y], color=look["color"], lw=2.4, zorder=3)
    ax.plot([bias], [y], **look, zorder=4)
    number = "0" if look is _UNBIASED else f"{bias:+.3g}".replace("-", "−")
    ax.annotate(number, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)


def _look(bias: float) -> Look:
    """Sign by colour and by the direction of the marker."""
    if abs(bias) < _ROUNDING:
        return _UNBIASED
    return _HIGH if bias > 0 else _LOW


def _labels(frame: pd.DataFrame) -> list[str]:
    """Example, tensor and instances; the stage where the net is trained or the rest is repeated."""
    columns = frame[["example", "tensor", "instances"]].itertuples(index=False)
    labels = pd.Series([f"{example}, {tensor} × {count:g}" for example, tensor, count in columns])
    stages = frame["stage"].reset_index(drop=True)
    needed = stages.str.contains("trained") | labels.duplicated(keep=False)
    return (labels + (", " + stages).where(needed, "")).tolist()


def _relative(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds bias and bounds over |Σ tr U_rr|."""
    scale = frame["separate_trace"].abs()
    scale = scale.where(scale > 0)
    names = ("bias", "bound_low", "bound_high")
    return finite("relative_bias")(
        frame.assign(**{f"relative_{name}": frame[name] / scale for name in names})
    )


TIED_BIAS = Plot(
    "tied_weight_bias",
    "tied_bias",
    "Bias when tied weights are probed separately",
    "Error made by giving each instance of a tied tensor its own probe, relative to |Σ tr U_rr|."
    " Grey bars are the bounds [−(T−1), 1] that hold for a positive semi-definite unrolled"
    " Hessian. One shared probe has no such bias.",
    ("example", "tensor", "stage"),
    ("instances", "exact_trace", "separate_trace", "bias", "bound_low", "bound_high"),
    _relative,
    draw_tied_bias,
)
