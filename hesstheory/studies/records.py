"""Records of studies: with what code they were made, whether that has changed, and re-stamping."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from hesstheory.run.files import write_atomically
from hesstheory.run.provenance import fingerprint_of, provenance

# What a JSON file holds; its values are numbers, text, lists and records.
Record = dict[str, Any]

FINGERPRINT = "fingerprint"
RESTAMPED = "restamped"


class State(StrEnum):
    """What is known of a record without running anything."""

    CURRENT = "current"
    STALE = "STALE"
    ABSENT = "no record"


@dataclass(frozen=True)
class Origin:
    """The code and the data that the numbers of a record come from.

    Parameters
    ----------
    module
        Dotted name of a module; what it imports counts too.
    data
        Files that the study reads.
    """

    module: str
    data: Sequence[str | os.PathLike[str]] = ()

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when code, data or libraries do."""
        return fingerprint_of(self.module, self.data)


@dataclass(frozen=True)
class SpotCheck:
    """A part of a record that was computed again.

    Parameters
    ----------
    compared
        What was computed, in words.
    deviation
        The largest deviation: relative for numbers, how many differ for outcomes.
    tolerance
        What rounding may cause; 0 where outcomes are compared.
    """

    compared: str
    deviation: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the record is reproduced; a deviation that is no number does not hold."""
        return self.deviation <= self.tolerance

    def __str__(self) -> str:
        return f"{self.compared}, deviation {self.deviation:.2g}, tolerance {self.tolerance:.2g}"

    @classmethod
    def of_numbers(
        cls, compared: str, found: Sequence[float], recorded: Sequence[float], tolerance: float
    ) -> SpotCheck:
        """Deviations from the recorded numbers, relative to the largest of them.

        Examples
        --------
        >>> SpotCheck.of_numbers("traces", [1.0, 4.1], [1.0, 4.0], 0.1).holds
        True
        """
        # NumPy's maximum is NaN where a number is.
        deviation = float(np.abs(np.subtract(found, recorded)).max())
        scale = float(np.abs(recorded).max()) or 1.0
        return cls(compared, deviation / scale, tolerance)

    @classmethod
    def of_outcomes(
        cls, compared: str, found: Sequence[object], recorded: Sequence[object]
    ) -> SpotCheck:
        """How many outcomes differ from the recorded ones; none may."""
        pairs = zip(found, recorded, strict=True)
        return cls(compared, float(sum(a != b for a, b in pairs)), 0.0)


def read_record(file: Path) -> Record:
    """The record in a file; raises ValueError with the file's name where it is damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete it and run the study") from error
    if not isinstance(record, dict):
        raise ValueError(f"{file} is no record of a study: name another folder")
    return record


def write_record(file: Path, record: Record) -> None:
    """Writes a record as JSON, whole or not at all."""
    write_atomically(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def state_of(file: Path, origin: Origin) -> State:
    """Whether the code that made a record is the code that is here.

    A record without a fingerprint is stale: nobody knows.
    """
    if not file.exists():
        return State.ABSENT
    made_with = read_record(file).get(FINGERPRINT)
    return State.CURRENT if made_with == origin.fingerprint() else State.STALE


def restamp(file: Path, origin: Origin, spot_check: Callable[[Record], SpotCheck]) -> SpotCheck:
    """Gives a record the present fingerprint, if a part of it computed again is as recorded.

    The record keeps its numbers. It notes the commit that it was made at, the one at which it was
    re-stamped, the date, what was compared and the largest deviation.

    Parameters
    ----------
    file
        The record.
    origin
        The code and the data that its numbers come from.
    spot_check
        Computes a part of the record again.

    Returns
    -------
    SpotCheck
        What was compared. Where it does not hold, the file is left as it is.
    """
    record = read_record(file)
    found = spot_check(record)
    if not found.holds:
        return found
    note = {
        "from": {"commit": commit_of_record(record), FINGERPRINT: record.get(FINGERPRINT)},
        "to": {"commit": provenance("")["commit"], FINGERPRINT: origin.fingerprint()},
        "date": datetime.now(UTC).date().isoformat(),
        **asdict(found),
    }
    record[FINGERPRINT] = origin.fingerprint()
    record[RESTAMPED] = [*record.get(RESTAMPED, []), note]
    write_record(file, record)
    return found


def commit_of_record(record: Record) -> str:
    """The commit that a record says that it was made at."""
    made: Record = record.get("provenance", {})
    return str(made.get("commit", "unknown"))
