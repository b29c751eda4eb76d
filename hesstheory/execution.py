"""Where does it run: device, processes, random streams, provenance, and files that survive a kill."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

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
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
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


# --- one process of many ----------------------------------------------------------------------------------------------

PATIENCE = 300.0  # seconds that a process waits for the others


class LostRank(RuntimeError):
    """Another process of the run failed, ended or gave no sign of life."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, of which this is number `rank` of `count`; alone, nothing is communicated."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, number: int) -> range:
        """This process's part of so many samples or probes: consecutive, sizes that differ by one at most."""
        return range(number * self.rank // self.count, number * (self.rank + 1) // self.count)

    def total(self, part: Tensor) -> Tensor:
        """Sum over the processes, the same in all of them."""
        if self.count == 1:
            return part
        whole = part.detach().clone().contiguous()
        with _waiting():
            torch.distributed.all_reduce(whole)
        return whole

    def from_first(self, value: _Result) -> _Result:
        """What the first process holds."""
        if self.count == 1:
            return value
        box = [value]
        with _waiting():
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def copy_from_first(self, tensors: Iterator[Tensor]) -> None:
        """Overwrites tensors by those of the first process."""
        if self.count > 1:
            with torch.no_grad(), _waiting():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, src=0)

    def agreed(self, work: Callable[[], _Result]) -> _Result:
        """What `work`, which communicates nothing, returns; where it fails in one process it raises in all.

        Raises the process's own error, or `LostRank` with the error of another one.
        """
        if self.count == 1:
            return work()
        error, result = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        notes: list[str | None] = [None] * self.count
        with _waiting():
            torch.distributed.all_gather_object(notes, error and f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, note in enumerate(notes):
            if note is not None:
                raise LostRank(f"process {rank} of {self.count} failed: {note}")
        return result  # type: ignore[return-value]


@contextmanager
def ranks(device: torch.device, patience: float = PATIENCE) -> Iterator[Ranks]:
    """The processes that `torchrun` started, over nccl for CUDA and gloo else; one where it was not used."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if not torch.distributed.is_available():
        raise ValueError("this PyTorch has no torch.distributed: run one process, without torchrun")
    backend = "nccl" if device.type == "cuda" else "gloo"
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else nccl aborts a process that waits too long
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=patience))
    try:
        yield Ranks(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _waiting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise LostRank(
            f"another process ended or gave no answer in time ({reason}): look for its error above; --resume goes on "
            "from what was measured"
        ) from error


# --- device -----------------------------------------------------------------------------------------------------------


def device_named(name: str) -> torch.device:
    """`cpu`, `cuda`, or `auto` for CUDA where there is one; with several processes one CUDA device for each.

    Raises ValueError where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}: pass auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"no CUDA device is available to PyTorch {torch.__version__}: pass --device cpu, or install a CUDA build"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ValueError(f"process {local} has no CUDA device of its own, there are {torch.cuda.device_count()}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _switches() -> dict[str, Any]:
    """Where PyTorch may round float32 operands, by operation; `fp32_precision` of each is ieee or none where not."""
    backends: Any = torch.backends
    return {
        "matrix products": backends.cuda.matmul,
        "convolutions": backends.cudnn.conv,
        "recurrent layers": backends.cudnn.rnn,
        "matrix products on CPU": backends.mkldnn.matmul,
        "convolutions on CPU": backends.mkldnn.conv,
        "recurrent layers on CPU": backends.mkldnn.rnn,
    }


_FULL = ("ieee", "none")


@contextmanager
def full_precision() -> Iterator[None]:
    """TF32 and its like off, as certified numbers need; given back afterwards.

    cuDNN's convolutions round to TF32 by default, to three digits. PyTorch has older and newer switches, refuses to
    read the older ones where the newer ones differ, and reads both itself: all are set, so that they agree.
    """
    before = {name: switch.fp32_precision for name, switch in _switches().items()}
    older: list[Callable[[], None]] = []
    with suppress(RuntimeError):
        older.append(partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()))
    with suppress(RuntimeError):
        older.append(partial(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32))
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for switch in _switches().values():
        if switch.fp32_precision not in _FULL:
            switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for restore in older:
            restore()
        for name, switch in _switches().items():
            if switch.fp32_precision != before[name]:
                switch.fp32_precision = before[name]


def precision_switches() -> dict[str, bool | str]:
    """What PyTorch is allowed to round, and whether it promises to repeat itself."""
    allowed = {name: switch.fp32_precision for name, switch in _switches().items()}
    return {
        "rounds float32": ", ".join(f"{name} to {to}" for name, to in allowed.items() if to not in _FULL) or "nothing",
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cuDNN benchmark": torch.backends.cudnn.benchmark,
        "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, by events on a CUDA device."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    event: Callable[..., Any] = torch.cuda.Event
    before, after = event(enable_timing=True), event(enable_timing=True)
    before.record()
    work()
    after.record()
    torch.cuda.synchronize(device)
    return float(before.elapsed_time(after)) / 1000


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at most: allocated on a CUDA device, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)


# --- workers ----------------------------------------------------------------------------------------------------------


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
