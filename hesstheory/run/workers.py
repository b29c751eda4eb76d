"""Tasks over several processes of one machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from joblib import Parallel

_Task = TypeVar("_Task")

Result = TypeVar("Result")


def scatter(
    function: Callable[[_Task], Result], tasks: Sequence[_Task], workers: int
) -> Iterator[Result]:
    """Results of the tasks as they finish, each on one thread.

    On small networks more threads only get in the way.
    """
    if workers == 1 or len(tasks) <= 1:
        yield from (_single_threaded(function, task) for task in tasks)
        return
    from joblib import delayed

    run = _pool(min(workers, len(tasks)))
    yield from run(delayed(_in_worker)(function, task) for task in tasks)


@contextmanager
def started(prepare: Callable[[], object], workers: int) -> Iterator[None]:
    """Starts the processes of `scatter`, which prepare themselves while this one does the block.

    Parameters
    ----------
    prepare
        Imports what later tasks need. An exception is left to these tasks.
    workers
        Number of processes; of one, nothing is started.
    """
    if workers == 1:
        yield
        return
    from joblib import delayed

    preparing = _pool(workers)(delayed(_quietly)(prepare) for _ in range(workers))
    try:
        yield
    finally:
        for _ in preparing:  # joblib ends the processes of a run that nobody waits for
            pass


def _quietly(prepare: Callable[[], object]) -> None:
    """A call whose exceptions are dropped."""
    with suppress(Exception):
        prepare()


def _pool(workers: int) -> Parallel:
    """The pool of that many processes, which joblib keeps from one call to the next."""
    from joblib import Parallel

    return Parallel(
        n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch="all"
    )


def _in_worker(function: Callable[[_Task], Result], task: _Task) -> Result:
    """One task in a process of the pool, which is kept for the next one."""
    _keep_process()
    return _single_threaded(function, task)


def _keep_process() -> None:
    """Switches off that loky ends a worker whose memory has grown by 300 MB since its first task.

    That growth is no leak: caches hold networks and their Hessians for later tasks. A new process
    would spend about ten seconds on imports and on filling them again.
    """
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


def _single_threaded(function: Callable[[_Task], Result], task: _Task) -> Result:
    """One task with one thread of torch; the setting is given back."""
    import torch  # not above: a process that only starts others need not wait for it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(task)
    finally:
        torch.set_num_threads(threads)
