"""Ledger → one offline HTML page: every claim, every check, every mutant and every figure of a run.

The page loads nothing: styles are inline, formulas are MathML, figures and their data are data URIs, and it has no
script. Nothing is decided here; verdicts, expectations and counts are those of the records, and where these contradict
each other the page says so.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
from markupsafe import Markup

from hesstheory.show.figures import FIGURE_OF_TABLE, Figure

Record = Mapping[str, Any]

TEMPLATES = Path(__file__).parent / "templates"

VERDICTS = ("HOLDS", "CONDITIONAL", "REFUTED", "INCONCLUSIVE", "STALE", "UNTESTED")

STATUSES = ("passed", "failed", "inconclusive", "reported")

CHECK_ROW = '<tr class="check '

NOTHING = "–"

# What \href, \style, \class and \cssId would set; MathML inside HTML needs no xmlns.
UNWANTED_IN_MATH = frozenset({"href", "style", "class", "id", "xmlns"})


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
    texts: Mapping[str, str]
    checks: tuple[CheckView, ...]
    mutants: tuple[MutantView, ...]
    figures: tuple[str, ...]

    @property
    def as_expected(self) -> bool:
        return self.verdict == self.expected

    @property
    def survivors(self) -> tuple[MutantView, ...]:
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


@dataclass(frozen=True)
class Banner:
    """What stands at the head of the page; `problems` speak against green, `warnings` do not."""

    state: str
    headline: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    counts: tuple[tuple[str, int], ...]
    checks: str
    budget: str


def write(records: Iterable[Record], figures: Sequence[Figure], path: str | Path) -> int:
    """Write the page for the records of one run and return how many check records stand on it.

    The count is read off the finished page, so that comparing it with the number of checks run means something.
    """
    page = render(list(records), figures)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8", newline="\n")
    os.replace(partial, path)
    return page.count(CHECK_ROW)


def render(records: Sequence[Record], figures: Sequence[Figure]) -> str:
    """The page as text."""
    header, end = _last(records, "run"), _last(records, "end")
    claims = _claims(records, figures, header)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        run=_text(header.get("run")),
        banner=_banner(header, end, claims),
        verdicts=_names(claim.style for claim in claims),
        claims=claims,
        anchors={claim.id: claim.anchor for claim in reversed(claims)},
        figures=[_figure(figure) for figure in figures],
        facts=_facts(header, end),
        provenance=[
            (str(key), _text(value)) for key, value in (header.get("provenance") or {}).items()
        ],
    )


# --- the head of the page -------------------------------------------------------------------------------------------
def _last(records: Sequence[Record], kind: str) -> Record:
    return next((record for record in reversed(records) if record.get("record") == kind), {})


def _banner(header: Record, end: Record, claims: Sequence[ClaimView]) -> Banner:
    problems = [
        f"{c.id}: {c.verdict} where {c.expected} was expected." for c in claims if not c.as_expected
    ]
    met = f"{len(claims) - len(problems)} of {len(claims)} verdicts are as expected"
    doubts = _doubts(header, end, claims)
    if problems:
        state, headline = "red", f"Red: {met}"
    elif not end:
        state, headline = "unfinished", f"Unfinished: {met} so far"
    elif doubts:
        state, headline = "red", f"Red: {met}, but the record of the run is not in order"
    else:
        state, headline = "green", f"Green: {met}"
    found = Counter(claim.verdict for claim in claims)
    counts = tuple(
        (verdict, found[verdict]) for verdict in _names([*VERDICTS, *found]) if found[verdict]
    )
    warnings = [
        f"{claim.id} ({claim.verdict}): mutant {mutant.name} survived: {mutant.sin.rstrip('.')}."
        for claim in claims
        for mutant in claim.survivors
    ]
    return Banner(
        state,
        headline,
        (*problems, *doubts),
        tuple(warnings),
        counts,
        _check_count(end, claims),
        _budget(header),
    )


def _doubts(header: Record, end: Record, claims: Sequence[ClaimView]) -> list[str]:
    """Contradictions and gaps in the record of the run, each in one sentence."""
    ids = {claim.id for claim in claims}
    shown = sum(len(claim.checks) for claim in claims)
    expected = all(claim.as_expected for claim in claims)
    run, counted = header.get("run"), end.get("records_run")
    undecided = ", ".join(str(name) for name in header.get("claims") or () if str(name) not in ids)
    kept = ", ".join(c.id for c in claims if c.verdict == "HOLDS" and c.survivors)
    broken = ", ".join(
        c.id for c in claims if c.verdict == "HOLDS" and any(x.style == "failed" for x in c.checks)
    )
    others = ", ".join(c.id for c in claims if c.texts["other_run"])
    doubts = {
        "No claim was decided.": not claims,
        f"Announced but without a verdict: {undecided}.": undecided,
        f"Said to hold although a mutant survived: {kept}.": kept,
        f"Said to hold although a check failed: {broken}.": broken,
        f"Recorded by another run than {run}: {others}.": others,
        "The run has no header record; its budget and provenance are unknown.": not header,
        "The run has no end record: it was interrupted or has not finished.": not end,
        f"The end record belongs to another run, {end.get('run')}.": end
        and header
        and end.get("run") != run,
        f"The run counted {counted} checks, but {shown} are recorded.": counted is not None
        and counted != shown,
        "The end record says that the run did not pass.": end.get("passed") is False and expected,
    }
    return [sentence for sentence, applies in doubts.items() if applies]


def _check_count(end: Record, claims: Sequence[ClaimView]) -> str:
    shown = sum(len(claim.checks) for claim in claims)
    statuses = Counter(check.status for claim in claims for check in claim.checks)
    parts = ", ".join(
        f"{statuses[status]} {status}"
        for status in _names([*STATUSES, *statuses])
        if statuses[status]
    )
    total = (
        f"{shown} of {end['records_run']} checks shown"
        if end.get("records_run") is not None
        else f"{shown} checks"
    )
    return f"{total}: {parts}." if parts else f"{total}."


def _budget(header: Record) -> str:
    if header.get("suite_alpha") is None:
        return "The error budget of this run was not recorded."
    alpha = _text(header["suite_alpha"])
    text = (
        f"Error budget: a correct library goes red with probability at most {alpha} in a whole run"
    )
    if header.get("num_statistical") is not None:
        text += f", divided among {header['num_statistical']} statistical checks"
    if header.get("alpha_per_check") is not None:
        text += f", α = {_text(header['alpha_per_check'])} each"
    return text + "."


def _facts(header: Record, end: Record) -> list[tuple[str, str]]:
    return [
        ("profile", _text(header.get("profile"))),
        ("seed", _text(header.get("seed"))),
        ("fingerprint", _text(header.get("fingerprint"))),
        ("started", _text(header.get("time"))),
        ("ended", _text(end.get("time"))),
        ("seconds", _seconds(end.get("seconds"))),
    ]


# --- claims ---------------------------------------------------------------------------------------------------------
def _claims(
    records: Sequence[Record], figures: Sequence[Figure], header: Record
) -> list[ClaimView]:
    claims = [record for record in records if record.get("record") == "claim"]
    shown = {figure.name for figure in figures}
    views = []
    for number, record in enumerate(claims):
        identity = _text(record.get("id"))
        repeated = any(_text(earlier.get("id")) == identity for earlier in claims[:number])
        anchor = f"claim-{_slug(identity)}" + (f"-{number}" if repeated else "")
        views.append(_claim(record, anchor, shown, header))
    return views


def _claim(record: Record, anchor: str, shown: set[str], header: Record) -> ClaimView:
    verdict = _text(record.get("verdict"))
    checks = tuple(_check(check, shown) for check in record.get("checks") or ())
    texts = {
        key: str(record.get(key) or "")
        for key in (
            "statement",
            "source",
            "reason",
            "detail",
            "condition",
            "counterexample",
            "reproduce",
            "kind",
        )
    }
    other = (
        record.get("run") is not None
        and header.get("run") is not None
        and record["run"] != header["run"]
    )
    return ClaimView(
        anchor=anchor,
        id=_text(record.get("id")),
        subject=str(record.get("subject") or ""),
        verdict=verdict,
        style=verdict if verdict in VERDICTS else "OTHER",
        expected=_text(record.get("expected")),
        formula=mathml(str(record.get("formula") or "")),
        texts={
            **texts,
            "seconds": _seconds(record.get("seconds")),
            "other_run": str(record["run"]) if other else "",
        },
        checks=checks,
        mutants=tuple(_mutant(mutant) for mutant in record.get("mutants") or ()),
        figures=_names(check.figure for check in checks if check.figure),
    )


def _check(check: Record, shown: set[str]) -> CheckView:
    status = _text(check.get("status"))
    rows = check.get("rows") or ()
    figure = FIGURE_OF_TABLE.get(str(check.get("table")), "") if rows else ""
    figure = figure if figure in shown else ""
    return CheckView(
        name=_text(check.get("name")),
        kind=_text(check.get("kind")),
        status=status,
        style=status if status in STATUSES else "other",
        detail=str(check.get("detail") or ""),
        condition=str(check.get("condition") or ""),
        numbers={
            key: _text(check.get(key))
            for key in ("discrepancy", "bound", "detectable", "power", "alpha", "num_draws")
        },
        figure=figure,
        table=_table(rows) if rows and not figure else None,
    )


def _mutant(mutant: Record) -> MutantView:
    return MutantView(
        name=_text(mutant.get("name")),
        sin=_text(mutant.get("sin")),
        rejected=mutant.get("rejected") is True,
        by=_text(mutant.get("by") or None),
        detail=str(mutant.get("detail") or ""),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = _names(key for row in rows for key in row)
    return Table(
        columns, tuple(tuple(_text(row.get(column)) for column in columns) for row in rows)
    )


# --- figures --------------------------------------------------------------------------------------------------------
def _figure(figure: Figure) -> FigureView:
    data = figure.csv.read_bytes()
    header, *rows = csv.reader(io.StringIO(data.decode("utf-8"), newline=""))
    cells = tuple(tuple(_cell(text) for text in row) for row in rows)
    return FigureView(
        name=figure.name,
        title=figure.title,
        caption=figure.caption,
        image="data:image/svg+xml;base64,"
        + base64.b64encode(figure.svg.read_bytes()).decode("ascii"),
        csv="data:text/csv;charset=utf-8;base64," + base64.b64encode(data).decode("ascii"),
        claims=figure.claims,
        table=Table(tuple(header), cells),
    )


def _cell(text: str) -> str:
    """A number of the data file at reading precision; the embedded file keeps all digits."""
    try:
        return _text(float(text)) if "." in text or "e" in text else text
    except ValueError:
        return text


# --- text -----------------------------------------------------------------------------------------------------------
def mathml(formula: str) -> Markup:
    r"""MathML of a LaTeX formula; the escaped source where it cannot be read.

    The tree is serialised here, not by latex2mathml, which lets the content of ``\text`` through as markup.
    """
    source = formula.strip().strip("$").strip()
    if not source:
        return Markup("")
    try:
        from latex2mathml.converter import convert_to_element

        tree = convert_to_element(source, display="block")
    except Exception:  # its errors share no base class, and a formula must not cost the page
        return Markup('<code class="latex">{}</code>').format(source)
    for node in tree.iter():
        node.text = html.unescape(node.text) if node.text else node.text
        node.attrib = {
            key: value for key, value in node.attrib.items() if key not in UNWANTED_IN_MATH
        }
    return Markup(ElementTree.tostring(tree, encoding="unicode"))


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def _seconds(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, dict, tuple)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
