"""The append-only file that remembers verdicts."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hesstheory.evidence.checks import Verdict
from hesstheory.run.files import append_line


class Ledger:
    """Append-only file of runs, one JSON record a line: a `run` header, a `claim` per decided claim, an `end`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, record: dict[str, Any]) -> None:
        append_line(self.path, record)

    def records(self) -> list[dict[str, Any]]:
        """All whole records; a line torn by a kill is skipped with a warning."""
        if not self.path.exists():
            return []
        records = []
        for number, line in enumerate(
            self.path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
        ):
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                warnings.warn(
                    f"{self.path}:{number} is torn (a killed run?) and skipped", stacklevel=2
                )
        return records

    def run(self, run: str) -> list[dict[str, Any]]:
        """Records of one run, in order."""
        return [record for record in self.records() if record.get("run") == run]

    def unfinished(self, **header: Any) -> str | None:
        """Id of the last run if it has this header and no end."""
        heads = [record for record in self.records() if record["record"] == "run"]
        if not heads or any(heads[-1].get(key) != value for key, value in header.items()):
            return None
        run = str(heads[-1]["run"])
        return None if any(record["record"] == "end" for record in self.run(run)) else run

    def verdict(self, id: str, fingerprint: str) -> Verdict:
        """Last verdict on a claim: UNTESTED without one, STALE when the code or data have changed since."""
        found = [
            record
            for record in self.records()
            if record["record"] == "claim" and record["id"] == id
        ]
        if not found:
            return Verdict.UNTESTED
        return (
            Verdict(found[-1]["verdict"])
            if found[-1]["fingerprint"] == fingerprint
            else Verdict.STALE
        )


def plain(value: Any) -> Any:
    """JSON has no NaN, no infinity and no numpy scalars."""
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
    return datetime.now(UTC).isoformat(timespec="seconds")
