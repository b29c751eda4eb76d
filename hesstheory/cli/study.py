"""`hesstheory study`: what many runs say, and which of their records are stale."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from hesstheory.cli.edge import misuse

_LIST = "list"

# The options of a study are its own, so that the study reads all of them, `--help` included.
ANY_OPTIONS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": list[str](),
}


def study(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="A study; `list` and no name list them.", show_default=False)
    ] = _LIST,
) -> None:
    """Runs a study, or lists all with the state of their records in reports/.

    `hesstheory study NAME --help` shows the options of a study. `--status` says whether its record
    is stale, `--restamp` renews its fingerprint where a spot check reproduces its numbers.
    """
    if name in ("--help", "-h"):
        typer.echo(context.get_help())
        return
    if name == _LIST:
        if context.args:
            misuse(f"study list takes no {context.args[0]}: name a study to give it options")
        _list_studies()
        return
    raise typer.Exit(_called(name, context.args))


def _called(name: str, arguments: list[str]) -> int:
    """The exit code of a study."""
    from hesstheory.studies import registry
    from hesstheory.studies.study import call_study

    try:
        chosen = registry.study(name)
    except KeyError as error:
        misuse(str(error.args[0]))
    try:
        return call_study(chosen, arguments)
    except KeyboardInterrupt:
        typer.echo("hesstheory: interrupted; called again, the study goes on", err=True)
        raise typer.Exit(130) from None


def _list_studies() -> None:
    """A row for each study: its question, and what is known of its records."""
    from rich.console import Console
    from rich.table import Table

    from hesstheory.studies import registry
    from hesstheory.studies.records import State

    table = Table("study", "question", "records in reports/", title="Studies")
    for name in registry.NAMES:
        chosen = registry.study(name)
        counts = Counter(map(str, chosen.states(Path()).values()))
        states = ", ".join(
            state if count == 1 else f"{count} {state}" for state, count in counts.items()
        )
        note = "" if chosen.spot_check else " (times)"
        table.add_row(name, chosen.question, f"{states or State.ABSENT}{note}")
    Console().print(table)
