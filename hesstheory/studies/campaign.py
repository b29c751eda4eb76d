"""Campaigns: many runs, each a folder that is there whole or not at all.

Every run works in a folder with a dot before its name, which is renamed when the run is done. A
kill costs the runs in flight. Called again, a campaign does what is missing. Two campaigns merge by
copying folders. Runs go to worker processes by joblib.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from hesstheory.run.workers import scatter
from hesstheory.studies.records import FINGERPRINT, Record, read_record, write_record

_Task = TypeVar("_Task")

RECORD = "record.json"


class Run(NamedTuple):
    """A run of a campaign; one that was not started has no record, a broken one an empty one."""

    name: str
    record: Record | None


@dataclass(frozen=True)
class Campaign(Generic[_Task]):
    """Runs of one kind of work in one folder.

    Parameters
    ----------
    folder
        Holds a folder for each run, named after it.
    work
        `work(task, folder)` does one run and returns its record. It may write other files into the
        folder that it is given. What an interrupted run left is still there. An empty record says
        that the run broke: it is not kept, and tried again by the next call.
    fingerprint
        Of the code that the numbers come from. Runs of other code do not mix with these.
    in_place
        Whether `work` is given the folder under its final name, because it writes that name down
        or goes on with a stopped run by itself. The run is done when its record is there.

    Examples
    --------
    >>> import tempfile
    >>> def squared(task, folder):
    ...     return {"square": task**2}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     campaign = Campaign(Path(folder), squared, "code of today")
    ...     runs = list(campaign.runs({"two": 2, "three": 3}))
    >>> [run.record["square"] for run in runs]
    [4, 9]
    """

    folder: Path
    work: Callable[[_Task, Path], Record]
    fingerprint: str
    in_place: bool = False

    def runs(
        self, tasks: Mapping[str, _Task], *, workers: int = 1, seconds: float = math.inf
    ) -> Iterator[Run]:
        """Runs that are done first, in the order of the tasks, then the others as they finish.

        Parameters
        ----------
        tasks
            What is to be done, by the name of the run.
        workers
            Processes that share the runs.
        seconds
            No run is started after so many.

        Raises
        ------
        ValueError
            A finished run was made by other code, or its record is damaged.
        """
        until = time.time() + seconds  # the clock that worker processes share
        done = {name for name in tasks if self._file(name).exists()}
        for name in tasks:
            if name in done:
                yield Run(name, self._checked(name))
        missing = [(name, task) for name, task in tasks.items() if name not in done]
        yield from scatter(partial(self._run, until), missing, workers)

    def _file(self, name: str) -> Path:
        """The record, which is written last."""
        return self.folder / name / RECORD

    def _checked(self, name: str) -> Record:
        """The record of a finished run, if it was made by the code that is here."""
        record = read_record(self._file(name))
        if record.get(FINGERPRINT) != self.fingerprint:
            raise ValueError(
                f"{self._file(name)} was made by other code or other versions of its libraries, "
                "whose numbers do not mix with these: pass another folder as --out"
            )
        return record

    def _run(self, until: float, named: tuple[str, _Task]) -> Run:
        """One run, in a folder that has its final name when all is written."""
        name, task = named
        if time.time() >= until:
            return Run(name, None)
        final = self.folder / name
        folder = final if self.in_place else self.folder / f".{name}"
        if not self.in_place:
            folder.mkdir(parents=True, exist_ok=True)
        record = self.work(task, folder)
        if not record:
            return Run(name, record)
        record = record | {FINGERPRINT: self.fingerprint}
        write_record(folder / RECORD, record)
        if not self.in_place:
            # What a stopped copy left has no record, or the run would not be missing.
            shutil.rmtree(final, ignore_errors=True)
            folder.rename(final)
        return Run(name, record)
