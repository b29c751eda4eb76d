"""Tables of samples in one file: npz with JSON inside, never a pickled object."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

# Stands in every file: reading refuses a file of another kind, or of a later layout.
_FORMAT = "hesstheory.Estimate/1"


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


def _parsed(content: bytes) -> tuple[pd.DataFrame, dict[str, object]]:
    """The table and the rest, or whatever exception the content causes."""
    import pandas as pd

    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        meta: dict[str, object] = json.loads(str(file["meta"]))
        samples = file["samples"]
    found = meta.pop("format")
    if found != _FORMAT:
        raise ValueError(f"its format is {found!r}, not {_FORMAT!r}")
    blocks = pd.Index(meta.pop("blocks"), dtype=object)  # type: ignore[call-overload]
    return pd.DataFrame(samples, columns=blocks), meta
