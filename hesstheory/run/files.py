"""Files that survive a kill."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

_READABLE_BY_ALL = 0o644  # as open() makes files; mkstemp's are for their owner alone


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes a file under a temporary name and renames it; a kill leaves the old file or the new.

    Folders on the way are made. Where writing fails, the temporary file is removed.

    Parameters
    ----------
    path
        The file to write or to replace.
    content
        Its content; text is written in UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())  # else a power cut may leave an empty file under the new name
        os.chmod(temporary, _READABLE_BY_ALL)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Appends one JSON line in one write and waits until it is on disk.

    A last line that a kill left without its end is closed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as out:
        end = out.seek(0, os.SEEK_END)
        out.seek(max(end - 1, 0))
        torn = out.read(1) not in (b"", b"\n")
        line = ("\n" if torn else "") + json.dumps(record, ensure_ascii=False) + "\n"
        out.write(line.encode())
        os.fsync(out.fileno())
