"""A full-scale run for its reader: table, figure and page, and the lines that a run prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hesstheory.run.files import write_atomically

Report = Mapping[str, Any]

_FULL_WIDTH = 64  # channels of the first stage as the networks were published


def write(report: Report, folder: str | Path) -> list[Path]:
    """Writes what `harness.json` holds as a table, a figure and an offline page.

    Parameters
    ----------
    report
        What `harness.run` returns.
    folder
        Folder of the run; it is made where it does not exist.

    Returns
    -------
    list of Path
        `layers.csv`, `figures/layers.png`, `figures/layers.svg` and `index.html`.
    """
    from hesstheory.show import harness_page
    from hesstheory.show.layers import draw_layers

    figure = draw_layers(report, title(report))
    contents: dict[str, str | bytes] = {
        "layers.csv": figure.csv,
        "figures/layers.png": figure.png,
        "figures/layers.svg": figure.svg,
        "index.html": harness_page.render(report, figure),
    }
    for name, content in contents.items():
        write_atomically(Path(folder) / name, content)
    return [Path(folder) / name for name in contents]


def title(report: Report) -> str:
    """One line that says what was measured."""
    settings = report["settings"]
    state = f"after {settings['steps']} steps" if settings["steps"] else "untrained"
    width = settings["width"]
    narrow = "" if width == _FULL_WIDTH else f" of width {width}"
    return (
        f"{report['model']}{narrow}, {report['num_params']:,} parameters, {state},"
        f" {report['batch']} images of {report['data']}, {report['dtype']} on {report['device']}"
    )


def lines(report: Report) -> list[str]:
    """What held and what did not, a line for each check."""
    return [
        f"{check['status']:<9} {name}: {check['detail']}"
        for name, check in report["checks"].items()
    ]


def conclusion(report: Report) -> str:
    """The last line of a run: the checks that failed, or how many held."""
    failed = [name for name, check in report["checks"].items() if check["status"] == "failed"]
    if failed:
        return f"did not hold: {', '.join(failed)}"
    decided = sum(check["status"] == "passed" for check in report["checks"].values())
    return f"all {decided} checks held: {title(report)}"
