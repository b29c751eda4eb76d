"""Records → axes: every table that the checks left in the ledger becomes one figure, with its data beside it.

Nothing is estimated, fitted or tested here. The columns that a figure adds to its table are changes of unit (a ratio to
the floor, a bias relative to Σ tr U_rr); they stand in its CSV, so the file holds exactly what the axes show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

Record = Mapping[str, Any]

# Okabe & Ito (2008) without its yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")

GREY = "#767676"

CLAIMED_RANGE = (5.0, 10.0)

ROUNDING = 1e-9  # relative: below it two numbers are one

PNG_DPI = 170

STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
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
    "svg.hashsalt": "hesstheory",
}


@dataclass(frozen=True)
class Figure:
    """One drawn figure: its files, what it shows, and the claims whose checks supplied the rows."""

    name: str
    title: str
    caption: str
    svg: Path
    png: Path
    csv: Path
    claims: tuple[str, ...]


@dataclass(frozen=True)
class _Plot:
    name: str
    table: str
    title: str
    caption: str
    keys: tuple[str, ...]
    numbers: tuple[str, ...]
    drawable: Callable[[pd.DataFrame], pd.DataFrame]
    draw: Callable[[Canvas, pd.DataFrame], None]


def draw_all(records: Iterable[Record], directory: str | Path) -> list[Figure]:
    """Draw every figure whose table occurs in `records`; an older figure without a table there is deleted.

    Only files named after a figure of this module are ever deleted, so a directory never mixes two runs.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    records = list(records)
    figures = []
    for plot in PLOTS:
        frame = _frame(records, plot.table)
        if frame.empty:
            for path in _paths(plot, directory):
                path.unlink(missing_ok=True)
        else:
            figures.append(_draw(plot, frame, directory))
    return figures


def draw_kill_matrix(rows: Iterable[Mapping[str, Any]], directory: str | Path) -> Figure:
    """Draw which check notices which wrong estimator, from rows of mutant, check and killed (0 or 1)."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    frame = (
        pd.DataFrame(list(rows)).rename(columns={"check": "noticed_by"}).assign(claim="", check="")
    )
    return _draw(_KILL_MATRIX, frame, Path(directory))


def _draw(plot: _Plot, frame: pd.DataFrame, directory: Path) -> Figure:
    frame = plot.drawable(_typed(frame, plot))
    svg, png, csv = _paths(plot, directory)
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(layout="constrained")
        shown = frame[frame["drawn"]]
        if shown.empty:
            _say_empty(canvas, len(frame))
        else:
            plot.draw(canvas, shown)
            _lay_out(canvas)
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        canvas.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
    frame.to_csv(csv, index=False, lineterminator="\n")
    claims = tuple(dict.fromkeys(frame["claim"]))
    return Figure(plot.name, plot.title, plot.caption + _rows_note(frame), svg, png, csv, claims)


def _lay_out(canvas: Canvas) -> None:
    """Places everything, once for both files: left to itself matplotlib does it again, and draws twice, for each."""
    engine = canvas.get_layout_engine()
    assert engine is not None
    engine.execute(canvas)
    canvas.set_layout_engine(None)


def _paths(plot: _Plot, directory: Path) -> tuple[Path, Path, Path]:
    svg, png, csv = (directory / f"{plot.name}.{suffix}" for suffix in ("svg", "png", "csv"))
    return svg, png, csv


def _frame(records: Sequence[Record], table: str) -> pd.DataFrame:
    rows = [
        {"claim": str(record.get("id", "")), "check": str(check.get("name", "")), **row}
        for record in records
        if record.get("record") == "claim"
        for check in record.get("checks") or ()
        if check.get("table") == table
        for row in check.get("rows") or ()
    ]
    return pd.DataFrame(rows)


def _typed(frame: pd.DataFrame, plot: _Plot) -> pd.DataFrame:
    columns = ("claim", "check", *plot.keys, *plot.numbers)
    frame = frame.reindex(columns=[*columns, *(c for c in frame.columns if c not in columns)])
    for key in plot.keys:
        frame[key] = [str(value) if pd.notna(value) else "–" for value in frame[key]]
    for number in plot.numbers:
        frame[number] = pd.to_numeric(frame[number], errors="coerce").astype(float)
    return frame


def _rows_note(frame: pd.DataFrame) -> str:
    hidden = int((~frame["drawn"]).sum())
    note = f" {len(frame)} rows."
    if hidden:
        note += f" {hidden} of them cannot stand on these axes (missing, zero, infinite or repeated); they are in the data."
    return note


def _say_empty(canvas: Canvas, rows: int) -> None:
    canvas.set_size_inches(6.0, 1.2)
    canvas.text(
        0.5,
        0.5,
        f"none of the {rows} rows can be drawn; see the data file",
        ha="center",
        va="center",
        color=GREY,
    )


# --- which rows can stand on the axes -------------------------------------------------------------------------------
def _finite(*columns: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(
        drawn=np.isfinite(frame[list(columns)].to_numpy()).all(axis=1)
    )


def _positive(*columns: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def drawable(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[list(columns)].to_numpy()
        return frame.assign(drawn=(np.isfinite(values) & (values > 0)).all(axis=1))

    return drawable


def _with_ratio(name: str, over: str, under: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def drawable(frame: pd.DataFrame) -> pd.DataFrame:
        frame = _positive(over, under)(frame)
        return frame.assign(**{name: (frame[over] / frame[under]).where(frame["drawn"])})

    return drawable


def _relative_bias(frame: pd.DataFrame) -> pd.DataFrame:
    scale = frame["separate_trace"].abs()
    scale = scale.where(scale > 0)
    relative = {
        f"relative_{name}": frame[name] / scale for name in ("bias", "bound_low", "bound_high")
    }
    return _finite("relative_bias")(frame.assign(**relative))


def _over_floor(frame: pd.DataFrame) -> pd.DataFrame:
    floor = frame["floor"].where(frame["floor"] > 0)
    frame = frame.assign(
        predicted_over_floor=frame["predicted"] / floor,
        measured_over_floor=frame["measured"] / floor,
    )
    return _positive("num_probes", "predicted_over_floor")(frame)


def _first_of_cell(frame: pd.DataFrame) -> pd.DataFrame:
    repeated = frame.duplicated(["network", "block", "step", "batch_size"])
    return frame.assign(drawn=(frame["k_star"] >= 0) & frame["batch_size"].notna() & ~repeated)


# --- shared furniture -----------------------------------------------------------------------------------------------
def _names(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _parts(frame: pd.DataFrame, key: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The rows of each value of `key`, in the order of the records."""
    yield from frame.groupby(key, sort=False)


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker both carry the name, so that neither colour vision nor a colour printer is needed."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }


