"""The committed full-scale runs, one process after another: reports/harness/*.json.

    python tests/studies/full_scale_records.py --device cpu --json reports/harness
    python tests/studies/full_scale_records.py --device cuda --json reports/harness --seconds 500
    python tests/studies/full_scale_records.py --table --json reports/harness

A run that is done is not done again, one that was stopped goes on. With --seconds no run is started after so long; the
next call starts the others. Runs with CIFAR need its files (HESSTHEORY_DATA).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

_DIGITS = {
    "resnet18_untrained": "--model resnet18 --batch 16 --probes 10",
    "resnet18_trained": "--model resnet18 --steps 40",
    "resnet18_float64": "--model resnet18 --batch 8 --dtype float64",
    "resnet18_100_classes": "--model resnet18 --classes 100",
    "resnet18_batch128": "--model resnet18 --batch 128",
    "resnet34_untrained": "--model resnet34",
    "resnet34_trained": "--model resnet34 --steps 40",
    "vgg11_untrained": "--model vgg11",
    "vgg11_trained": "--model vgg11 --steps 60",
    "vgg11_100_classes": "--model vgg11 --classes 100",
    "vgg11_batch128": "--model vgg11 --batch 128",
}
_CIFAR = {
    "resnet18_cifar10_trained": "--model resnet18 --data cifar10 --steps 100",
    "vgg11_cifar10_trained": "--model vgg11 --data cifar10 --steps 300",
}
_CUDA = {
    "resnet18_batch512": "--model resnet18 --batch 512",
    "resnet18_batch1024": "--model resnet18 --batch 1024",
    "resnet34_batch256": "--model resnet34 --batch 256",
    "vgg11_batch1024": "--model vgg11 --batch 1024",
}


def records(device: str) -> dict[str, list[str]]:
    """Options of every run by its name; larger batches, and another name, on an accelerator."""
    if device == "cpu":
        return {name: options.split() for name, options in (_DIGITS | _CIFAR).items()}
    found = {name: options.split() for name, options in (_CUDA | _DIGITS | _CIFAR).items()}
    return {f"{name}_cuda": [*options, "--device", device] for name, options in found.items()}


def table(folder: Path) -> str:
    """Markdown: a line for every record, and how many layers of all have a K* from 5 to 10."""
    lines = [
        "| run | a product errs by, in traces | a logit probe, at most | K* | cost of exact traces | of a product |",
        "|---|---|---|---|---|---|",
    ]
    inside = layers = 0
    for file in sorted(folder.glob("*.json")):
        report = json.loads(file.read_text())
        rows, cost = report["layers"].values(), report["gradients"]
        critical = [row["k_star"] for row in rows if row["k_star"] is not None]
        product = [
            row["predicted_sd"] / abs(row["exact"])
            for row in rows
            if row["predicted_sd"] is not None
        ]
        logit = max(row["logit_sd"] / abs(row["exact"]) for row in rows)
        inside, layers = inside + sum(5 <= K <= 10 for K in critical), layers + len(critical)
        lines.append(
            f"| {file.stem} | {min(product):.1g} to {max(product):.0f} | {logit:.2f} | {min(critical):.0f} to "
            f"{max(critical):.0e} | {cost['exact_traces']:.1f} | {cost['product']:.1f} |"
        )
    return "\n".join([*lines, "", f"K* lies in [5, 10] in {inside} of {layers} layers."])


def main() -> None:
    """Runs what is not yet there; the exit code is 1 if a run failed or one of its checks did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="runs; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(options.json))
        return
    runs, start, failed = records(options.device), time.monotonic(), []
    if unknown := sorted(set(options.names) - runs.keys()):
        parser.error(f"no runs {', '.join(unknown)}; there are {', '.join(runs)}")
    for name in options.names or runs:
        folder = options.out / name
        if (folder / "harness.json").exists():
            continue
        if time.monotonic() - start > options.seconds:
            print(f"{name}: not started, {options.seconds:g} s are over")
            continue
        command = [
            "hesstheory",
            "harness",
            *runs[name],
            "--out",
            str(folder),
            *(["--resume"] * folder.exists()),
        ]
        print(" ".join(command), flush=True)
        code = subprocess.run([sys.executable, "-m", *command]).returncode
        if (folder / "harness.json").exists():
            options.json.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "harness.json", options.json / f"{name}.json")
        if code:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "none failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
