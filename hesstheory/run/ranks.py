"""One process of many, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from hesstheory.run.workers import Result

PATIENCE = 300.0  # seconds that a process waits for the others


class LostRank(RuntimeError):
    """Another process of the run failed, ended or gave no sign of life."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, of which this is number `rank` of `count`.

    One that is alone communicates nothing.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, number: int) -> range:
        """This process's part of so many samples or probes.

        Parts are consecutive, and their sizes differ by one at most.

        Examples
        --------
        >>> [list(Ranks(rank, 3).share(7)) for rank in range(3)]
        [[0, 1], [2, 3], [4, 5, 6]]
        """
        return range(number * self.rank // self.count, number * (self.rank + 1) // self.count)

    def total(self, part: Tensor) -> Tensor:
        """Sum over the processes, the same in all of them."""
        if self.count == 1:
            return part
        whole = part.detach().clone().contiguous()
        with _waiting():
            torch.distributed.all_reduce(whole)
        return whole

    def from_first(self, value: Result) -> Result:
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

    def agreed(self, work: Callable[[], Result]) -> Result:
        """What `work`, which communicates nothing, returns; a failure of one is one of all.

        Raises
        ------
        LostRank
            `work` failed in another process, whose error the message holds. Where it failed in
            this one, its own error is raised.
        """
        if self.count == 1:
            return work()
        error: Exception | None = None
        result: Result | None = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        # Also a process that failed takes part: the others wait for its note.
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
    """The processes that `torchrun` started, over nccl for CUDA and gloo else.

    Without `torchrun` there is one.

    Parameters
    ----------
    device
        Where tensors lie that are communicated.
    patience
        Seconds that a process waits for the others.

    Raises
    ------
    ValueError
        `torchrun` started several, and this PyTorch has no torch.distributed.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if not torch.distributed.is_available():
        raise ValueError("this PyTorch has no torch.distributed: run one process, without torchrun")
    backend = "nccl" if device.type == "cuda" else "gloo"
    # Else nccl aborts a process that waits too long.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=patience))
    try:
        yield Ranks(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _waiting() -> Iterator[None]:
    """An error of communication says that another process is lost."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise LostRank(
            f"another process ended or gave no answer in time ({reason}): look for its error "
            "above; --resume goes on from what was measured"
        ) from error


def device_named(name: str) -> torch.device:
    """The device that a name stands for in this process.

    Parameters
    ----------
    name
        `"cpu"`, `"cuda"`, or `"auto"` for CUDA where there is one. Each of several processes has
        a CUDA device of its own.

    Raises
    ------
    ValueError
        Another name, or no CUDA device for this process.

    Examples
    --------
    >>> device_named("cpu")
    device(type='cpu')
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}: pass auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"no CUDA device is available to PyTorch {torch.__version__}: pass --device cpu, "
            "or install a CUDA build"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} has no CUDA device of its own, there are "
            f"{torch.cuda.device_count()}: start as many processes as there are devices"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
