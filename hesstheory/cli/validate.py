"""`hesstheory validate`: decides claims."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hesstheory.cli.edge import check_writable, misuse

_VERDICT_STYLE = {"HOLDS": "green", "CONDITIONAL": "cyan", "REFUTED": "magenta"}


def validate(
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
    out: Annotated[Path, typer.Option(help="Folder that receives reports/ and figures/.")] = Path(),
    workers: Annotated[int, typer.Option(help="Processes; 0 means one per core.", min=0)] = 0,
) -> None:
    """Decides the claims and writes reports/ledger.jsonl, reports/index.html and figures/."""
    from hesstheory import claims
    from hesstheory.cli.report import write_report
    from hesstheory.run.files import write_atomically

    if vary_seed:
        seed = secrets.randbits(31)
    ledger, page = out / "reports" / "ledger.jsonl", out / "reports" / "index.html"
    check_writable("--json", json_file)
    for path in (ledger, page, out / "figures" / "*"):
        check_writable("--out", path, makes_folders=True)
    try:
        with _Progress(f"profile {profile}, seed {seed}") as progress:
            run = claims.validate(
                names or (),
                profile=profile,
                seed=seed,
                ledger=ledger,
                workers=1 if profile == "smoke" else workers or os.cpu_count() or 1,
                command=shlex.join(["hesstheory", *sys.argv[1:]]),
                on_result=progress.advance,
            )
        page, shown = write_report(run.records, out)
        if json_file is not None:
            write_atomically(
                json_file, json.dumps(run.to_json(shown), indent=2, ensure_ascii=False) + "\n"
            )
    except (KeyError, ValueError, OSError) as error:
        misuse(error.args[0] if isinstance(error, KeyError) else str(error))
    _print_summary(run, page)
    raise typer.Exit(run.exit_code)


class _Progress:
    """A line per decided claim, and a bar with the time left."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn(f"deciding, {title}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("claims", total=None)

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self, record: dict[str, Any], done: int, total: int) -> None:
        """Shows one more claim as decided."""
        from rich.markup import escape

        self.bar.update(self.task, completed=done, total=total)
        expected = record["verdict"] == record["expected"]
        style = _VERDICT_STYLE.get(record["verdict"], "yellow") if expected else "bold red"
        surprise = "" if expected else f" (expected {record['expected']})"
        self.bar.console.print(
            f"{record['id']:<6} [{style}]{record['verdict']}{surprise}[/] {escape(record['subject'])}: "
            f"{escape(record['detail'])} [dim]{record['seconds']:.1f} s[/]"
        )


def _print_summary(run: Any, page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        "claim",
        "verdict",
        "expected",
        "evidence",
        "checks",
        "mutants rejected",
        "seconds",
        title="Verdicts",
    )
    for record in run.claims:
        rejected = sum(mutant["rejected"] for mutant in record["mutants"])
        same = record["verdict"] == record["expected"]
        style = _VERDICT_STYLE.get(record["verdict"], "yellow") if same else "bold red"
        table.add_row(
            record["id"], f"[{style}]{record['verdict']}[/]", record["expected"], record["kind"],
            str(len(record["checks"])), f"{rejected}/{len(record['mutants'])}", f"{record['seconds']:.1f}",
        )  # fmt: skip
    console.print(table)
    for record in run.surprises:
        console.print(
            f"{record['id']}: expected {record['expected']}, found {record['verdict']}: {record['detail']}\n"
            f"  {record['reproduce']}",
            style="red", markup=False,
        )  # fmt: skip
    deterministic = sum(
        check["kind"] in ("symbolic", "exact")
        for record in run.claims
        for check in record["checks"]
    )
    console.print(
        f"seed {run.records[0]['seed']}: {len(run.claims)} claims, {len(run.surprises)} not as expected; "
        f"{run.records_run} checks, {deterministic} of them deterministic; a false red has probability at most "
        f"{run.suite_alpha:g}. Report: {page}"
    )
