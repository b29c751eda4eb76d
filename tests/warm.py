"""Python processes that have torch from the start: an import of 2 to 5 s of processor time each.

They are forked from a server which has imported what the library needs, and nothing of the library.
All else is as in a process that is started: arguments, folder, environment, output, exit code and
signals. A test of what is imported, or of `python` and its options, starts one of its own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_NEEDED = ["torch", "pandas", "scipy.stats", "sklearn.datasets", "sympy", "matplotlib", "typer"]


@cache
def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_NEEDED)
    return context


@cache
def _installed():
    """Where modules lie that are installed, the checkout perhaps among them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import sys; print(*sys.path[1:], sep='\\n')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


class Started:
    """`python ARGUMENTS`, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, arguments, folder, environment):
        self._output = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        given = list(map(str, arguments)), str(folder), dict(environment), _installed()
        files = [multiprocessing.reduction.DupFd(file.fileno()) for file in self._output]
        self._process = _server().Process(target=_become, args=(*given, *files))
        self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def communicate(self, timeout=None):
        """Waits for the end: what was written to stdout and stderr."""
        self._process.join(timeout)
        is_late = self.poll() is None
        self.send_signal(signal.SIGKILL)
        self._process.join()
        out, err = (_content(file) for file in self._output)
        if is_late:
            raise subprocess.TimeoutExpired("python", timeout, out, err)
        return out, err


def _content(file):
    """What was written to a file, which is closed."""
    with file:
        file.seek(0)
        return file.read().decode()


def start(*arguments, folder=None, environment=None):
    """A process that is under way."""
    return Started(arguments, folder or Path.cwd(), environment or os.environ)


def run(*arguments, folder=None, environment=None, timeout=None):
    """A process that has ended, as `subprocess.run` returns it, with its output as text."""
    started = Started(arguments, folder or Path.cwd(), environment or os.environ)
    out, err = started.communicate(timeout)
    return subprocess.CompletedProcess(arguments, started.returncode, out, err)


def _become(arguments, folder, environment, installed, *files):
    """In the fork: what `python` does with its arguments."""
    for number, file in enumerate(files, 1):
        os.dup2(file.detach(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    _set_threads(environment.get("OMP_NUM_THREADS"))
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    what, *rest = arguments
    is_script = what not in ("-m", "-c")
    sys.path[:] = [str(Path(what).parent) if is_script else folder, *paths, *installed]
    sys.argv = [what, *rest] if is_script else rest
    try:
        if is_script:
            runpy.run_path(what, run_name="__main__")
        elif what == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # a forked process skips them


def _set_threads(count):
    """The number of threads, which torch took from the environment of the server."""
    import torch

    torch.set_num_threads(int(count or 1))
