"""Tasks over several processes of one machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

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
    from joblib import Parallel, delayed

    # One by one and in the order given: in batches, short tasks would wait behind a long one.
    run = Parallel(
        n_jobs=min(workers, len(tasks)),
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch="all",
    )
    yield from run(delayed(_in_worker)(function, task) for task in tasks)


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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(task)
    finally:
        torch.set_num_threads(threads)
