"""The command line: thin doors to the library."""

from __future__ import annotations

import typer

from hesstheory.cli.check import check
from hesstheory.cli.claim import claim
from hesstheory.cli.measure import bench, doctor, harness
from hesstheory.cli.mutants import mutants
from hesstheory.cli.study import ANY_OPTIONS, study
from hesstheory.cli.validate import validate

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Decides claims about stochastic Hessian traces with evidence. Exit codes: 0 right, "
    "1 wrong, 2 misuse, 3 not decidable at this budget.",
)


@app.callback()
def doors() -> None:
    """hesstheory: evidence about stochastic Hessian traces."""


for command in (validate, check, mutants, bench, harness, doctor):
    app.command()(command)
app.command(context_settings=ANY_OPTIONS)(study)
app.add_typer(claim, name="claim")


def main() -> None:
    """Entry point of the `hesstheory` command."""
    app()
