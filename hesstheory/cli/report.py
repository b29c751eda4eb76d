"""The report of a run of claims: what `hesstheory.show` draws becomes files here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Report(NamedTuple):
    """What was written: the page, and how many check records can be read on it."""

    page: Path
    records_shown: int


def write_report(records: Iterable[Mapping[str, object]], out: Path) -> Report:
    """Writes `out`/reports/index.html and `out`/figures/ from the records of one run.

    Parameters
    ----------
    records
        Records of a ledger, in their order: one header, the claims, one end.
    out
        Folder of the run. A figure for which the records hold no data is deleted from it.

    Returns
    -------
    Report
        The path of the page, and the number of check records read off the finished page.
    """
    from hesstheory.show import figures, pages

    records = list(records)
    page = out / "reports" / "index.html"
    shown = pages.write(records, figures.draw_all(records, out / "figures"), page)
    return Report(page, shown)
