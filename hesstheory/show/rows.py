"""Records → rows of a table, and which of these can stand on the axes.

The columns that a figure adds are changes of unit, such as a ratio to the floor.
They stand in its CSV, so that the file holds exactly what the axes show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

# What `json` reads: the values are checked where they are used.
Record = Mapping[str, Any]

Drawable = Callable[[pd.DataFrame], pd.DataFrame]
"""Adds the column `drawn`, and the columns that a figure shows beside those of its table."""


def rows_of(records: Iterable[Record], table: str) -> pd.DataFrame:
    """All rows of one table in the claims of a run, with the claim and the check they come from."""
    return pd.DataFrame(
        {"claim": str(record.get("id", "")), "check": str(check.get("name", "")), **row}
        for record in records
        if record.get("record") == "claim"
        for check in record.get("checks") or ()
        if check.get("table") == table
        for row in check.get("rows") or ()
    )


def typed(frame: pd.DataFrame, keys: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """The frame with every expected column: keys as text, numbers as floats, others behind them."""
    columns = ("claim", "check", *keys, *numbers)
    others = [column for column in frame.columns if column not in columns]
    frame = frame.reindex(columns=[*columns, *others])
    for key in keys:
        frame[key] = [str(value) if pd.notna(value) else "–" for value in frame[key]]
    for number in numbers:
        frame[number] = pd.to_numeric(frame[number], errors="coerce").astype(float)
    return frame


def parts(frame: pd.DataFrame, key: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each value of a column of text, in the order of the records."""
    for name, part in frame.groupby(key, sort=False):
        yield str(name), part


def panels_of(frame: pd.DataFrame, number: str) -> list[tuple[str, float, pd.DataFrame]]:
    """The rows of each network and each value of a column of numbers; NaN is a value too."""
    return [
        (network, float(part[number].iloc[0]), part)
        for network, rows in parts(frame, "network")
        for _, part in rows.groupby(number, sort=False, dropna=False)
    ]


def finite(*columns: str) -> Drawable:
    """Rows whose columns are all finite can be drawn."""
    return lambda frame: frame.assign(
        drawn=np.isfinite(frame[list(columns)].to_numpy()).all(axis=1)
    )


def positive(*columns: str) -> Drawable:
    """Rows whose columns are all finite and above zero can be drawn: the axes are logarithmic."""

    def drawable(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[list(columns)].to_numpy()
        return frame.assign(drawn=(np.isfinite(values) & (values > 0)).all(axis=1))

    return drawable


def with_ratio(name: str, over: str, under: str) -> Drawable:
    """Adds the column `name`, the ratio of two positive columns."""

    def drawable(frame: pd.DataFrame) -> pd.DataFrame:
        frame = positive(over, under)(frame)
        return frame.assign(**{name: (frame[over] / frame[under]).where(frame["drawn"])})

    return drawable
