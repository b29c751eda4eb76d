"""Work in fresh processes: peak memory, and libraries that may be killed."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import torch

from hesstheory.bench.cost import only
from hesstheory.bench.problems import SETTINGS, Setting
from hesstheory.bench.ways import WAYS
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import resident_now, resident_peak
from hesstheory.run.streams import stream

TRAINING_STEP = "training step"  # the unit of memory, beside the names of ways

_T = TypeVar("_T")


def in_a_process(function: Callable[..., _T], *arguments: object, **environment: str) -> _T:
    """What a function returns in a fresh process with more environment variables.

    Raises
    ------
    MemoryError
        The process was killed.
    """
    fresh = multiprocessing.get_context("spawn")
    try:
        with _environment(environment), ProcessPoolExecutor(1, mp_context=fresh) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        raise MemoryError(
            "its process was killed, as a system does that runs out of memory"
        ) from error


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """Environment variables that a child inherits; given back."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def training_step(problem: Problem) -> None:
    """Forward, backward, SGD: the unit of memory."""
    (batch,) = problem.batches
    descent = torch.optim.SGD(problem.model.parameters(), lr=1e-6)  # no step that would matter
    torch.autograd.backward(problem.loss_fn(problem.model(batch[0]), batch[1]))
    descent.step()


def peaks(name: str, ways: Sequence[str], tiny: bool) -> dict[str, int | None]:
    """Peak of the resident memory above what the problem takes; None without /proc.

    Ways run on the tiny problem first, which loads their libraries. Weights are untrained: they do
    not matter here.

    Parameters
    ----------
    name
        A problem of `SETTINGS`.
    ways
        Names of ways, or "training step".
    tiny
        Whether the problem is the small one, for tests.

    Returns
    -------
    dict
        Bytes, by way.
    """
    torch.set_num_threads(1)
    setting = SETTINGS[name]
    found: dict[str, int | None] = {}
    for way in ways:
        _use_memory(setting, way, setting.build(True, False))
        problem = setting.build(tiny, False)
        gc.collect()
        before = resident_now()
        _use_memory(setting, way, problem)
        found[way] = None if before is None else resident_peak() - before
    return found


def _use_memory(setting: Setting, way: str, problem: Problem) -> None:
    """As many probes as hold the memory of many: those of one block, or of the first count."""
    if way == TRAINING_STEP:
        training_step(problem)
    elif WAYS[way].apart:
        WAYS[way].call(only(problem, next(iter(problem.partition.blocks))), 1, stream(0))
    else:
        WAYS[way].call(problem, setting.counts[0], stream(0))
