"""Full-scale runs in small: narrow networks that the tests of several rooms measure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

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
    return subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
