"""`hesstheory validate`: decides claims, or says what the ledger knows of them."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesstheory.cli.edge import check_writable, misuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

    from hesstheory.claims.course import Run
    from hesstheory.claims.ledger import Record
    from hesstheory.claims.status import Standing

VERDICT_STYLE = {"HOLDS": "green", "CONDITIONAL": "cyan", "REFUTED": "magenta"}

OUT = Path("runs/validate")


# What only a run uses, by the names of the parameters below.
_OF_RUNS = ("profile", "vary_seed", "seed", "out", "workers")


def validate(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Claims to decide, such as T1 or T2.a; all by default."),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(help="smoke (deterministic, seconds), ci (2 minutes) or full (20 minutes)."),
    ] = "ci",
    vary_seed: Annotated[
        bool, typer.Option("--vary-seed", help="Draw a fresh seed; it is printed.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of all random streams.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write a machine-readable summary here.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder that receives reports/ and figures/. `--out .` renews those of this "
            "folder, such as the ones under version control."
        ),
    ] = OUT,
    workers: Annotated[int, typer.Option(help="Processes; 0 means one per core.", min=0)] = 0,
    status: Annotated[
        bool,
        typer.Option("--status", help="Run nothing: print the last verdicts and which are stale."),
    ] = False,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="With --status: the ledger to read; by default the newest of "
            "runs/validate/reports/ledger.jsonl and reports/ledger.jsonl."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --status: exit with 1 where a verdict is stale.")
    ] = False,
) -> None:
    """Decides the claims and writes reports/ledger.jsonl, reports/index.html and figures/."""
    check_writable("--json", json_file)
    say_what_is_blocked()
    if status:
        _check_of_status(context)
        _print_status(names or [], ledger, json_file, strict)
    if strict or ledger is not None:
        option = "--strict" if strict else "--ledger"
        misuse(f"{option} belongs to --status: add that, or name the folder of a run with --out")
    for name in ("reports/ledger.jsonl", "reports/index.html", "figures/*"):
        check_writable("--out", out / name, makes_folders=True)
    run, page = _validated(
        names or [],
        profile,
        secrets.randbits(31) if vary_seed else seed,
        out,
        1 if profile == "smoke" else workers or os.cpu_count() or 1,
        json_file,
    )
    _print_summary(run, page, out)
    raise typer.Exit(run.exit_code)


def _check_of_status(context: typer.Context) -> None:
    """Refuses options that --status would pass over."""
    for name in _OF_RUNS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            misuse(
                f"--{name.replace('_', '-')} belongs to a run, and --status runs nothing: leave "
                "one of them out; --ledger names the file to read"
            )


def _validated(
    names: list[str], profile: str, seed: int, out: Path, workers: int, json_file: Path | None
) -> tuple[Run, Path]:
    """Decides the claims and writes the report and the summary; what goes wrong is misuse."""
    from hesstheory.cli.report import write_report
    from hesstheory.run.workers import started

    # Importing the claims takes five seconds: all processes do it at once. One claim needs no pool.
    with started(_import_claims, 1 if names else workers), refusals():
        _import_claims()
    from hesstheory.claims import course

    with refusals(), Progress(f"profile {profile}, seed {seed}") as progress:
        run = course.validate(
            names,
            profile=profile,
            seed=seed,
            ledger=out / "reports" / "ledger.jsonl",
            workers=workers,
            command=shlex.join(["hesstheory", *sys.argv[1:]]),
            on_result=progress.advance,
        )
    with refusals():
        page, shown = write_report(run.records, out, workers)
        if json_file is not None:
            _write_json(json_file, run.to_json(shown))
    return run, page


def say_what_is_blocked() -> None:
    """Names claims and modules that cannot be decided, also those that are not asked for."""
    from hesstheory.claims.registry import catalogue

    for c in catalogue().values():
        if c.blocked:
            typer.echo(f"hesstheory: {c.blocked}", err=True)


def _import_claims() -> None:
    """Imports every claim, in whatever process this is."""
    from hesstheory.claims.registry import catalogue

    catalogue()


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what the library refuses, and files that cannot be read or written, into misuse."""
    try:
        yield
    except KeyError as error:  # as text it would be quoted
        misuse(str(error.args[0]))
    except (ValueError, OSError) as error:
        misuse(str(error))


