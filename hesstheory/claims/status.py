"""What the ledger says of every claim, without running anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hesstheory.claims.course import LEDGER, fingerprints
from hesstheory.claims.ledger import Ledger, verdict_now
from hesstheory.claims.registry import catalogue, select
from hesstheory.evidence.checks import Verdict

# Where runs write by default, and the records that a project keeps under version control.
LEDGERS = (Path(LEDGER), Path("reports/ledger.jsonl"))


@dataclass(frozen=True)
class Standing:
    """The last verdict on a claim, and what it is worth today.

    `now` is STALE where code or libraries have changed since, and UNTESTED where there is no
    verdict or the claim is blocked.
    """

    id: str
    title: str
    now: Verdict
    last: Verdict | None
    expected: Verdict
    profile: str
    time: str

    @property
    def as_expected(self) -> bool:
        """True where a verdict of today's code is the expected one."""
        return self.now is self.expected


def newest_ledger(paths: Sequence[Path] = LEDGERS) -> Path | None:
    """The ledger that was written to last, or None where there is none."""
    there = [path for path in paths if path.is_file()]
    return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)


def standings(ledger: str | os.PathLike[str] | None, names: Sequence[str] = ()) -> list[Standing]:
    """Reads the last verdict of every claim and compares its fingerprint with today's code.

    Parameters
    ----------
    ledger
        The file, or None where nothing has been decided yet.
    names
        Claims such as `["T1"]`, which also means its parts. By default, all.

    Returns
    -------
    list of Standing
        One for each claim, in natural order.

    Raises
    ------
    KeyError
        If no claim has one of the names.
    """
    claims = catalogue()
    chosen = [claims[id] for id in select(names, claims)]
    records = Ledger(ledger).last_records() if ledger is not None else {}
    code = fingerprints(chosen)
    found = []
    for c in chosen:
        record = records.get(c.id)
        last = Verdict(record["verdict"]) if record else None
        profile, time = (record["profile"], record["time"]) if record else ("", "")
        now = Verdict.UNTESTED if c.blocked else verdict_now(record, code[c.id])
        found.append(Standing(c.id, c.title, now, last, c.expected, profile, time))
    return found


def counts(found: Sequence[Standing]) -> dict[str, int]:
    """How many claims stand at each verdict; verdicts that none has are left out."""
    numbers = {v.value: sum(standing.now is v for standing in found) for v in Verdict}
    return {verdict: number for verdict, number in numbers.items() if number}


def to_json(found: Sequence[Standing]) -> dict[str, object]:
    """The machine-readable form of a status: claims, and counts of what they stand at."""
    claims = [
        {
            "id": standing.id,
            "verdict": standing.now,
            "last": standing.last,
            "expected": standing.expected,
            "profile": standing.profile,
            "time": standing.time,
        }
        for standing in found
    ]
    return {"claims": claims, "counts": counts(found)}
