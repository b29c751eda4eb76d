"""Records → what the page shows of claims, checks, mutants and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hesstheory.show.figures import Figure
from hesstheory.show.gallery import FIGURE_OF_TABLE
from hesstheory.show.rows import Record
from hesstheory.show.text import cell, data_uri, mathml, seconds, slug, written

VERDICTS = ("HOLDS", "CONDITIONAL", "REFUTED", "INCONCLUSIVE", "STALE", "UNTESTED")

STATUSES = ("passed", "failed", "inconclusive", "reported", "skipped", "blocked", "xfailed")

_TEXTS = (
    "statement",
    "source",
    "reason",
    "detail",
    "condition",
    "counterexample",
    "reproduce",
    "kind",
)

_NUMBERS = ("discrepancy", "bound", "detectable", "power", "alpha", "num_draws")


@dataclass(frozen=True)
class Table:
    """Columns and text cells, ready to be laid out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CheckView:
    """One check as the page shows it; its rows stand here only if no figure shows them."""

    name: str
    kind: str
    status: str
    style: str
    detail: str
    condition: str
    numbers: Mapping[str, str]
    figure: str
    table: Table | None


@dataclass(frozen=True)
class MutantView:
    """One wrong estimator or formula, and what became of it."""

    name: str
    sin: str
    rejected: bool
    by: str
    detail: str


@dataclass(frozen=True)
class ClaimView:
    """One claim as the page shows it; `anchor` is unique even where an id occurs twice."""

    anchor: str
    id: str
    subject: str
    verdict: str
    style: str
    expected: str
    formula: Markup
    premises: tuple[str, ...]
    texts: Mapping[str, str]
    checks: tuple[CheckView, ...]
    mutants: tuple[MutantView, ...]
    figures: tuple[str, ...]

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the expected one, good or bad."""
        return self.verdict == self.expected

    @property
    def survivors(self) -> tuple[MutantView, ...]:
        """The mutants that no check rejected."""
        return tuple(mutant for mutant in self.mutants if not mutant.rejected)


@dataclass(frozen=True)
class FigureView:
    """One figure and its data, both embedded."""

    name: str
    title: str
    caption: str
    image: str
    csv: str
    claims: tuple[str, ...]
    table: Table


def distinct(values: Iterable[str]) -> tuple[str, ...]:
    """Each value once, in its order."""
    return tuple(dict.fromkeys(values))


def claim_views(
    records: Iterable[Record], shown: frozenset[str], header: Record
) -> list[ClaimView]:
    """The claims among the records of a run; `shown` names the figures that stand on the page."""
    views: list[ClaimView] = []
    for record in records:
        if record.get("record") == "claim":
            identity = written(record.get("id"))
            is_repeated = any(view.id == identity for view in views)
            anchor = f"claim-{slug(identity)}" + (f"-{len(views)}" if is_repeated else "")
            views.append(_claim(record, anchor, shown, header))
    return views


def _claim(record: Record, anchor: str, shown: frozenset[str], header: Record) -> ClaimView:
    """One claim, with the run that recorded it where that is another one."""
    verdict = written(record.get("verdict"))
    checks = tuple(_check(check, shown) for check in record.get("checks") or ())
    runs = (record.get("run"), header.get("run"))
    is_of_other_run = None not in runs and runs[0] != runs[1]
    texts = {key: str(record.get(key) or "") for key in _TEXTS}
    texts["seconds"] = seconds(record.get("seconds"))
    texts["other_run"] = str(record["run"]) if is_of_other_run else ""
    return ClaimView(
        anchor=anchor,
        id=written(record.get("id")),
        subject=str(record.get("subject") or ""),
        verdict=verdict,
        style=verdict if verdict in VERDICTS else "OTHER",
        expected=written(record.get("expected")),
        formula=mathml(str(record.get("formula") or "")),
        premises=tuple(str(name) for name in record.get("rests_on") or ()),
        texts=texts,
        checks=checks,
        mutants=tuple(_mutant(mutant) for mutant in record.get("mutants") or ()),
        figures=distinct(check.figure for check in checks if check.figure),
    )


def _check(check: Record, shown: frozenset[str]) -> CheckView:
    """One check, with its rows unless a figure shows them."""
    status = written(check.get("status"))
    rows = check.get("rows") or ()
    figure = FIGURE_OF_TABLE.get(str(check.get("table")), "") if rows else ""
    figure = figure if figure in shown else ""
    return CheckView(
        name=written(check.get("name")),
        kind=written(check.get("kind")),
        status=status,
        style=status if status in STATUSES else "other",
        detail=str(check.get("detail") or ""),
        condition=str(check.get("condition") or ""),
        numbers={key: written(check.get(key)) for key in _NUMBERS},
        figure=figure,
        table=_table(rows) if rows and not figure else None,
    )


def _mutant(mutant: Record) -> MutantView:
    """One mutant; what is not said to be rejected has survived."""
    return MutantView(
        name=written(mutant.get("name")),
        sin=written(mutant.get("sin")),
        rejected=mutant.get("rejected") is True,
        by=written(mutant.get("by") or None),
        detail=str(mutant.get("detail") or ""),
    )


def _table(rows: Sequence[Record]) -> Table:
    """Rows under all columns that any of them has."""
    columns = distinct(key for row in rows for key in row)
    cells = (tuple(written(row.get(column)) for column in columns) for row in rows)
    return Table(columns, tuple(cells))


def figure_view(figure: Figure) -> FigureView:
    """A figure with its picture and data as data URIs, and its data as a table."""
    header, *rows = csv.reader(io.StringIO(figure.csv, newline=""))
    return FigureView(
        name=figure.name,
        title=figure.title,
        caption=figure.caption,
        image=data_uri("image/svg+xml", figure.svg),
        csv=data_uri("text/csv;charset=utf-8", figure.csv.encode()),
        claims=figure.claims,
        table=Table(tuple(header), tuple(tuple(cell(text) for text in row) for row in rows)),
    )
