"""`hesstheory mutants`: would a wrong estimator be noticed?"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesstheory.cli.edge import check_writable, interrupted, misuse, write

if TYPE_CHECKING:
    from hesstheory.conformance.kill_matrix import Killed


def mutants(
    names: Annotated[
        list[str] | None, typer.Argument(help="Wrong estimators to try; all by default.")
    ] = None,
    profile: Annotated[str, typer.Option(help="smoke, ci or full.")] = "ci",
    num_probes: Annotated[int, typer.Option(help="Probes per call.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of all random streams.")] = 0,
    vary_seed: Annotated[
        bool, typer.Option("--vary-seed", help="Draw a fresh seed; it is printed.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the matrix here. Default: OUT/reports/kill_matrix.json"),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder that receives figures/kill_matrix.* and the matrix."),
    ] = Path("runs/mutants"),
    workers: Annotated[int, typer.Option(help="Processes; 0 means one per core.", min=0)] = 0,
    all_checks: Annotated[
        bool, typer.Option("--all-checks", help="Ask all checks, also of what is noticed.")
    ] = False,
    write_signatures: Annotated[
        bool, typer.Option(help="Store the patterns that suspects are compared with.")
    ] = False,
) -> None:
    """Runs the checks on known wrong estimators: which check notices which, and which suffice."""
    from hesstheory.conformance import kill_matrix

    seed = secrets.randbits(31) if vary_seed else seed
    check_writable("--json", json_file)
    check_writable("--out", out / "figures" / "*", makes_folders=True)
    try:
        matrix = kill_matrix.kill_matrix(
            names or None,
            profile=profile,
            num_probes=num_probes,
            seed=seed,
            workers=workers or os.cpu_count() or 1,
            all_checks=all_checks,
            on_result=_print_progress,
        )
    except (KeyError, ValueError) as error:
        misuse(error.args[0] if isinstance(error, KeyError) else str(error))
    except KeyboardInterrupt:
        interrupted()
    _print_matrix(matrix, seed)
    _write_matrix(matrix, out, json_file)
    if write_signatures:
        kill_matrix.write_signatures(matrix)
    raise typer.Exit(0 if all(killed.killed_by for killed in matrix) else 1)


def _noticed(killed: Killed, nothing: str) -> str:
    """The checks that noticed a mutant, by their short names."""
    return ", ".join(name.removeprefix("check_") for name in killed.killed_by) or nothing


def _print_progress(killed: Killed, done: int, total: int) -> None:
    """A line for a mutant."""
    from rich.console import Console

    noticed = _noticed(killed, "[bold red]ALIVE[/]")
    line = f"{done}/{total} {killed.name} [dim]{killed.seconds:.0f} s[/]: {noticed}"
    Console(stderr=True).print(line)


def _print_matrix(matrix: Sequence[Killed], seed: int) -> None:
    """Every mutant with its sin and what noticed it, and the fewest checks that notice as many."""
    from rich.console import Console

    from hesstheory.conformance.kill_matrix import smallest_set

    console = Console()
    for killed in matrix:
        noticed = _noticed(killed, "NOTHING")
        console.print(f"{killed.name}: {killed.sin}\n  noticed by {noticed}", markup=False)
    dead = sum(bool(killed.killed_by) for killed in matrix)
    console.print(f"{dead} of {len(matrix)} mutants killed, seed {seed}", markup=False)
    smallest = ", ".join(smallest_set({killed.name: killed.killed_by for killed in matrix}))
    console.print(f"the smallest set of checks that kills as many: {smallest}", markup=False)


def _write_matrix(matrix: Sequence[Killed], out: Path, json_file: Path | None) -> None:
    """The matrix as JSON, and its figure."""
    from hesstheory.conformance import kill_matrix
    from hesstheory.show.gallery import draw_kill_matrix

    summary = json.dumps(kill_matrix.to_json(matrix), indent=2, ensure_ascii=False) + "\n"
    path = json_file or out / "reports" / "kill_matrix.json"
    write(path, summary)
    rows = kill_matrix.records(matrix)
    files = draw_kill_matrix(rows).files if rows else {}
    for name, content in files.items():
        write(out / "figures" / name, content)
    typer.echo(
        f"written: {', '.join(map(str, [path, *(out / 'figures' / name for name in files)]))}"
    )