def _write_json(path: Path, summary: Mapping[str, object]) -> None:
    from hesstheory.run.files import write_atomically

    write_atomically(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


class Progress:
    """A line per decided claim, and a bar with the time left."""

    def __init__(self, title: str) -> None:
        from rich import progress
        from rich.console import Console

        self.bar = progress.Progress(
            progress.TextColumn(f"deciding, {title}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.bar.add_task("claims", total=None)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self, record: Record, done: int, total: int) -> None:
        """Shows one more claim as decided."""
        from rich.markup import escape

        self.bar.update(self.task, completed=done, total=total)
        expected = record["verdict"] == record["expected"]
        surprise = "" if expected else f" (expected {record['expected']})"
        verdict = f"[{_style(record)}]{record['verdict']}{surprise}[/]"
        self.bar.console.print(
            f"{record['id']:<6} {verdict} {escape(record['subject'])}: {escape(record['detail'])} "
            f"[dim]{record['seconds']:.1f} s[/]"
        )


def _style(record: Record) -> str:
    """Colour of a verdict; one that is not the expected one stands out."""
    if record["verdict"] != record["expected"]:
        return "bold red"
    return VERDICT_STYLE.get(record["verdict"], "yellow")


# Columns of the table of a run: a heading, and what stands under it for a record.
_COLUMNS: dict[str, Callable[[Record], str]] = {
    "claim": lambda record: record["id"],
    "verdict": lambda record: f"[{_style(record)}]{record['verdict']}[/]",
    "expected": lambda record: record["expected"],
    "evidence": lambda record: record["kind"],
    "checks": lambda record: str(len(record["checks"])),
    "mutants rejected": lambda record: (
        f"{sum(mutant['rejected'] for mutant in record['mutants'])}/{len(record['mutants'])}"
    ),
    "seconds": lambda record: f"{record['seconds']:.1f}",
}


def _print_summary(run: Run, page: Path, out: Path) -> None:
    """The table of verdicts, what was not expected, and where the report lies."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(*_COLUMNS, title="Verdicts")
    for record in run.claims:
        table.add_row(*(cell(record) for cell in _COLUMNS.values()))
    console.print(table)
    for record in run.surprises:
        found = f"expected {record['expected']}, found {record['verdict']}: {record['detail']}"
        text = f"{record['id']}: {found}\n  {record['reproduce']}"
        console.print(text, style="red", markup=False)
    console.print(_counts(run, page))
    if out.resolve() == Path.cwd():
        console.print(
            "Renewed in this folder: reports/index.html and figures/; "
            "the run was appended to reports/ledger.jsonl."
        )


def _counts(run: Run, page: Path) -> str:
    """One line for the whole run."""
    kinds = [check["kind"] for record in run.claims for check in record["checks"]]
    deterministic = sum(kind in ("symbolic", "exact") for kind in kinds)
    return (
        f"seed {run.records[0]['seed']}: {len(run.claims)} claims, "
        f"{len(run.surprises)} not as expected; {run.records_run} checks, {deterministic} of them "
        f"deterministic; a false red has probability at most {run.suite_alpha:g}. Report: {page}"
    )


def _print_status(
    names: list[str], ledger: Path | None, json_file: Path | None, strict: bool
) -> None:
    """Prints the last verdict of every claim and ends the command."""
    from hesstheory.claims import status
    from hesstheory.evidence.checks import Verdict

    if ledger is not None and not ledger.is_file():
        misuse(f"--ledger {ledger}: there is no such file; name one that a run has written")
    ledger = ledger or status.newest_ledger()
    with refusals():
        found = status.standings(ledger, names)
    if json_file is not None:
        _write_json(json_file, status.to_json(found))
    _print_standings(found, ledger)
    is_stale = any(standing.now is Verdict.STALE for standing in found)
    raise typer.Exit(1 if strict and is_stale else 0)


def _print_standings(found: Sequence[Standing], ledger: Path | None) -> None:
    """A row a claim and one line of counts."""
    from rich.console import Console
    from rich.table import Table

    from hesstheory.claims.status import counts

    table = Table("claim", "now", "last verdict", "expected", "profile", "decided", title="Status")
    for standing in found:
        style = VERDICT_STYLE.get(standing.now, "yellow")
        if standing.last not in (None, standing.expected):
            style = "bold red"
        now = f"[{style}]{standing.now}[/]"
        last = standing.last or ""
        table.add_row(
            standing.id, now, last, standing.expected, standing.profile, standing.time[:16]
        )
    console = Console()
    console.print(table)
    numbers = ", ".join(f"{number} {verdict}" for verdict, number in counts(found).items())
    where = f"Ledger: {ledger}" if ledger else "No ledger yet: hesstheory validate writes one."
    console.print(f"{len(found)} claims: {numbers}. {where}")
