"""Ledger → one offline HTML page: every claim, check, mutant and figure of a run.

The page loads nothing: styles are inline, formulas are MathML, figures and data are data URIs.
It has no script.
Nothing is decided here; verdicts, expectations and counts are those of the records.
Where these contradict each other, the page says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hesstheory.show.figures import Figure
from hesstheory.show.rows import Record
from hesstheory.show.text import fill, seconds, written
from hesstheory.show.views import (
    STATUSES,
    VERDICTS,
    ClaimView,
    claim_views,
    distinct,
    figure_view,
)

_CHECK_ROW = '<tr class="check '  # the escaped text of a record cannot contain it


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


def render(records: Sequence[Record], figures: Sequence[Figure]) -> str:
    """The page for the records of one run.

    Parameters
    ----------
    records
        One header, the claims, one end; a page without some of these says what is missing.
    figures
        The figures that stand on the page. Rows that they show are left out of the checks.

    Returns
    -------
    str
        HTML that opens without a network.
    """
    header = _last(records, "run")
    end = _last(records, "end")
    claims = claim_views(records, frozenset(figure.name for figure in figures), header)
    provenance = header.get("provenance") or {}
    return fill(
        "report.html.j2",
        run=written(header.get("run")),
        banner=_banner(header, end, claims),
        verdicts=distinct(claim.style for claim in claims),
        claims=claims,
        anchors={claim.id: claim.anchor for claim in reversed(claims)},
        figures=[figure_view(figure) for figure in figures],
        facts=facts(header, end),
        provenance=[(str(key), written(value)) for key, value in provenance.items()],
    )


def count_checks(page: str) -> int:
    """How many check records stand on a finished page.

    They are read off the page, so that comparing them with the checks that ran means something.
    """
    return page.count(_CHECK_ROW)


def facts(header: Record, end: Record) -> list[tuple[str, str]]:
    """What the records say about the run as a whole."""
    return [
        ("profile", written(header.get("profile"))),
        ("seed", written(header.get("seed"))),
        ("fingerprint", written(header.get("fingerprint"))),
        ("started", written(header.get("time"))),
        ("ended", written(end.get("time"))),
        ("seconds", seconds(end.get("seconds"))),
    ]


def _last(records: Sequence[Record], kind: str) -> Record:
    """The last record of a kind, empty where there is none."""
    return next((record for record in reversed(records) if record.get("record") == kind), {})


# --- the head of the page -------------------------------------------------------------------------


def _banner(header: Record, end: Record, claims: Sequence[ClaimView]) -> Banner:
    """The head of the page."""
    surprises = [claim for claim in claims if not claim.as_expected]
    problems = [f"{c.id}: {c.verdict} where {c.expected} was expected." for c in surprises]
    doubts = _doubts(header, end, claims)
    met = f"{len(claims) - len(problems)} of {len(claims)} verdicts are as expected"
    state, headline = _state(met, bool(problems), bool(end), bool(doubts))
    found = Counter(claim.verdict for claim in claims)
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
        tuple((name, found[name]) for name in distinct([*VERDICTS, *found]) if found[name]),
        _check_count(end, claims),
        _budget(header),
    )


def _state(met: str, has_problems: bool, has_end: bool, has_doubts: bool) -> tuple[str, str]:
    """Colour and headline of the banner."""
    if has_problems:
        return "red", f"Red: {met}"
    if not has_end:
        return "unfinished", f"Unfinished: {met} so far"
    if has_doubts:
        return "red", f"Red: {met}, but the record of the run is not in order"
    return "green", f"Green: {met}"


def _doubts(header: Record, end: Record, claims: Sequence[ClaimView]) -> list[str]:
    """Contradictions and gaps in the record of the run, each in one sentence."""
    doubts = {**_doubts_about_claims(header, claims), **_doubts_about_run(header, end, claims)}
    return [sentence for sentence, applies in doubts.items() if applies]


def _doubts_about_claims(header: Record, claims: Sequence[ClaimView]) -> dict[str, bool]:
    """Verdicts that are missing, that their own evidence contradicts, or of another run."""
    ids = {claim.id for claim in claims}
    held = [claim for claim in claims if claim.verdict == "HOLDS"]
    undecided = ", ".join(str(name) for name in header.get("claims") or () if str(name) not in ids)
    kept = ", ".join(claim.id for claim in held if claim.survivors)
    broken = ", ".join(c.id for c in held if any(x.style == "failed" for x in c.checks))
    others = ", ".join(claim.id for claim in claims if claim.texts["other_run"])
    return {
        "No claim was decided.": not claims,
        f"Announced but without a verdict: {undecided}.": bool(undecided),
        f"Said to hold although a mutant survived: {kept}.": bool(kept),
        f"Said to hold although a check failed: {broken}.": bool(broken),
        f"Recorded by another run than {header.get('run')}: {others}.": bool(others),
    }


def _doubts_about_run(header: Record, end: Record, claims: Sequence[ClaimView]) -> dict[str, bool]:
    """A header or an end that is missing, that belongs elsewhere, or that counts otherwise."""
    shown = sum(len(claim.checks) for claim in claims)
    counted = end.get("records_run")
    is_of_other_run = bool(end and header) and end.get("run") != header.get("run")
    all_expected = all(claim.as_expected for claim in claims)
    failed = "The end record says that the run did not pass."
    return {
        "The run has no header record; its budget and provenance are unknown.": not header,
        "The run has no end record: it was interrupted or has not finished.": not end,
        f"The end record belongs to another run, {end.get('run')}.": is_of_other_run,
        f"The run counted {counted} checks, but {shown} are recorded.": counted
        not in (None, shown),
        failed: end.get("passed") is False and all_expected,
    }


def _check_count(end: Record, claims: Sequence[ClaimView]) -> str:
    """How many checks there are, by status."""
    shown = sum(len(claim.checks) for claim in claims)
    found = Counter(check.status for claim in claims for check in claim.checks)
    names = [name for name in distinct([*STATUSES, *found]) if found[name]]
    total = f"{shown} checks"
    if end.get("records_run") is not None:
        total = f"{shown} of {end['records_run']} checks shown"
    parts = ", ".join(f"{found[name]} {name}" for name in names)
    return f"{total}: {parts}." if parts else f"{total}."


def _budget(header: Record) -> str:
    """The probability that a correct library goes red, and how it is divided."""
    if header.get("suite_alpha") is None:
        return "The error budget of this run was not recorded."
    alpha = written(header["suite_alpha"])
    text = (
        f"Error budget: a correct library goes red with probability at most {alpha} in a whole run"
    )
    if header.get("num_statistical") is not None:
        text += f", divided among {header['num_statistical']} statistical checks"
    if header.get("alpha_per_check") is not None:
        text += f", α = {written(header['alpha_per_check'])} each"
    return text + "."
