"""`hesstheory claim`: what is believed, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hesstheory.cli.validate import VERDICT_STYLE, refusals, say_what_is_blocked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hesstheory.claims.registry import Claim

claim = typer.Typer(no_args_is_help=True, help="The registered claims.")


@claim.callback()
def doors() -> None:
    """The registered claims."""


@claim.command("list")
def list_claims(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Claims to list, such as T1 or T2.a; all by default."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the catalogue as a page in Markdown.")
    ] = False,
) -> None:
    """Lists the claims with what they rest on and the verdict that is expected.

    Those that cannot be decided are named on stderr alone; the exit code is 3 then.
    """
    from hesstheory.claims import listing
    from hesstheory.claims.registry import catalogue, select

    say_what_is_blocked()
    with refusals():
        claims = catalogue()
        named = [claims[id] for id in select(names or [], claims)]
    chosen = [c for c in named if not c.blocked]
    if markdown:
        typer.echo(listing.markdown(chosen), nl=False)
    else:
        _print_table(chosen)
    if len(chosen) < len(named):
        raise typer.Exit(3)


def _print_table(claims: Sequence[Claim]) -> None:
    """A row a claim, for the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("claim", "subject", "expected", "rests on", "profile", "mutants", title="Claims")
    for c in claims:
        expected = f"[{VERDICT_STYLE.get(c.expected, 'yellow')}]{c.expected}[/]"
        rests_on = ", ".join(c.rests_on)
        table.add_row(c.id, c.title, expected, rests_on, c.profile, str(len(c.mutants)))
    console = Console()
    console.print(table)
    console.print(f"{len(claims)} claims.")
