"""The files of a report: what `hesstheory.show` draws and renders is written here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hesstheory.run.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from hesstheory.show.figures import Figure, Plot


class Report(NamedTuple):
    """What was written: the page, and how many check records can be read on it."""

    page: Path
    records_shown: int


def write_report(records: Iterable[Mapping[str, object]], out: Path, workers: int = 1) -> Report:
    """Writes the page and the figures of one run of claims.

    Parameters
    ----------
    records
        Records of a ledger, in their order: one header, the claims, one end.
    out
        Folder of the run. It receives `reports/index.html`, and under `figures/` two pictures and
        a CSV for each figure. A figure without data in this run is deleted from there, so that
        the folder never mixes two runs. Other files are left alone.
    workers
        Processes that draw. The files do not depend on their number.

    Returns
    -------
    Report
        The path of the page, and the number of check records read off the finished page.
    """
    from hesstheory.show import gallery, pages

    records = list(records)
    figures = _drawn_by(workers, records)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name for figure in figures for name in figure.files}
    for name in gallery.all_file_names() - drawn:
        (folder / name).unlink(missing_ok=True)
    write_figures(figures, folder)
    text = pages.render(records, figures)
    page = out / "reports" / "index.html"
    write_atomically(page, text)
    return Report(page, pages.count_checks(text))


def _drawn_by(workers: int, records: list[Mapping[str, object]]) -> list[Figure]:
    """All figures of a run in the order of the page; drawing takes seconds for each."""
    from hesstheory.run.workers import scatter
    from hesstheory.show import gallery

    tables = list(enumerate(gallery.tables_of(records)))
    return [figure for _, figure in sorted(scatter(_numbered, tables, workers), key=itemgetter(0))]


def _numbered(task: tuple[int, tuple[Plot, pd.DataFrame]]) -> tuple[int, Figure]:
    """A drawn figure with its number: workers finish in any order."""
    from hesstheory.show.figures import drawn

    number, (plot, rows) = task
    return number, drawn(plot, rows)


def write_figures(figures: Iterable[Figure], folder: Path) -> None:
    """Writes the pictures and the data of figures into a folder."""
    for figure in figures:
        for name, content in figure.files.items():
            write_atomically(folder / name, content)
