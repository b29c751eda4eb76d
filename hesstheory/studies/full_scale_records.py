"""Full-scale runs of `hesstheory harness`, one process after another.

    hesstheory study full_scale_records --device cpu
    hesstheory study full_scale_records --device cuda --json reports/harness --seconds 500
    hesstheory study full_scale_records --table --json reports/harness

The records are a folder with a file for each run. A run that is done is not done again, and one
that was stopped goes on. With --seconds no run is started after so long; the next call starts the
others. Runs with CIFAR need its files (HESSTHEORY_DATA).
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hesstheory.harness.stages.exact import exact, traces_of_samples
from hesstheory.harness.subject import Settings, built
from hesstheory.problem.risk import Problem
from hesstheory.run.precision import full_precision
from hesstheory.run.ranks import ranks
from hesstheory.studies.campaign import Campaign
from hesstheory.studies.records import (
    FINGERPRINT,
    Record,
    SpotCheck,
    read_record,
)
from hesstheory.studies.rounding import rounding_of_traces
from hesstheory.studies.study import Call, Parser, Study, call_study, seconds_or_inf

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


_COLUMNS = (
    "run",
    "standard error of one probe / trace",
    "of one logit probe, at most",
    "K*",
    "cost of exact traces",
    "cost of a product",
)
_CRITICAL = (5, 10)  # the number of probes at which a published rule puts the critical estimate


def table(folder: Path) -> str:
    """Markdown: a line for every record, and how many layers of all have a K* from 5 to 10."""
    reports = {file.stem: read_record(file) for file in sorted(folder.glob("*.json"))}
    if not reports:
        raise ValueError(f"{folder} holds no record: pass a folder of records, reports/harness")
    lines = [_line(name, report) for name, report in reports.items()]
    critical = [K for report in reports.values() for K in _critical_numbers(report)]
    low, high = _CRITICAL
    inside = sum(low <= K <= high for K in critical)
    last = f"K* lies in [{low}, {high}] in {inside} of {len(critical)} layers."
    header = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    return "\n".join([*header, *lines, "", last])


def _line(name: str, report: Record) -> str:
    """One record in the table."""
    rows = report["layers"].values()
    cost = report["gradients"]
    critical = _critical_numbers(report)
    product = [
        row["predicted_sd"] / abs(row["exact"]) for row in rows if row["predicted_sd"] is not None
    ]
    logit = max(row["logit_sd"] / abs(row["exact"]) for row in rows)
    return (
        f"| {name} | {min(product):.1g} to {max(product):.0f} | {logit:.2f} | "
        f"{min(critical):.0f} to {max(critical):.0e} | {cost['exact_traces']:.1f} | "
        f"{cost['product']:.1f} |"
    )


def _critical_numbers(report: Record) -> list[float]:
    """K* of the layers that have one."""
    return [row["k_star"] for row in report["layers"].values() if row["k_star"] is not None]


# --- runs -----------------------------------------------------------------------------------------


def _add_options(parser: Parser) -> None:
    """Which runs, on what, for how long."""
    parser.add_argument("names", nargs="*", help="runs; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--seconds", type=seconds_or_inf, default="inf", help="no run is started after so many"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the records")


def _run(call: Call) -> bool:
    """Does the runs that are missing; False if one failed or one of its checks did."""
    options = call.options
    if options.table:
        print(table(call.file))
        return True
    tasks = _chosen(records(options.device), options.names)
    campaign = Campaign(call.runs, _harness, call.header[FINGERPRINT], in_place=True)
    failed = []
    for name, report in campaign.runs(tasks, seconds=options.seconds):
        if report is None:
            print(f"{name}: not started, {options.seconds:g} s are over")
            continue
        if report:
            call.write(report, name)
        if not report.get("passed"):
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "none failed")
    return not failed


def _chosen(runs: Mapping[str, list[str]], names: list[str]) -> dict[str, list[str]]:
    """The named runs, or all."""
    if unknown := sorted(set(names) - runs.keys()):
        raise ValueError(f"no runs {', '.join(unknown)}; there are {', '.join(runs)}")
    return {name: runs[name] for name in names or runs}


def _harness(options: list[str], folder: Path) -> Record:
    """One run in a process of its own, so that its peak of memory is its own; empty if it broke."""
    resume = ["--resume"] if folder.exists() else []
    command = ["hesstheory", "harness", *options, "--out", str(folder), *resume]
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command])
    file = folder / "harness.json"
    return read_record(file) if file.exists() else {}


# --- a spot check ---------------------------------------------------------------------------------


def spot_check(record: Record) -> SpotCheck:
    """Builds the network again, trained if it was, and compares the exact traces of all layers.

    Training amplifies rounding. It is repeated with as many threads as before, and a record whose
    training takes another path on this machine is not reproduced.
    """
    settings = Settings(**record["settings"] | {"device": record["device"].partition(":")[0]})
    threads = torch.get_num_threads()
    torch.set_num_threads(record["threads"])
    try:
        found, rounding = _exact_traces(settings)
    finally:
        torch.set_num_threads(threads)
    recorded = {layer: row["exact"] for layer, row in record["layers"].items()}
    after = f"after {settings.steps} steps" if settings.steps else "of the untrained network"
    return SpotCheck.of_numbers(
        f"exact traces of {len(recorded)} layers {after}",
        [found[layer] for layer in recorded],
        list(recorded.values()),
        rounding,
    )


def _exact_traces(settings: Settings) -> tuple[Mapping[str, float], float]:
    """As the harness computes them, and how far rounding reaches in them."""
    device = torch.device(settings.device)
    with ranks(device) as us, full_precision(), tempfile.TemporaryDirectory() as folder:
        subject = built(settings, device, us, Path(folder), print)

        def traces(problem: Problem) -> Tensor:
            return traces_of_samples(subject, problem).mean(0)

        found = exact(subject, {}).layers["exact"]
        return found, rounding_of_traces(subject.problem, traces)


STUDY = Study(
    "full_scale_records",
    "What do full-scale runs of the harness measure?",
    _run,
    _add_options,
    spot_check,
    code="hesstheory.harness.course",
    in_folder="harness",
)

if __name__ == "__main__":
    sys.exit(call_study(STUDY))
