"""`hesstheory harness`, `bench` and `doctor`: what is measured."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstheory.cli.edge import check_writable, misuse

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Record = Mapping[str, Any]

RUNS = Path("runs")  # ignored by git; each command has a folder of its own there

# Columns of the table of costs, by the key of the report.
_COLUMNS = {
    "once": "once",
    "per_probe": "per probe",
    "worst_relative_spread_of_one_probe": "one probe",
    "work_to_1_percent": "to 1 %",
    "peak_in_training_steps": "memory",
    "seconds": "seconds",
    "gradients": "gradients",
    "times_ours": "times ours",
    "peak_in_matrices": "memory",
}
_CAPTION = (
    "Work in gradients. One probe: its relative standard error in the worst layer. Memory: peak "
    "above that of the problem, in training steps, or in dense matrices."
)


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="mlp, mlp-tanh, cnn, resnet18, resnet18-as-built, dense; all by default."
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the numbers here instead of OUT/reports/bench.json."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder that receives reports/bench.json and figures/frontier.*. `--out .` renews "
            "those of this folder, such as the ones under version control."
        ),
    ] = RUNS / "bench",
    repeats: Annotated[
        int | None, typer.Option(help="Rounds of timings; by default what a problem needs.")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", hidden=True, help="Tiny problems: is everything in place?")
    ] = False,
) -> None:
    """Measures what traces cost, ours and those of other libraries; minutes, on one thread.

    The unit is one gradient over the batch.
    """
    check_writable("--json", json_file)
    check_writable("--out", out / "figures" / "*", makes_folders=True)
    if json_file is None:
        json_file = out / "reports" / "bench.json"
        check_writable("--out", json_file, makes_folders=True)
    if repeats is not None and repeats < 1:
        misuse(f"--repeats {repeats}: pass one round or more, or leave it out")
    with _ended(f"what was measured before is in {json_file}"):
        _measure_costs(names or [], json_file, out, repeats, tiny)


def _measure_costs(
    names: list[str], json_file: Path, out: Path, repeats: int | None, tiny: bool
) -> None:
    """Writes the report and the figure after every problem, and prints tables."""
    from rich.console import Console

    from hesstheory import bench as room
    from hesstheory.cli.report import write_figures
    from hesstheory.run.files import write_atomically
    from hesstheory.show.gallery import draw_frontier

    console = Console()
    rows = []
    run = room.run(names, repeats=repeats, command=_command(), tiny=tiny, say=_progress())
    for report in run:
        write_atomically(json_file, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        problems = report["problems"]
        _print_costs(console, problems[next(reversed(problems))])
        if rows := [row for found in problems.values() for row in found["frontier"]]:
            write_figures([draw_frontier(rows)], out / "figures")
    console.print(_table_of_marks(report["marks"]))
    written = [json_file, *([out / "figures" / "frontier.png"] if rows else [])]
    console.print(", ".join(map(str, written)), markup=False, soft_wrap=True)
    if out.resolve() == Path.cwd():
        names_of = " and ".join(str(path) for path in written)
        console.print(f"Renewed in this folder: {names_of}.", markup=False, soft_wrap=True)


def harness(
    model: Annotated[str, typer.Option(help="resnet18, resnet34 or vgg11.")] = "resnet18",
    data: Annotated[str, typer.Option(help="digits, cifar10 or cifar100.")] = "digits",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch: Annotated[int, typer.Option(help="Images in the batch that is measured.")] = 16,
    probes: Annotated[int, typer.Option(help="Probes K of the one-product estimate.")] = 10,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    steps: Annotated[
        int, typer.Option(help="Training steps before the measurement; 0: untrained.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run, new or empty; runs/harness/MODEL by default.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.")
    ] = False,
    activation: Annotated[
        str, typer.Option(help="relu, silu or gelu; smooth ones are measured on G.")
    ] = "relu",
    width: Annotated[
        int, typer.Option(help="Channels of the first stage; 64 is the full network.")
    ] = 64,
    classes: Annotated[
        int | None, typer.Option(help="Outputs of the network; as many as the data by default.")
    ] = None,
    label_noise: Annotated[float, typer.Option(help="Fraction of wrong labels.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of all random streams.")] = 0,
    parallel: Annotated[
        str, typer.Option(help="Under torchrun, what processes share: data or probes.")
    ] = "data",
    root: Annotated[Path | None, typer.Option(help="Folder of the CIFAR files.")] = None,
    patience: Annotated[
        float, typer.Option(help="Seconds that a process waits for the others.")
    ] = 300.0,
) -> None:
    """Measures ResNet-18/34 or VGG-11 beside their exact traces.

    Writes harness.json, a table, a figure and a page into the folder of the run.
    """
    from hesstheory import harness as room
    from hesstheory.harness import show

    folder = RUNS / "harness" / model if out is None else out
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    if folder.exists() and not folder.is_dir():
        misuse(f"--out {folder}: that is a file; name a folder")
    check_writable("--out", folder / "*", makes_folders=True)
    with _ended(f"--resume goes on from what is in {folder}"), _lost_ranks_and_memory():
        settings = room.Settings(
            model=model, data=data, device=device, batch=batch, probes=probes, dtype=dtype,
            steps=steps, seed=seed, width=width, classes=classes, activation=activation,
            label_noise=label_noise, parallel=parallel, root=None if root is None else str(root),
        )  # fmt: skip
        report = room.run(
            settings, folder, resume=resume, command=_command(), say=_progress(), patience=patience
        )
        if first:
            show.write(report, folder)
    if first:
        written = f"{folder / 'index.html'}, {folder / 'harness.json'}"
        _print_lines([*show.lines(report), written, show.conclusion(report)])
    raise typer.Exit(0 if report["passed"] else 1)


def doctor() -> None:
    """Says what this machine has, what PyTorch may round, and whether known traces come out.

    It takes a second.
    """
    from hesstheory.harness import doctor as room

    facts = [f"{name:<26} {value}" for name, value in room.facts().items()]
    checks = list(room.checks())
    outcomes = [
        f"{'passed' if held else 'FAILED':<26} {name}: {detail}" for name, held, detail in checks
    ]
    _print_lines([*facts, *outcomes])
    raise typer.Exit(0 if all(held for _, held, _ in checks) else 1)


# --- how a command ends ---------------------------------------------------------------------------


@contextmanager
def _ended(interrupted: str) -> Iterator[None]:
    """What a user can mend is misuse; an interrupted command says what is left."""
    try:
        yield
    except (ValueError, OSError, MemoryError) as error:
        misuse(str(error))
    except KeyboardInterrupt:
        typer.echo(f"hesstheory: interrupted; {interrupted}", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _lost_ranks_and_memory() -> Iterator[None]:
    """Another process that ended, and a device or machine without memory, are no bugs either."""
    import torch

    from hesstheory.run.ranks import LostRank

    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, LostRank)
        no_memory = isinstance(error, torch.OutOfMemoryError)
        if not (lost or no_memory or "can't allocate memory" in str(error)):
            raise
        reason = str(error).partition("\n")[0]
        cure = "" if lost else ": use a smaller --width, --batch or --classes"
        misuse(f"{reason}{cure}")


def _command() -> str:
    """The command line, for the record."""
    return shlex.join(["hesstheory", *sys.argv[1:]])


# --- what is printed ------------------------------------------------------------------------------


def _progress() -> partial[None]:
    """Prints a line of progress."""
    from rich.console import Console

    return partial(Console(stderr=True).print, markup=False, highlight=False, soft_wrap=True)


def _print_lines(lines: list[str]) -> None:
    """As they are: no markup, no breaks."""
    from rich.console import Console

    console = Console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_costs(console: Console, found: Record) -> None:
    """One row per way; of the dense Hessian, time and memory."""
    from rich.table import Table

    ways: Mapping[str, Record] = found["ways"]
    milliseconds = 1000 * found["gradient_seconds"]
    title = (
        f"{found['about']}: {found['num_params']:,} parameters, one gradient {milliseconds:.3g} ms"
    )
    shown = [key for key in _COLUMNS if any(way.get(key) is not None for way in ways.values())]
    headings = [_COLUMNS[key] for key in shown]
    table = Table("way", *headings, title=title, caption=_CAPTION)
    for name, way in ways.items():
        mark = "" if way.get("judged_on", "every layer") == "every layer" else " (total only)"
        cells = ["" if way.get(key) is None else f"{way[key]:.3g}" for key in shown]
        table.add_row(name + mark, *cells, style="" if way["kind"] == "ours" else "dim")
    console.print(table)
    for name, why in found["absent"].items():
        console.print(f"{name} is absent: {why}", markup=False)


def _table_of_marks(marks: list[Record]) -> Table:
    """What was aimed at, and what came out."""
    from rich.table import Table

    table = Table("mark", "limit", "measured", "met", title="Marks")
    for mark in marks:
        style = "green" if mark["met"] else "bold red"
        met = f"[{style}]{mark['met']}[/]"
        table.add_row(mark["mark"], f"{mark['limit']:g}", f"{mark['measured']:.3g}", met)
    return table
