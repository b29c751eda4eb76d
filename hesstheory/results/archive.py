"""Tables of samples in one file: npz with JSON inside, never a pickled object."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

# Stands in every file: reading refuses a file of another kind, or of a later layout.
_FORMAT = "hesstheory.Estimate/1"

# The last record of a zip archive without a comment: its signature and its bytes (APPNOTE 4.3.16).
_END = b"PK\x05\x06"
_END_BYTES = 22


def packed(samples: pd.DataFrame, meta: Mapping[str, object]) -> bytes:
    """The content of a file with a table and what JSON says of it."""
    told = {"format": _FORMAT, "blocks": list(samples.columns), **meta}
    content = io.BytesIO()
    table = samples.to_numpy(dtype=np.float64)
    np.savez_compressed(content, samples=table, meta=np.array(json.dumps(told)))
    return content.getvalue()


def unpacked(content: bytes, origin: object) -> tuple[pd.DataFrame, dict[str, object]]:
    """What `packed` was given; ValueError, which names the origin, for any other content."""
    try:
        return _parsed(content)
    # numpy, zipfile, zlib and json each have exceptions of their own for a damaged file.
    except Exception as error:
        raise ValueError(
            f"{origin} holds no Estimate ({error}): pass a file that Estimate.save wrote, or save "
            "it again"
        ) from error


def _check_whole(content: bytes) -> None:
    """Raises ValueError for bytes before or behind the archive, which zipfile passes over."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    starts = min((member.header_offset for member in members), default=0)
    if starts or not content[-_END_BYTES:].startswith(_END):
        raise ValueError("it has bytes before or behind the archive")


def _parsed(content: bytes) -> tuple[pd.DataFrame, dict[str, object]]:
    """The table and the rest, or whatever exception the content causes."""
    import pandas as pd

    _check_whole(content)
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        meta: dict[str, object] = json.loads(str(file["meta"]))
        samples = file["samples"]
    found = meta.pop("format")
    if found != _FORMAT:
        raise ValueError(f"its format is {found!r}, not {_FORMAT!r}")
    blocks = pd.Index(meta.pop("blocks"), dtype=object)  # type: ignore[call-overload]
    return pd.DataFrame(samples, columns=blocks), meta
