"""Where does it run: provenance of a run, its random streams, worker processes and files that survive a kill."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def stream(seed: int, *names: str) -> torch.Generator:
    """The random stream that belongs to a seed and a name, the same wherever and in whatever order it is asked for."""
    digest = hashlib.sha256("/".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def provenance(command: str) -> dict[str, str]:
    """Versions, machine, commit and command of this process."""
    return {
        "command": command,
        "hesstheory": _version("hesstheory"),
        "commit": _commit(),
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "numpy", "scipy", "sympy", "scikit-learn")},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def fingerprint(*packages: str) -> str:
    """Hash of the sources of the named packages and of the versions that they compute with."""
    digest = hashlib.sha256()
    for package in packages:
        root = Path(str(sys.modules[package].__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    for library in ("torch", "numpy", "sympy", "scikit-learn"):
        digest.update(_version(library).encode())
    return digest.hexdigest()[:16]


def scatter(function: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int) -> Iterator[_Result]:
    """Results of the tasks as they finish, each on one thread: on small networks more threads only get in the way."""
    if workers == 1 or len(tasks) <= 1:
        yield from (_single_threaded(function, task) for task in tasks)
        return
    from joblib import Parallel, delayed

    run = Parallel(n_jobs=min(workers, len(tasks)), return_as="generator_unordered", batch_size=1, pre_dispatch="all")
    yield from run(delayed(_single_threaded)(function, task) for task in tasks)


def _single_threaded(function: Callable[[_Task], _Result], task: _Task) -> _Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(task)
    finally:
        torch.set_num_threads(threads)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it, so that a kill leaves the old file or the new one.

    Where that fails, the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line in one write and waits until it is on disk; a torn last line is closed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as out:
        end = out.seek(0, os.SEEK_END)
        out.seek(max(end - 1, 0))
        torn = out.read(1) not in (b"", b"\n")
        line = ("\n" if torn else "") + json.dumps(record, ensure_ascii=False) + "\n"
        out.write(line.encode())
        os.fsync(out.fileno())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain", "-uno", "--", "*.py"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + (" with local changes" if status.stdout.strip() else "")


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
