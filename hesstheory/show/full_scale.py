"""Report of a full-scale run → layers.csv, a figure and an offline page; it reads the report and computes nothing."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator

from hesstheory.run.files import write_atomically
from hesstheory.show.figures import COLOURS, GREY, PNG_DPI, STYLE
from hesstheory.show.pages import TEMPLATES

Report = Mapping[str, Any]

_LEAST = 1e-3  # what is less stands at the edge

_ESTIMATE, _LOGIT, _EXACT = COLOURS[0], COLOURS[1], COLOURS[6]

# Shown in the page's table: quantity, heading.
_COLUMNS = {
    "exact": "exact trace", "estimate": "estimate", "stderr": "standard error", "z": "z",
    "predicted_sd": "sd of one probe", "variance_ratio": "variance ratio", "k_star": "K*",
    "k_cost_optimal": "cheapest K", "logit_sd": "sd of a logit probe",
}  # fmt: skip


def write(report: Report, folder: str | Path) -> list[Path]:
    """Writes `layers.csv`, `figures/layers.png` and `.svg`, and `index.html`; returns their paths."""
    folder = Path(folder)
    table, page = folder / "layers.csv", folder / "index.html"
    write_atomically(table, _csv(report))
    png, svg = draw(report, folder / "figures")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("harness.html.j2").render(
        report=report,
        title=title(report),
        columns=list(_COLUMNS.values()),
        rows=[
            [layer, *(number(values.get(key)) for key in _COLUMNS)]
            for layer, values in report["layers"].items()
        ],
        image="data:image/png;base64," + base64.b64encode(png.read_bytes()).decode(),
        costs=[
            (name, f"{s:.3g} s", f"{report['gradients'][name]:.3g}")
            for name, s in report["seconds"].items()
        ],
    )
    write_atomically(page, text)
    return [table, png, svg, page]


def title(report: Report) -> str:
    """One line that says what was measured."""
    settings = report["settings"]
    state = f"after {settings['steps']} steps" if settings["steps"] else "untrained"
    width = "" if settings["width"] == 64 else f" of width {settings['width']}"
    return (
        f"{report['model']}{width}, {report['num_params']:,} parameters, {state}, {report['batch']} images of "
        f"{report['data']}, {report['dtype']} on {report['device']}"
    )


def number(value: float | None) -> str:
    """Three digits, or a dash for what is infinite or was not measured."""
    return "–" if value is None else f"{value:.3g}"


def _csv(report: Report) -> str:
    out = io.StringIO()
    quantities = list(dict.fromkeys(key for values in report["layers"].values() for key in values))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["layer", *quantities])
    for layer, values in report["layers"].items():
        writer.writerow([layer, *(values.get(key, "") for key in quantities)])
    return out.getvalue()


# --- figure -----------------------------------------------------------------------------------------------------------
def draw(report: Report, folder: Path) -> tuple[Path, Path]:
    """Four panels over the layers: traces, the error of one probe, measured variance, K*."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = list(report["layers"])
    y = np.arange(len(layers))
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(11.0, 1.6 + 0.17 * len(layers)), layout="constrained")
        axes = canvas.subplots(1, 4, sharey=True)
        for ax, panel in zip(axes, (_traces, _one_probe, _variances, _critical), strict=True):
            panel(ax, report, y)
            ax.margins(y=0.01)
        axes[0].set_yticks(y, layers, fontsize=7)
        axes[0].invert_yaxis()
        canvas.suptitle(title(report), fontsize=9)
        paths = folder / "layers.png", folder / "layers.svg"
        for path in paths:
            canvas.savefig(
                path, dpi=PNG_DPI, metadata={"Date": None} if path.suffix == ".svg" else None
            )
    return paths


