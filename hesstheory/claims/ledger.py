"""The append-only file that remembers verdicts."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from hesstheory.evidence.checks import Verdict
from hesstheory.run.files import append_line

# A line of the ledger: what JSON can hold.
Record: TypeAlias = dict[str, Any]


class Ledger:
    """Append-only file of runs, one JSON record a line.

    A run is a `run` header, a `claim` record for every decided claim, and an `end`. A later record
    of a claim in the same run replaces an earlier one for the reader; both stay in the file.

    Parameters
    ----------
    path
        The file. It and its folder are created with the first record.

    Raises
    ------
    ValueError
        If the file is a folder, or begins with something that is no record.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> book = Ledger(folder.name + "/ledger.jsonl")
    >>> record = {"record": "claim", "run": "r1", "id": "T1", "verdict": "HOLDS"}
    >>> book.append(record | {"fingerprint": "f1"})
    >>> print(book.verdict("T1", "f1"), book.verdict("T1", "f2"), book.verdict("T2", "f1"))
    HOLDS STALE UNTESTED
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"{path} is a folder: name a file, such as {path}/ledger.jsonl")
        if self.path.is_file() and not _begins_with_a_record(self.path):
            raise ValueError(
                f"{path} is no ledger: its first line is no record; name a new file, or a ledger"
            )

    def append(self, record: Record) -> None:
        """Adds one record, which is on disk when this returns."""
        append_line(self.path, record)

    def records(self) -> list[Record]:
        """All whole records; a line torn by a kill is skipped with a warning."""
        if not self.path.exists():
            return []
        records = []
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                warnings.warn(
                    f"{self.path}:{number} is torn (a killed run?) and skipped", stacklevel=2
                )
        return records

    def run(self, run: str) -> list[Record]:
        """Records of one run, in order, and of every claim the last one."""
        records = [record for record in self.records() if record.get("run") == run]
        last = {record.get("id", number): number for number, record in enumerate(records)}
        return [records[number] for number in sorted(last.values())]

    def unfinished(self, **header: object) -> str | None:
        """Id of the last run if it has this header and no end."""
        heads = [record for record in self.records() if record["record"] == "run"]
        if not heads or any(heads[-1].get(key) != value for key, value in header.items()):
            return None
        run = str(heads[-1]["run"])
        return None if any(record["record"] == "end" for record in self.run(run)) else run

    def last_records(self) -> dict[str, Record]:
        """The last record of every claim, by its id."""
        claims = (record for record in self.records() if record["record"] == "claim")
        return {str(record["id"]): record for record in claims}

    def verdict(self, id: str, fingerprint: str) -> Verdict:
        """Last verdict on a claim: UNTESTED without one, STALE when code or data have changed
        since."""
        return verdict_now(self.last_records().get(id), fingerprint)


def _begins_with_a_record(path: Path) -> bool:
    """Whether a file is empty or begins with a record, which a kill may have torn."""
    start = b'{"record"'
    with open(path, "rb") as file:
        first = file.read(len(start))
    return start.startswith(first.strip())


def verdict_now(record: Mapping[str, Any] | None, fingerprint: str) -> Verdict:
    """What a claim's last record is worth for the code with this fingerprint."""
    if record is None:
        return Verdict.UNTESTED
    return Verdict(record["verdict"]) if record["fingerprint"] == fingerprint else Verdict.STALE


def plain(value: object) -> object:
    """The value in what JSON has: no NaN, no infinity, no scalars of numpy."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def now() -> str:
    """Universal time to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
