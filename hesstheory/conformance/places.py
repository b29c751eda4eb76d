"""Where in the user's code did an exception arise?"""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

import torch

# Frames of this library, of torch and of what is no file: they are not the user's.
_NOT_THE_USERS = (
    f"{Path(__file__).parents[1]}{os.sep}",
    f"{Path(torch.__file__).parent}{os.sep}",
    "<",
)
# What somebody else installed: named only where no frame is the user's own.
_INSTALLED = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
# Longer messages hide the place, which stands behind them.
_MOST_CHARACTERS = 300


def raised(error: BaseException) -> str:
    """An exception in one line, with its last place in code that nobody installed."""
    trace = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in trace if not frame.filename.startswith(_NOT_THE_USERS)]
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)] or frames
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    text = (str(error).splitlines() or [""])[0][:_MOST_CHARACTERS]
    return f"raises {type(error).__name__} ({text}){where}"
