"""Full-scale runs in small: narrow networks that the tests of several rooms measure."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import warnings

import torch
import warm
from command_line import hesstheory_

from hesstheory.harness.course import run
from hesstheory.harness.subject import Settings

TINY = Settings(model="vgg11", batch=4, probes=4, width=1, dtype="float64")
_AS_OPTIONS = (
    *("--model", "vgg11", "--batch", "4", "--probes", "4"),
    *("--width", "1", "--dtype", "float64"),
)
_PATIENCE = 120  # seconds that a run may take to get somewhere on a loaded machine


def quiet(text):
    """Says nothing."""


def command(*arguments, launcher=(), **environment):
    """`hesstheory harness` of the tiny run in a process of its own."""
    words = [*launcher, "-m", "hesstheory", "harness", *_AS_OPTIONS, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if not launcher:
        return warm.start(*words, environment=environment)
    return subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command_here(*arguments):
    """The same command in this process, which has torch already."""
    return hesstheory_("harness", *_AS_OPTIONS, *arguments)


def rendezvous(count):
    """What torchrun tells each of several processes on this machine, but for its number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}


def run_in_forks(count, settings, folder):
    """One run by several processes, which are forked and so have torch; their exit codes."""
    shared = rendezvous(count)

    def rank_of(number):
        os.environ.update(shared, RANK=str(number))
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        run(settings, folder, say=quiet)

    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank_of, args=(number,)) for number in range(count)]
    with warnings.catch_warnings():
        # Of threads, which the forks do without.
        warnings.simplefilter("ignore", DeprecationWarning)
        for rank in ranks:
            rank.start()
    deadline = time.monotonic() + _PATIENCE
    for rank in ranks:
        rank.join(max(0, deadline - time.monotonic()))
        rank.kill()
        rank.join()
    return [rank.exitcode for rank in ranks]


def kill_when(process, there):
    """Kills a process as soon as something is there."""
    deadline = time.monotonic() + _PATIENCE
    while not there() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def numbers(folder):
    """What a run wrote, by layer."""
    return json.loads((folder / "harness.json").read_text())["layers"]


def same(left, right, tolerance=1e-10):
    """Costs differ from run to run; all else agrees."""
    assert left.keys() == right.keys()
    for layer, values in left.items():
        for name in values.keys() - {"k_cost_optimal"}:
            a, b = values[name], right[layer][name]
            scale = max(abs(b), abs(right[layer]["exact"]) * 1e-6)  # a variance of zero is rounding
            assert a == b or abs(a - b) <= tolerance * scale, (layer, name, a, b)
