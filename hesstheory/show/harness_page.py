"""Report of a full-scale run → one offline HTML page."""

from __future__ import annotations

from hesstheory.show.figures import Figure
from hesstheory.show.rows import Record
from hesstheory.show.text import data_uri, fill

# Shown in the page's table: quantity and heading. The CSV has all quantities.
_COLUMNS = {
    "exact": "exact trace",
    "estimate": "estimate",
    "stderr": "standard error",
    "z": "z",
    "predicted_sd": "sd of one probe",
    "variance_ratio": "variance ratio",
    "k_star": "K*",
    "k_cost_optimal": "cheapest K",
    "logit_sd": "sd of a logit probe",
}


def render(report: Record, figure: Figure) -> str:
    """The page of one full-scale run.

    Parameters
    ----------
    report
        What `harness.json` holds.
    figure
        The layers of the run, as `layers.draw_layers` draws them.

    Returns
    -------
    str
        HTML that opens without a network.
    """
    gradients = report["gradients"]
    return fill(
        "harness.html.j2",
        report=report,
        title=figure.title,
        columns=list(_COLUMNS.values()),
        rows=[
            [layer, *(_number(values.get(key)) for key in _COLUMNS)]
            for layer, values in report["layers"].items()
        ],
        image=data_uri("image/png", figure.png),
        costs=[
            (name, f"{spent:.3g} s", f"{gradients[name]:.3g}")
            for name, spent in report["seconds"].items()
        ],
    )


def _number(value: float | None) -> str:
    """Three digits, or a dash for what is infinite or was not measured."""
    return "–" if value is None else f"{value:.3g}"