def column(report: Report, quantity: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A quantity of all layers, NaN where there is none."""
    values = [values.get(quantity) for values in report["layers"].values()]
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _traces(ax: Axes, report: Report, y: Any) -> None:
    exact, K = column(report, "exact"), report["settings"]["probes"]
    for quantity, error, colour, label, shift in (
        ("estimate", "stderr", _ESTIMATE, f"one-product, K = {K}", -0.18),
        ("logit_estimate", "logit_stderr", _LOGIT, f"logit probes, K = {K}", 0.18),
    ):
        centre, half = column(report, quantity), 2 * column(report, error)
        ax.errorbar(
            centre, y + shift, xerr=half, fmt="o", ms=2.5, lw=0.9, color=colour, label=label
        )
    ax.plot(exact, y, "|", color=_EXACT, ms=7, mew=1.4, label="exact")
    smallest = np.nanmin(np.abs(exact[exact != 0])) if np.any(exact != 0) else 1.0
    ax.set_xscale("symlog", linthresh=float(smallest))
    _sparse_symlog(ax, float(smallest))
    ax.set_xlabel(f"tr {report['matrix']} of the layer (loss)\nbars: ± 2 standard errors")
    _legend(ax)


def _sparse_symlog(ax: Axes, smallest: float) -> None:
    """Zero, the largest power of ten on either side and one between where there is room for its label."""
    low, high = ax.get_xlim()
    first = math.floor(math.log10(smallest))
    ticks = [0.0]
    for sign, end in ((-1, -low), (1, high)):
        last = math.floor(math.log10(end)) if end > 0 else first
        middle = (first + last + 1) // 2
        powers = {middle, last} if last - middle > 1 else {last}
        ticks += [sign * 10.0**power for power in powers if power > first]
    ax.set_xticks(sorted(ticks))
    ax.xaxis.set_minor_locator(NullLocator())


def _one_probe(ax: Axes, report: Report, y: Any) -> None:
    exact = np.abs(column(report, "exact"))
    for quantity, colour, label in (
        ("predicted_sd", _ESTIMATE, "one-product"),
        ("logit_sd", _LOGIT, "logit probe"),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = column(report, quantity) / exact
        below = relative < _LEAST
        ax.plot(np.where(below, np.nan, relative), y, "o", ms=3, color=colour, label=label)
        ax.plot(np.full(below.sum(), _LEAST), y[below], "<", ms=4, color=colour)
    ax.axvline(1.0, color=GREY, lw=0.9, ls=":")
    ax.set_xscale("log")
    ax.set_xlabel("standard deviation of one probe\nover the exact trace (◂ below 0.1 %)")
    _legend(ax)


def _variances(ax: Axes, report: Report, y: Any) -> None:
    low, high = np.maximum(column(report, "variance_low"), _LEAST), column(report, "variance_high")
    ax.hlines(
        y, low, high, color=GREY, lw=1.0, alpha=0.6, label="where all layers\nlie with 99.9 %"
    )
    beyond = column(report, "variance_low") < _LEAST
    ax.plot(np.full(beyond.sum(), _LEAST), y[beyond], "<", ms=3, color=GREY)
    ax.plot(column(report, "variance_ratio"), y, "o", ms=3, color=_ESTIMATE, label="measured")
    ax.axvline(1.0, color=GREY, lw=0.9, ls=":")
    ax.set_xscale("log")
    ax.set_xlabel("measured over predicted\nvariance of one probe")
    _legend(ax)


def _critical(ax: Axes, report: Report, y: Any) -> None:
    ax.axvspan(5, 10, color=GREY, alpha=0.2, lw=0, label="K in [5, 10]")
    ax.plot(column(report, "k_star"), y, "o", ms=3, color=_ESTIMATE, label="K*")
    ax.plot(
        column(report, "k_cost_optimal"),
        y,
        "D",
        ms=2.5,
        mfc="white",
        color=COLOURS[2],
        label="cheapest K",
    )
    ax.set_xscale("log")
    ax.set_xlabel("probes on one batch")
    _legend(ax)


def _legend(ax: Axes) -> None:
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=7, handletextpad=0.4, ncols=1)


def lines(report: Report) -> Sequence[str]:
    """What held and what did not, a line each."""
    return [
        f"{check['status']:<9} {name}: {check['detail']}"
        for name, check in report["checks"].items()
    ]


def conclusion(report: Report) -> str:
    """The last line of a run."""
    failed = [name for name, check in report["checks"].items() if check["status"] == "failed"]
    decided = sum(check["status"] == "passed" for check in report["checks"].values())
    if failed:
        return f"did not hold: {', '.join(failed)}"
    return f"all {decided} checks held: {title(report)}"
