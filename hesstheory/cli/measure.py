"""`hesstheory harness`, `bench` and `doctor`: what is measured."""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hesstheory.cli.edge import check_writable, misuse


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="mlp, mlp-tanh, cnn, resnet18, dense; all by default."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the numbers here instead of OUT/reports/bench.json."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder that receives reports/bench.json and figures/frontier.*.")
    ] = Path(),
    repeats: Annotated[
        int | None, typer.Option(help="Rounds of timings; by default what a problem needs.")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", hidden=True, help="Tiny problems: is everything in place?")
    ] = False,
) -> None:
    """Measures what traces cost, ours and those of other libraries, in gradients: minutes, on one thread."""
    from rich.console import Console

    from hesstheory import bench as room
    from hesstheory.cli.report import write_figures
    from hesstheory.run.files import write_atomically
    from hesstheory.show.gallery import draw_frontier

    check_writable("--json", json_file)
    check_writable("--out", out / "figures" / "*", makes_folders=True)
    if json_file is None:
        json_file = out / "reports" / "bench.json"
        check_writable("--out", json_file, makes_folders=True)
    if repeats is not None and repeats < 1:
        misuse(f"--repeats {repeats}: pass one round or more, or leave it out")
    progress, console = Console(stderr=True), Console()
    try:
        command = shlex.join(["hesstheory", *sys.argv[1:]])
        say = partial(progress.print, markup=False, highlight=False, soft_wrap=True)
        for report in room.run(names or (), repeats=repeats, command=command, tiny=tiny, say=say):
            write_atomically(json_file, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
            _print_costs(console, report["problems"][next(reversed(report["problems"]))])
            if rows := [row for found in report["problems"].values() for row in found["frontier"]]:
                write_figures([draw_frontier(rows)], out / "figures")
    except (ValueError, OSError, MemoryError) as error:
        misuse(str(error))
    except KeyboardInterrupt:
        typer.echo(f"hesstheory: interrupted; what was measured before is in {json_file}", err=True)
        raise typer.Exit(130) from None
    _print_marks(console, report["marks"])
    console.print(
        f"{json_file}" + (f", {out / 'figures' / 'frontier.png'}" if rows else ""), markup=False
    )


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
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("harness"),
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
    """Measures ResNet-18/34 or VGG-11 beside their exact traces; writes DIR/harness.json, a table, a figure, a page."""
    import torch
    from rich.console import Console

    from hesstheory import harness as room
    from hesstheory.harness import show
    from hesstheory.run.ranks import LostRank

    progress, first = Console(stderr=True), os.environ.get("RANK", "0") == "0"
    say = partial(progress.print, markup=False, highlight=False, soft_wrap=True)
    if out.exists() and not out.is_dir():
        misuse(f"--out {out}: that is a file; name a folder")
    check_writable("--out", out / "*", makes_folders=True)
    try:
        settings = room.Settings(
            model=model, data=data, device=device, batch=batch, probes=probes, dtype=dtype, steps=steps, seed=seed,
            width=width, classes=classes, activation=activation, label_noise=label_noise, parallel=parallel,
            root=None if root is None else str(root),
        )  # fmt: skip
        command = shlex.join(["hesstheory", *sys.argv[1:]])
        report = room.run(settings, out, resume=resume, command=command, say=say, patience=patience)
        if first:
            show.write(report, out)
    except RuntimeError as error:
        if not isinstance(
            error, LostRank | torch.OutOfMemoryError
        ) and "can't allocate memory" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        cure = (
            "" if isinstance(error, LostRank) else ": use a smaller --width, --batch or --classes"
        )
        misuse(f"{reason}{cure}")
    except (ValueError, OSError, MemoryError) as error:
        misuse(str(error))
    except KeyboardInterrupt:
        typer.echo(f"hesstheory: interrupted; --resume goes on from what is in {out}", err=True)
        raise typer.Exit(130) from None
    if first:
        console = Console()
        for line in show.lines(report):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(f"{out / 'index.html'}, {out / 'harness.json'}", markup=False, soft_wrap=True)
        console.print(show.conclusion(report), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if report["passed"] else 1)


def doctor() -> None:
    """Says what this machine has, what PyTorch may round, and whether known traces come out, which takes a second."""
    from rich.console import Console

    from hesstheory.harness import doctor as room

    console, facts = Console(), room.facts()
    for name, value in facts.items():
        console.print(f"{name:<26} {value}", markup=False, highlight=False, soft_wrap=True)
    checks = list(room.checks())
    for name, held, detail in checks:
        console.print(
            f"{'passed' if held else 'FAILED':<26} {name}: {detail}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    raise typer.Exit(0 if all(held for _, held, _ in checks) else 1)


def _print_costs(console: Any, found: dict[str, Any]) -> None:
    """One row per way; of the dense Hessian, time and memory."""
    from rich.table import Table

    title = f"{found['about']}: {found['num_params']:,} parameters, one gradient {1000 * found['gradient_seconds']:.3g} ms"
    columns = {
        "once": "once", "per_probe": "per probe", "worst_relative_spread_of_one_probe": "one probe",
        "work_to_1_percent": "to 1 %", "peak_in_training_steps": "memory",
        "seconds": "seconds", "gradients": "gradients", "times_ours": "times ours",
        "peak_in_matrices": "memory",
    }  # fmt: skip
    shown = [
        key for key in columns if any(way.get(key) is not None for way in found["ways"].values())
    ]
    caption = (
        "Work in gradients; one probe: its relative standard error in the worst layer; memory: peak above that of the "
        "problem, in training steps, or in dense matrices"
    )
    table = Table("way", *(columns[key] for key in shown), title=title, caption=caption)
    for name, way in found["ways"].items():
        mark = "" if way.get("judged_on", "every layer") == "every layer" else " (total only)"
        cells = ["" if way.get(key) is None else f"{way[key]:.3g}" for key in shown]
        table.add_row(name + mark, *cells, style="" if way["kind"] == "ours" else "dim")
    console.print(table)
    for name, why in found["absent"].items():
        console.print(f"{name} is absent: {why}", markup=False)


def _print_marks(console: Any, marks: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("mark", "limit", "measured", "met", title="Marks")
    for mark in marks:
        style = "green" if mark["met"] else "bold red"
        table.add_row(
            mark["mark"],
            f"{mark['limit']:g}",
            f"{mark['measured']:.3g}",
            f"[{style}]{mark['met']}[/]",
        )
    console.print(table)
