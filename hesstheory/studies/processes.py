"""What do several processes gain?

    for n in 1 2; do
        OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node $n \\
            -m hesstheory.studies.processes
    done

Each call adds the seconds of exact traces of a full-scale network to the record: the median of a
few repeats for its number of processes, each of one thread, and what that gains over one process.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import torch

from hesstheory.harness.stages.exact import exact
from hesstheory.harness.subject import Settings, built
from hesstheory.run.ranks import Ranks, ranks
from hesstheory.studies.records import Record, read_record
from hesstheory.studies.study import Call, Parser, Study, call_study


def _add_options(parser: Parser) -> None:
    """Network, images and repeats."""
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)


def _run(call: Call) -> bool:
    """Times the stage of exact traces; the first process adds its number to the record."""
    with ranks(torch.device("cpu")) as us:
        seconds = _seconds(call, us)
        if us.first:
            found = _joined(call, us.count, seconds)
            call.write(found)
            print(found["seconds"], found.get("gain"))
    return True


def _seconds(call: Call, us: Ranks) -> float:
    """Seconds of exact traces, shared over the processes."""
    options = call.options
    settings = Settings(model=options.model, batch=options.batch)
    with tempfile.TemporaryDirectory() as folder:
        subject = built(settings, torch.device("cpu"), us, Path(folder), print)
        exact(subject, {})  # loads and allocates what the first call needs
        repeats = range(options.repeats)
        return statistics.median(exact(subject, {}).seconds["exact_traces"] for _ in repeats)


def _joined(call: Call, count: int, seconds: float) -> Record:
    """What was found before, with the seconds of this number of processes."""
    options = call.options
    before = read_record(call.file) if call.file.exists() else {"seconds": {}}
    of = {"model": options.model, "batch": options.batch}
    if any(before.get(name, value) != value for name, value in of.items()):
        raise ValueError(f"{call.file} is of another network or batch: pass another --out")
    by_count = before["seconds"] | {str(count): seconds}
    found: Record = {"seconds": by_count, **of}
    if "1" in by_count:
        found["gain"] = {number: by_count["1"] / other for number, other in by_count.items()}
    return found


STUDY = Study("processes", "What do several processes gain?", _run, _add_options)

if __name__ == "__main__":
    sys.exit(call_study(STUDY))
