"""Tasks over several processes of one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

_Task = TypeVar("_Task")

Result = TypeVar("Result")


def scatter(
    function: Callable[[_Task], Result], tasks: Sequence[_Task], workers: int
) -> Iterator[Result]:
    """Results of the tasks as they finish, each on one thread: on small networks more threads only get in the way."""
    if workers == 1 or len(tasks) <= 1:
        yield from (_single_threaded(function, task) for task in tasks)
        return
    from joblib import Parallel, delayed

    run = Parallel(
        n_jobs=min(workers, len(tasks)),
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch="all",
    )
    yield from run(delayed(_single_threaded)(function, task) for task in tasks)


def _single_threaded(function: Callable[[_Task], Result], task: _Task) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(task)
    finally:
        torch.set_num_threads(threads)