def _grid(canvas: Canvas, count: int, width: float, height: float, columns: int) -> list[Axes]:
    columns = 2 if count == 4 else min(count, columns)
    rows = math.ceil(count / columns)
    canvas.set_size_inches(max(columns * width, 5.5), rows * height)
    axes = canvas.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return list(axes[:count])


def _leftmost(ax: Axes) -> bool:
    place = ax.get_subplotspec()
    return place is not None and place.is_first_col()


def _legend(canvas: Canvas, handles: Sequence[Any]) -> None:
    """A legend below the axes, for which the canvas grows."""
    width, height = canvas.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(width / (0.55 + 0.075 * longest))))
    canvas.set_size_inches(width, height + 0.15 + 0.19 * math.ceil(len(handles) / columns))
    canvas.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def _dot(label: str, **look: Any) -> Line2D:
    return Line2D([], [], label=_short(label), **{"linestyle": "none", **look})


def _line(label: str, **look: Any) -> Line2D:
    return Line2D([], [], label=_short(label), **look)


def _short(text: str, limit: int = 30) -> str:
    """A name as matplotlib must be given it: cut to fit, no dollar read as mathematics, no leading underscore."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def _face(stage: str, colour: str) -> str:
    return "white" if stage == "untrained" else colour


def _log(ax: Axes, x: bool = True, y: bool = True) -> None:
    """Logarithmic axes with few labels: 1-2-5 as plain numbers over two decades, whole decades beyond."""
    for wanted, axis, name in ((x, ax.xaxis, "x"), (y, ax.yaxis, "y")):
        if not wanted:
            continue
        ax.set(**{f"{name}scale": "log"})
        low, high = ax.get_xlim() if name == "x" else ax.get_ylim()
        if high / low < 1.01:  # one value: matplotlib would leave no room around it
            low, high = low / 2, high * 2
            ax.set(**{f"{name}lim": (low, high)})
        narrow = high / low < 100
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0)) if narrow else LogLocator(numticks=6)
        )
        if narrow:
            axis.set_major_formatter(FuncFormatter(_plain_number))
        axis.set_minor_locator(NullLocator())


def _plain_number(value: float, _: Any = None) -> str:
    if 1e-4 <= value < 1e5:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    return rf"${value / 10**exponent:.0f}\cdot 10^{{{exponent}}}$"


def _padded_log(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = max((high / low) ** 0.05, 1.15)
    return low / pad, high * pad


def _power_of_ten(value: float, _: Any = None) -> str:
    if value == 0:
        return "0"
    exponent = round(math.log10(abs(value)))
    return rf"${'-' if value < 0 else ''}10^{{{exponent}}}$"


def _decades(low: int, high: int, most: int) -> list[int]:
    step = max(1, math.ceil((high - low + 1) / most))
    return list(range(high, low - 1, -step))[::-1]


def _signed_scale(ax: Axes, values: np.ndarray) -> None:
    """The same scale on both axes: linear over a decade or so, else symmetric-logarithmic (traces may be negative)."""
    sizes = np.abs(values[values != 0])
    low, high = float(values.min()), float(values.max())
    if sizes.size == 0 or sizes.max() / sizes.min() < 30:
        pad = 0.08 * (high - low) or 1.0
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        ax.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
        return
    top = math.ceil(math.log10(sizes.max()))
    bottom = max(math.floor(math.log10(sizes.min())), top - 6)
    negative = -(10.0**top) if low < 0 else 0.0
    positive = 10.0**top if high > 0 else 0.0
    exponents = _decades(bottom + 1, top, most=2 if negative and positive else 4)
    ticks = [
        sign * 10.0**e
        for sign in (-1, 1)
        for e in exponents
        if negative <= sign * 10.0**e <= positive
    ]
    for axis, name in ((ax.xaxis, "x"), (ax.yaxis, "y")):
        set_scale = ax.set_xscale if name == "x" else ax.set_yscale
        set_scale("symlog", linthresh=10.0**bottom, linscale=0.6)
        axis.set_major_locator(FixedLocator(sorted([0.0, *ticks])))
        axis.set_major_formatter(FuncFormatter(_power_of_ten))
        axis.set_minor_locator(NullLocator())
    ax.set(xlim=(1.3 * negative, 1.3 * positive), ylim=(1.3 * negative, 1.3 * positive))


# --- exact against estimated ----------------------------------------------------------------------------------------
def _draw_estimates(canvas: Canvas, frame: pd.DataFrame) -> None:
    networks = _names(frame["network"])
    columns = min(len(networks), 4)
    rows = math.ceil(len(networks) / columns)
    canvas.set_size_inches(max(2.7 * columns, 5.5), 3.7 * rows)
    axes = canvas.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    looks = _looks(_names(frame["probe"]))
    for i in range(rows * columns):
        upper, lower = (
            axes[2 * (i // columns), i % columns],
            axes[2 * (i // columns) + 1, i % columns],
        )
        if i >= len(networks):
            upper.remove()
            lower.remove()
            continue
        _estimates_panel(upper, lower, frame[frame["network"] == networks[i]], looks)
        upper.set_title(_short(networks[i]))
        if i % columns == 0:
            upper.set_ylabel(r"estimated $\mathrm{tr}\,H_{ll}$" + "\n(loss / weight²)")
            lower.set_ylabel("error ÷ half\n95% interval")
        if i + columns >= len(networks):
            lower.set_xlabel(r"exact $\mathrm{tr}\,H_{ll}$ (loss / weight²)")
    stages = _names(frame["stage"])
    handles: list[Any] = [_dot(f"{name} probes", **look) for name, look in looks.items()]
    handles += [
        _dot(stage, marker="o", color=GREY, markerfacecolor=_face(stage, GREY)) for stage in stages
    ]
    handles += [
        _line("exact = estimated", color=GREY, lw=0.9),
        Patch(color="#dddddd", label="95% interval covers"),
    ]
    _legend(canvas, handles)


def _estimates_panel(
    upper: Axes, lower: Axes, frame: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]]
) -> None:
    lower.sharex(upper)
    reach = frame[["exact", "estimate", "low", "high"]].to_numpy()
    _signed_scale(upper, reach[np.isfinite(reach)])
    upper.plot(upper.get_xlim(), upper.get_xlim(), color=GREY, lw=0.9, zorder=1)
    lower.axhspan(-1, 1, color="#dddddd", lw=0)
    error = frame["estimate"] - frame["exact"]
    half = np.where(error < 0, frame["high"] - frame["estimate"], frame["estimate"] - frame["low"])
    frame = frame.assign(
        misfit=np.divide(error, half, out=np.full(len(frame), np.nan), where=half > 0)
    )
    for (probe, stage), part in _parts(frame, ["probe", "stage"]):
        look = {
            **looks[probe],
            "markerfacecolor": _face(stage, looks[probe]["color"]),
            "linestyle": "none",
        }
        whiskers = [
            (part["estimate"] - part["low"]).clip(lower=0),
            (part["high"] - part["estimate"]).clip(lower=0),
        ]
        upper.errorbar(
            part["exact"], part["estimate"], yerr=whiskers, elinewidth=0.9, capsize=2, **look
        )
        lower.plot(part["exact"], part["misfit"], **{**look, "markersize": 3.5})
    worst = np.nanmax([1.5, *frame["misfit"].abs()])
    lower.set_ylim(-1.2 * worst, 1.2 * worst)
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    upper.tick_params(labelbottom=False)


# --- variances ------------------------------------------------------------------------------------------------------
def _draw_variance(
    canvas: Canvas, frame: pd.DataFrame, quantity: str = "variance", unit: str = "(loss / weight²)²"
) -> None:
    canvas.set_size_inches(6.2, 5.2)
    upper, lower = canvas.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    looks = _looks(_names(frame["probe"]))
    for (probe, stage), part in _parts(frame, ["probe", "stage"]):
        look = {
            **looks[probe],
            "markerfacecolor": _face(stage, looks[probe]["color"]),
            "linestyle": "none",
        }
        upper.plot(part["predicted"], part["measured"], **look)
        lower.plot(part["predicted"], part["measured_over_predicted"], **look)
    limits = _padded_log(frame[["predicted", "measured"]].to_numpy())
    upper.plot(limits, limits, color=GREY, lw=0.9, zorder=1)
    lower.axhline(1, color=GREY, lw=0.9, zorder=1)
    upper.set(xlim=limits, ylim=limits)
    _log(upper)
    upper.set_ylabel(f"measured {quantity}\n{unit}")
    lower.set(xlabel=f"predicted {quantity} {unit}", ylabel="measured ÷\npredicted")
    away = float((frame["measured_over_predicted"] - 1).abs().max())
    if (
        away < ROUNDING
    ):  # a ratio of 1.0000000000000002 has no tick label: count units in the last place
        for line in lower.lines:
            line.set_ydata((np.asarray(line.get_ydata(), dtype=float) - 1) / np.finfo(float).eps)
        lower.set_ylabel("(measured ÷\npredicted − 1)\n÷ 2.2·10⁻¹⁶")
        lower.relim()
        lower.autoscale_view(scalex=False)
    else:
        lower.set_ylim(max(0.0, 1 - 1.25 * max(0.02, away)), 1 + 1.25 * max(0.02, away))
    handles: list[Any] = [_dot(f"{name} probes", **look) for name, look in looks.items()]
    handles += [
        _dot(s, marker="o", color=GREY, markerfacecolor=_face(s, GREY))
        for s in _names(frame["stage"])
    ]
    _legend(canvas, [*handles, _line("measured = predicted", color=GREY, lw=0.9)])


def _draw_crossover(canvas: Canvas, frame: pd.DataFrame) -> None:
    networks = _names(frame["network"])
    canvas.set_size_inches(9.6, max(4.0, 0.34 * len(networks) + 1.1))
    left, right = canvas.subplots(1, 2, width_ratios=[1, 1])
    wins = frame["full_vector_wins"].str.lower().isin(("true", "1", "1.0"))
    sides = (
        (True, COLOURS[0], "o", "full-vector probe wins"),
        (False, COLOURS[1], "^", "separated probes win"),
    )
    place = frame["network"].map({name: i for i, name in enumerate(networks)})
    order = frame.groupby("network", sort=False).cumcount()
    crowd = frame.groupby("network", sort=False)["network"].transform("size")
    place = place + 0.6 * ((order + 0.5) / crowd - 0.5)
    for win, colour, marker, _ in sides:
        for stage, part in _parts(frame[wins == win], "stage"):
            look = {
                "color": colour,
                "marker": marker,
                "markerfacecolor": _face(stage, colour),
                "linestyle": "none",
            }
            left.plot(part["separated_variance"], part["full_variance"], **look)
            right.plot(part["full_over_separated"], place[part.index], **look)
    limits = _padded_log(frame[["separated_variance", "full_variance"]].to_numpy())
    left.plot(limits, limits, color=GREY, lw=0.9, zorder=1)
    left.set(xlim=limits, ylim=limits, xlabel="variance, separated probes (loss / weight²)²")
    left.set_ylabel("variance, one full-vector probe (loss / weight²)²")
    _log(left)
    right.axvline(1, color=GREY, lw=0.9, zorder=1)
    right.set(xlim=_padded_log(np.append(frame["full_over_separated"].to_numpy(), 1.0)))
    right.set(xlabel="full-vector variance ÷ separated variance", ylim=(len(networks) - 0.4, -0.6))
    right.set_yticks(range(len(networks)), [_short(name) for name in networks])
    right.hlines(np.arange(len(networks) - 1) + 0.5, *right.get_xlim(), color="#e4e4e4", lw=0.6)
    right.grid(axis="y", visible=False)
    _log(right, y=False)
    handles = [_dot(label, color=colour, marker=marker) for _, colour, marker, label in sides]
    handles += [
        _dot(s, marker="o", color=GREY, markerfacecolor=_face(s, GREY))
        for s in _names(frame["stage"])
    ]
    _legend(canvas, [*handles, _line("equal variance", color=GREY, lw=0.9)])


# --- tied weights ---------------------------------------------------------------------------------------------------
def _draw_tied_bias(canvas: Canvas, frame: pd.DataFrame) -> None:
    canvas.set_size_inches(7.2, 0.26 * len(frame) + 1.0)
    ax = canvas.subplots()
    places = np.arange(len(frame))
    for y, row in zip(places, frame.to_dict("records"), strict=True):
        low, high, bias = (
            row["relative_bound_low"],
            row["relative_bound_high"],
            row["relative_bias"],
        )
        ax.plot([low, high], [y, y], color="#c4c4c4", lw=7, solid_capstyle="butt", zorder=1)
        ax.plot(
            [low, low, np.nan, high, high],
            [y - 0.3, y + 0.3, np.nan, y - 0.3, y + 0.3],
            color=GREY,
            lw=1.1,
        )
        marker, colour = _sign_look(bias)
        ax.plot([0, bias], [y, y], color=colour, lw=2.4, zorder=3)
        ax.plot([bias], [y], color=colour, marker=marker, markersize=7, zorder=4)
        number = f"{bias:+.3g}".replace("-", "−") if marker != "o" else "0"
        ax.annotate(number, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    ax.axvline(0, color="black", lw=0.9, zorder=2)
    labels = [
        _short(f"{e}, {w} × {t:g}" + (f", {s}" if "trained" in s else ""), 56)
        for e, w, t, s in frame[["example", "tensor", "instances", "stage"]].itertuples(index=False)
    ]
    ax.set_yticks(places, labels)
    ax.set(
        ylim=(len(frame) - 0.4, -0.6),
        xlabel=r"bias of separate probes ÷ $|\Sigma_r\,\mathrm{tr}\,U_{rr}|$",
    )
    ax.grid(axis="y", visible=False)
    signs = ((1.0, "over-estimates"), (0.0, "unbiased"), (-1.0, "under-estimates"))
    handles: list[Any] = [
        _dot(label, marker=_sign_look(s)[0], color=_sign_look(s)[1], ms=7) for s, label in signs
    ]
    _legend(canvas, [*handles, Patch(color="#c4c4c4", label="bounds for positive semi-definite U")])


def _sign_look(bias: float) -> tuple[str, str]:
    if abs(bias) < ROUNDING:  # of Σ tr U_rr
        return "o", COLOURS[6]
    return (">", COLOURS[1]) if bias > 0 else ("<", COLOURS[0])


# --- how many probes ------------------------------------------------------------------------------------------------
def _draw_tradeoff(canvas: Canvas, frame: pd.DataFrame) -> None:
    panels = _names(zip(frame["network"], frame["batch_size"], strict=True))
    looks = _looks(_names(frame["block"]))
    axes = _grid(canvas, len(panels), 2.9, 2.7, columns=3)
    for ax, (network, batch_size) in zip(axes, panels, strict=True):
        part = frame[(frame["network"] == network) & (frame["batch_size"] == batch_size)]
        for block, curve in _parts(part.sort_values("num_probes"), "block"):
            _tradeoff_curve(ax, curve, looks[block])
        ax.axhline(1, color="black", lw=1.1)
        ax.axhline(2, color=GREY, lw=0.9, ls=":")
        ax.set(title=f"{_short(network)}\nbatch size {batch_size:g}", xlabel="probes K")
        ax.set_ylabel("total variance ÷ floor" if _leftmost(ax) else "")
        _log(ax)
    handles = [_dot(name, **look) for name, look in looks.items()]
    handles += [_line("predicted", color=GREY), _dot("measured", color=GREY, marker="o")]
    handles.append(
        _dot(
            "K* (twice the floor)", marker="*", color=GREY, ms=11, markeredgecolor="black", mew=0.6
        )
    )
    _legend(canvas, [*handles, _line("floor: batch noise alone", color="black", lw=1.1)])


def _tradeoff_curve(ax: Axes, curve: pd.DataFrame, look: Mapping[str, Any]) -> None:
    ax.plot(curve["num_probes"], curve["predicted_over_floor"], color=look["color"])
    measured = curve[curve["measured_over_floor"] > 0]
    ax.plot(measured["num_probes"], measured["measured_over_floor"], linestyle="none", **look)
    k_star = curve["k_star"].iloc[0]
    if np.isfinite(k_star) and k_star > 0:
        ax.plot(
            [k_star],
            [2],
            marker="*",
            ms=11,
            color=look["color"],
            markeredgecolor="black",
            mew=0.6,
            zorder=5,
        )


def _draw_budget(canvas: Canvas, frame: pd.DataFrame) -> None:
    panels = _names(zip(frame["network"], frame["overhead_ratio"], strict=True))
    looks = _looks(_names(frame["block"]))
    axes = _grid(canvas, len(panels), 2.9, 2.7, columns=3)
    for ax, (network, ratio) in zip(axes, panels, strict=True):
        same = frame["overhead_ratio"].eq(ratio) | (
            frame["overhead_ratio"].isna() & math.isnan(ratio)
        )
        part = frame[(frame["network"] == network) & same]
        for block, curve in _parts(part.sort_values("num_probes"), "block"):
            _budget_curve(ax, curve, looks[block])
        ax.set_title(_short(network) + ("" if math.isnan(ratio) else f"\n$c_0/c_1$ = {ratio:g}"))
        ax.set_xlabel("probes per mini-batch K")
        ax.set_ylabel("variance at the fixed budget\n(loss / weight²)²" if _leftmost(ax) else "")
        _log(ax)
    handles = [_line(name, **look) for name, look in looks.items()]
    star = _dot(
        "predicted optimum", marker="*", color=GREY, ms=11, markeredgecolor="black", mew=0.6
    )
    _legend(canvas, [*handles, star])


def _budget_curve(ax: Axes, curve: pd.DataFrame, look: Mapping[str, Any]) -> None:
    """The star sits on the drawn line above K_opt; hollow at the nearest end if K_opt lies outside the line."""
    probes, variance = np.log(curve["num_probes"].to_numpy()), np.log(curve["variance"].to_numpy())
    ax.plot(curve["num_probes"], curve["variance"], **look)
    k_opt = curve["k_opt"].iloc[0]
    if not (np.isfinite(k_opt) and k_opt > 0):
        return
    x = float(np.clip(np.log(k_opt), probes.min(), probes.max()))
    y = float(np.exp(np.interp(x, probes, variance)))
    face = look["color"] if math.isclose(x, math.log(k_opt)) else "white"
    ax.plot(
        [math.exp(x)],
        [y],
        marker="*",
        ms=11,
        color=face,
        markeredgecolor="black",
        mew=0.6,
        zorder=5,
    )


# --- map of critical probe counts -----------------------------------------------------------------------------------
def _draw_critical_probes(canvas: Canvas, frame: pd.DataFrame) -> None:
    networks, steps = _names(frame["network"]), _names(frame["step"])
    sizes = sorted(_names(frame["batch_size"]))
    blocks = {
        network: _names(frame.loc[frame["network"] == network, "block"]) for network in networks
    }
    heights = [0.27 * len(names) + 0.8 for names in blocks.values()]
    canvas.set_size_inches(
        max(6.0, len(steps) * (0.5 * len(sizes) + 0.3) + 2.4), max(3.0, sum(heights) + 0.5)
    )
    axes = canvas.subplots(len(networks), len(steps), squeeze=False, height_ratios=heights)
    finite = frame.loc[np.isfinite(frame["k_star"]) & (frame["k_star"] > 0), "k_star"]
    centre = math.sqrt(CLAIMED_RANGE[0] * CLAIMED_RANGE[1])
    decades = max([1.0, *np.abs(np.log10(finite / centre))])
    norm = LogNorm(centre / 10**decades, centre * 10**decades)
    cells = frame.set_index(["network", "step", "block", "batch_size"])["k_star"]
    for i, network in enumerate(networks):
        for j, step in enumerate(steps):
            values = [
                [cells.get((network, step, b, size), np.nan) for size in sizes]
                for b in blocks[network]
            ]
            _map_panel(axes[i, j], np.array(values, dtype=float), norm)
            axes[i, j].set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
            axes[i, j].set_yticks(
                range(len(blocks[network])),
                [_short(b, 24) for b in blocks[network]] if j == 0 else [],
            )
            axes[i, j].set_title(
                (_short(network) if j == 0 else "") + f"\nstep {_short(step, 12)}", loc="left"
            )
    for ax in axes[-1]:
        ax.set_xlabel("batch size")
    _map_colours(canvas, axes, norm, finite)
    box = Patch(
        facecolor="white", edgecolor="black", linewidth=1.8, label="inside the claimed range 5–10"
    )
    canvas.legend(handles=[box], loc="outside lower center")


def _map_panel(ax: Axes, values: np.ndarray, norm: LogNorm) -> None:
    low, high = float(norm.vmin or 1.0), float(norm.vmax or 1.0)
    painted = np.ma.masked_invalid(np.clip(np.where(np.isposinf(values), high, values), low, high))
    colours = matplotlib.colormaps["PuOr"].with_extremes(bad="#eeeeee")
    ax.imshow(painted, norm=norm, cmap=colours, aspect="auto", interpolation="nearest")
    for (y, x), value in np.ndenumerate(values):
        inside = CLAIMED_RANGE[0] <= value <= CLAIMED_RANGE[1]
        shade = 0.5 if math.isnan(value) else float(norm(painted[y, x]))
        ink = "white" if abs(shade - 0.5) > 0.28 else "black"
        ax.text(
            x,
            y,
            _count(value),
            ha="center",
            va="center",
            fontsize=7.5,
            color=ink,
            weight="bold" if inside else None,
        )
        if inside:
            ax.add_patch(
                Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, lw=1.8, ec="black")
            )
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _map_colours(canvas: Canvas, axes: np.ndarray, norm: LogNorm, shown: pd.Series) -> None:
    """The colour bar, no longer than the counts that are shown and the claimed range reach."""
    colours = matplotlib.cm.ScalarMappable(norm=norm, cmap="PuOr")
    bar = canvas.colorbar(colours, ax=axes.ravel().tolist(), aspect=30, fraction=0.05, pad=0.02)
    bar.set_label("critical probe count K*")
    bar.ax.axhline(CLAIMED_RANGE[0], color="black", lw=1.4)
    bar.ax.axhline(CLAIMED_RANGE[1], color="black", lw=1.4)
    bar.ax.set_ylim(min([CLAIMED_RANGE[0], *shown]), max([CLAIMED_RANGE[1], *shown]))
    bar.ax.minorticks_off()


def _count(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if value >= 9950:
        return f"{value / 1000:.0f}k" if value < 1e6 else f"{value:.0e}".replace("e+0", "e")
    if value >= 1:
        return f"{value:.1f}" if value < 20 else f"{value:.0f}"
    return f"{value:.2g}"


# --- power ----------------------------------------------------------------------------------------------------------
def _draw_power(canvas: Canvas, frame: pd.DataFrame) -> None:
    canvas.set_size_inches(6.2, 3.7)
    ax = canvas.subplots()
    looks = _looks(_names(frame["draws"]))
    for name, part in _parts(frame.sort_values("effect"), "draws"):
        whiskers = [
            (part["rejection_rate"] - part["low"]).clip(lower=0),
            (part["high"] - part["rejection_rate"]).clip(lower=0),
        ]
        known = part["theory"].notna().any()
        ax.errorbar(
            part["effect"],
            part["rejection_rate"],
            yerr=whiskers,
            capsize=2,
            linestyle="none",
            **looks[name],
        )
        line = {"linestyle": "-"} if known else {"linestyle": ":", "lw": 0.9}
        ax.plot(
            part["effect"],
            part["theory" if known else "rejection_rate"],
            color=looks[name]["color"],
            **line,
        )
    ax.axvline(1, color=GREY, lw=0.9, ls="--")
    ax.set(
        xlabel="true effect (margins)",
        ylabel="share of runs rejected, 95% interval",
        ylim=(-0.03, 1.03),
    )
    handles = [_dot(f"{name} draws", **look) for name, look in looks.items()]
    if frame["theory"].notna().any():
        handles.append(_line("theory", color=GREY))
    _legend(canvas, [*handles, _line("margin", color=GREY, lw=0.9, ls="--")])


def _draw_kills(canvas: Canvas, frame: pd.DataFrame) -> None:
    table = frame.pivot(index="mutant", columns="noticed_by", values="killed")
    order = [c for c in _names(frame["noticed_by"]) if c in table]
    table = table.loc[_names(frame["mutant"]), order]
    half = -(-len(table) // 2) if len(table) > 40 else len(table)
    parts = [table.iloc[start : start + half] for start in range(0, len(table), half)]
    canvas.set_size_inches(len(parts) * (0.19 * len(order) + 2.7), 0.155 * half + 2.4)
    for ax, part in zip(np.atleast_1d(canvas.subplots(1, len(parts))), parts, strict=True):
        _draw_kills_of(ax, part)
    handles: list[Any] = [_dot("noticed", marker="s", color=COLOURS[0])]
    survivors = (table.sum(axis=1) == 0).any()
    _legend(
        canvas,
        handles
        + ([_dot("noticed by no check", marker="x", color=COLOURS[1])] if survivors else []),
    )


def _draw_kills_of(ax: Any, table: pd.DataFrame) -> None:
    mutant, noticed = np.nonzero(table.to_numpy() > 0)
    ax.scatter(noticed, mutant, s=15, marker="s", color=COLOURS[0])
    alive = np.flatnonzero(table.sum(axis=1).to_numpy() == 0)
    ax.scatter(np.full(len(alive), -0.7), alive, marker="x", color=COLOURS[1], s=24, clip_on=False)
    checks = [check.removeprefix("check_").replace("_", " ") for check in table.columns]
    ax.set_xticks(range(len(checks)), checks, rotation=90, fontsize=7)
    ax.set_yticks(
        range(len(table)),
        [_short(str(name), 44).replace("_", " ") for name in table.index],
        fontsize=6.5,
    )
    ax.set(xlim=(-1, len(checks) - 0.5), ylim=(len(table) - 0.5, -0.5))
    ax.xaxis.tick_top()


_KILL_MATRIX = _Plot(
    "kill_matrix",
    "kills",
    "Which check notices which wrong estimator",
    "Every row is an estimator that is wrong on purpose, every column a check of the conformance suite.",
    ("mutant", "noticed_by"),
    ("killed",),
    _finite("killed"),
    _draw_kills,
)

PLOTS: tuple[_Plot, ...] = (
    _Plot(
        "exact_vs_estimated",
        "estimates",
        "Estimated against exact layer traces",
        "Each point is the trace of one diagonal block, estimated with random probes (95% interval) against its exact "
        "value. Axes are symmetric-logarithmic where a network spans decades. The strips below show the error in units "
        "of half the interval: about one point in twenty may leave the grey band.",
        ("network", "stage", "block", "probe"),
        ("exact", "estimate", "low", "high", "num_probes"),
        _finite("exact", "estimate"),
        _draw_estimates,
    ),
    _Plot(
        "predicted_vs_measured_variance",
        "variance",
        "Measured against predicted variance",
        "Variance of a layer trace, measured over repeated draws, against its closed form; below, their ratio. For "
        "probes with independent entries the form is 2‖H_ll‖² + (κ−3) Σ H_ii² + Σ_{m≠l} ‖H_lm‖².",
        ("network", "stage", "block", "probe"),
        ("predicted", "measured"),
        _with_ratio("measured_over_predicted", "measured", "predicted"),
        _draw_variance,
    ),
    _Plot(
        "tied_weight_bias",
        "tied_bias",
        "Bias when tied weights are probed separately",
        "Error made by giving each instance of a tied tensor its own probe, relative to |Σ tr U_rr|. Grey bars are "
        "the bounds [−(T−1), 1] that hold for a positive semi-definite unrolled Hessian. "
        "One shared probe has no such bias.",
        ("example", "tensor", "stage"),
        ("instances", "exact_trace", "separate_trace", "bias", "bound_low", "bound_high"),
        _relative_bias,
        _draw_tied_bias,
    ),
    _Plot(
        "probe_tradeoff",
        "total_variance",
        "What another probe buys on one mini-batch",
        "Total variance of a layer trace over the floor left by batch sampling, against the number of probes on that "
        "batch. Lines are predictions, points measurements; at K* (stars) the total is twice the floor.",
        ("network", "block"),
        ("batch_size", "num_probes", "predicted", "measured", "k_star", "floor"),
        _over_floor,
        _draw_tradeoff,
    ),
    _Plot(
        "budget_u_curve",
        "budget",
        "Best number of probes at a fixed budget",
        "Variance reached with a fixed budget when each mini-batch costs an overhead c₀ and each probe c₁. The star is "
        "the predicted optimum √(c₀/c₁ · K*); it is hollow at an end of the curve where the optimum lies beyond it.",
        ("network", "block"),
        ("num_probes", "variance", "k_opt", "overhead_ratio"),
        _positive("num_probes", "variance"),
        _draw_budget,
    ),
    _Plot(
        "critical_probes_map",
        "critical_probes",
        "Critical probe count by layer, training step and batch size",
        "K*, the number of probes at which probe noise equals batch noise. Paler cells are nearer to 5–10; cells "
        "inside that range are framed. Orange needs fewer probes, purple more.",
        ("network", "block", "step"),
        ("batch_size", "k_star"),
        _first_of_cell,
        _draw_critical_probes,
    ),
    _Plot(
        "power_curve",
        "power",
        "Power of the statistical checks",
        "How often a check rejects, by the size of the true effect in units of its margin, with 95% intervals.",
        ("draws",),
        ("effect", "rejection_rate", "low", "high", "theory"),
        _finite("effect", "rejection_rate"),
        _draw_power,
    ),
    _Plot(
        "full_vector_vs_separated",
        "crossover",
        "One full-vector probe against separated probes",
        "Variance of a block trace at equal numbers of Hessian products. Below the line (left) and left of 1 (right) "
        "one full-vector probe is better; cross-layer blocks decide.",
        ("network", "stage", "block", "full_vector_wins"),
        ("separated_variance", "full_variance", "ratio"),
        _with_ratio("full_over_separated", "full_variance", "separated_variance"),
        _draw_crossover,
    ),
    _Plot(
        "gain_over_full_vector",
        "gain",
        "What the outputs spare the probes",
        "Variance of one full-vector probe on H over that of one logit probe (piecewise linear networks) or of one "
        "probe on R = H − G beside the exact traces of G (other networks), by layer. At 1 nothing is gained.",
        ("network", "stage", "block", "probe"),
        ("predicted", "measured"),
        _with_ratio("measured_over_predicted", "measured", "predicted"),
        partial(_draw_variance, quantity="gain", unit="(ratio of variances)"),
    ),
)

FIGURE_OF_TABLE: Mapping[str, str] = {plot.table: plot.name for plot in PLOTS}
