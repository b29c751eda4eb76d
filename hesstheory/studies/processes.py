"""What do several processes gain? Seconds of exact traces of a full-scale network, shared over processes of one thread.

    for n in 1 2; do
        OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node $n \
            tests/benchmarks/bench_processes.py --json reports/processes.json
    done

adds the median of a few repeats for its number of processes to the file, and what that gains over one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch

from hesstheory.harness.stages.exact import exact
from hesstheory.harness.subject import Settings, built
from hesstheory.run.files import write_atomically
from hesstheory.run.provenance import provenance
from hesstheory.run.ranks import ranks


def main() -> None:
    """Times the stage of exact traces."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    settings, device = Settings(model=options.model, batch=options.batch), torch.device("cpu")
    with ranks(device) as us, tempfile.TemporaryDirectory() as folder:
        subject = built(settings, device, us, Path(folder), print)
        exact(subject, {})
        seconds = statistics.median(
            exact(subject, {}).seconds["exact_traces"] for _ in range(options.repeats)
        )
        if not us.first:
            return
        found = json.loads(options.json.read_text()) if options.json.exists() else {"seconds": {}}
        found["seconds"][str(us.count)] = seconds
        if "1" in found["seconds"]:
            found["gain"] = {n: found["seconds"]["1"] / s for n, s in found["seconds"].items()}
        found |= {
            "model": options.model,
            "batch": options.batch,
            "provenance": provenance("bench_processes.py"),
        }
        write_atomically(options.json, json.dumps(found, indent=2) + "\n")
        print(found["seconds"], found.get("gain"))


if __name__ == "__main__":
    main()
