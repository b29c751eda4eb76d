"""`hesstheory check`: is an estimator right?"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesstheory.cli.edge import check_writable, interrupted, misuse, write

if TYPE_CHECKING:
    from hesstheory.conformance.results import CheckResult
    from hesstheory.estimators.probes import Probe

_STATUS_STYLE = {
    "passed": "green",
    "failed": "bold red",
    "xfailed": "cyan",
    "inconclusive": "yellow",
}
_VERDICTS = {
    0: "is right, as far as the checks above see",
    1: "is WRONG",
    3: "is not decidable at this budget",
}


def check(
    estimator: Annotated[
        str,
        typer.Argument(
            help="package.module:name, path/file.py:name, or `peers` for the scoreboard of "
            "libraries."
        ),
    ],
    profile: Annotated[
        str,
        typer.Option(help="smoke (10 s; not the spread, nor standard errors), ci (90 s) or full."),
    ] = "ci",
    xfails: Annotated[
        Path | None,
        typer.Option(
            help='TOML file: check = "reason" of an expected failure; for peers, a table for each.'
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results here.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit XML report here.")] = None,
    num_probes: Annotated[int, typer.Option(help="Probes per call of the estimator.")] = 32,
    only: Annotated[
        list[str] | None, typer.Option("--check", help="Only this check and its prerequisites.")
    ] = None,
    probe: Annotated[
        str, typer.Option(help="Distribution that the estimator declares: Rademacher, Gaussian, …")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of all random streams.")] = 0,
    vary_seed: Annotated[
        bool, typer.Option("--vary-seed", help="Draw a fresh seed; it is printed.")
    ] = False,
    peer: Annotated[
        list[str] | None, typer.Option(help="With `peers`: only this one, such as pyhessian.")
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds per check.", min=0.1)] = 300.0,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Run each check in a process that may hang or die.")
    ] = False,
) -> None:
    """Checks a trace estimator: is it right, and if not, which mistake does it look like?"""
    from hesstheory import conformance

    seed = secrets.randbits(31) if vary_seed else seed
    check_writable("--json", json_file)
    check_writable("--junit", junit)
    # An estimator may change the folder.
    json_file, junit = (path and path.absolute() for path in (json_file, junit))
    only = [conformance.full_name(name) for name in only or ()]
    how = f"profile {profile}, seed {seed}"
    try:
        if estimator == "peers":
            _refuse("peers", {"--junit": junit, "--probe": probe, "--isolate": isolate})
            board = conformance.scoreboard(
                profile,
                names=peer,
                num_probes=num_probes,
                seed=seed,
                time_limit=time_limit,
                checks=only or None,
                xfails=xfails,
                on_result=_print_dot,
            )
            raise typer.Exit(_print_peers(board, how, xfails, json_file))
        _refuse(estimator, {"--peer": peer})
        results = conformance.check_apart(
            estimator,
            profile,
            num_probes=num_probes,
            seed=seed,
            checks=only or None,
            probe=_probe(probe),
            expected_failed_checks=conformance.read_xfails(xfails) if xfails else None,
            time_limit=time_limit,
            isolate=isolate,
            on_result=_print_dot,
        )
    except conformance.Misuse as error:
        misuse(str(error))
    except KeyboardInterrupt:
        interrupted()
    raise typer.Exit(_report(estimator, results, only, how, json_file, junit))


def _refuse(estimator: str, given: Mapping[str, object]) -> None:
    """Options that would be ignored are a misuse."""
    for option, value in given.items():
        if value:
            misuse(
                f"{option} does not go with `check {estimator}`: leave it out, or see hesstheory "
                "check --help"
            )


def _probe(name: str) -> Probe | None:
    """The distribution of this name, none where there is none."""
    if not name:
        return None
    from hesstheory import estimators

    distributions = (
        estimators.Rademacher,
        estimators.Gaussian,
        estimators.Uniform,
        estimators.Sphere,
    )
    known: dict[str, type[Probe]] = {cls.__name__: cls for cls in distributions}
    if name not in known:
        misuse(f"--probe {name}: choose from {', '.join(known)}")
    return known[name]()


def _styled(status: str, width: int = 0) -> str:
    """A status in its colour, filled up with spaces."""
    return f"[{_STATUS_STYLE.get(status, 'dim')}]{status:<{width}}[/]"


def _print_dot(result: CheckResult) -> None:
    """A line of progress for a decided check."""
    from rich.console import Console

    line = f"{_styled(result.status, 12)} {result.check} [dim]{result.seconds:.1f} s[/]"
    Console(stderr=True).print(line)


# --- one estimator --------------------------------------------------------------------------------


def _report(
    estimator: str,
    results: Sequence[CheckResult],
    only: Sequence[str],
    how: str,
    json_file: Path | None,
    junit: Path | None,
) -> int:
    """Prints and writes the results; the exit code."""
    from hesstheory import conformance

    code = conformance.exit_code(results)
    if not code and any(r.check in only and r.status == "skipped" for r in results):
        code = 3  # what was asked for was not decided
    _print_table(estimator, results, how)
    for result in results:
        _print_result(result, partial=bool(only))
    _print_verdict(estimator, results, code, how, partial=bool(only))
    if json_file is not None:
        found = conformance.to_json(estimator, results)
        write(json_file, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    if junit is not None:
        write(junit, conformance.to_junit(estimator, results))
    return code


def _print_table(estimator: str, results: Sequence[CheckResult], how: str) -> None:
    """Every check with its question and its status."""
    from rich.console import Console
    from rich.table import Table

    from hesstheory.conformance.checks import CHECKS

    table = Table("check", "question", "status", title=f"{estimator}, {how}")
    for result in results:
        question = CHECKS[result.check].question
        table.add_row(result.check.removeprefix("check_"), question, _styled(result.status))
    Console().print(table)


def _print_result(result: CheckResult, *, partial: bool) -> None:
    """What a check that speaks against the estimator saw, and which mistakes look like it."""
    from rich.console import Console

    from hesstheory.conformance.kill_matrix import sin_of

    console = Console()
    if result.status in ("failed", "inconclusive"):
        console.print(f"{result.check}: {result.detail}", style="red", markup=False)
        for suspect in result.suspects:
            console.print(f"  looks like {suspect}: {sin_of(suspect)}", markup=False)
        console.print(f"  {result.reproduce}", style="dim", markup=False, soft_wrap=True)
    elif result.status == "xfailed" or (partial and result.status == "skipped"):
        console.print(f"{result.check} {result.status}: {result.detail}", markup=False)


def _print_verdict(
    estimator: str, results: Sequence[CheckResult], code: int, how: str, *, partial: bool
) -> None:
    """The last lines: what all checks together say, and what was not asked."""
    from rich.console import Console

    from hesstheory.conformance.checks import CHECKS
    from hesstheory.evidence.budget import SUITE_ALPHA

    console = Console()
    verdict = _VERDICTS[code]
    stale = [result.check for result in results if result.stale]
    if stale and all(result.stale for result in results if result.status == "failed"):
        verdict = f"does better than expected: remove {', '.join(stale)} from the expected failures"
    if partial and code == 0:
        console.print("the chosen checks found nothing; the others were not asked")
    else:
        expected = sum(result.status == "xfailed" for result in results)
        failures = f", {expected} failures expected" if expected else ""
        level = f"nominal level of the whole run {SUITE_ALPHA:.0e}".replace("e-0", "e-")
        console.print(f"{estimator} {verdict}{failures} ({how}); {level}", markup=False)
    others = len(CHECKS) - len(results)
    if not partial and others:
        console.print(f"{others} checks, of the spread and of errors, belong to --profile ci")


# --- peers ----------------------------------------------------------------------------------------


def _print_peers(
    board: Mapping[str, Sequence[CheckResult]],
    how: str,
    xfails: Path | None,
    json_file: Path | None,
) -> int:
    """The scoreboard; 1 where a library does something else than was expected."""
    from rich.console import Console

    from hesstheory.conformance.subjects import peers

    versions = peers.installed()
    if not versions:
        misuse(
            "none of the peer libraries is installed: pip install -c constraints.txt "
            "'hesstheory[peers]'"
        )
    if not board:
        misuse(f"no adapter to {', '.join(versions)}: pip install -c constraints.txt -e '.[peers]'")
    _print_board(board, f"{', '.join(f'{name} {v}' for name, v in versions.items())}; {how}")
    console = Console()
    outcomes = [(library, result) for library, results in board.items() for result in results]
    for library, result in outcomes:
        if result.status in ("failed", "xfailed"):
            console.print(f"{library}: {result.check}: {result.detail}", markup=False)
            console.print(f"  {result.reproduce}", style="dim", markup=False, soft_wrap=True)
    surprises = [f"{library}: {r.check}" for library, r in outcomes if r.status == "failed"]
    if xfails is not None:
        expected = sum(result.status == "xfailed" for _, result in outcomes)
        console.print(f"{expected} failures as expected, {len(surprises)} results not")
        for surprise in surprises:
            console.print(surprise, style="red", markup=False)
    if json_file is not None:
        write(json_file, _board_as_json(board, versions))
    return int(xfails is not None and bool(surprises))


def _print_board(board: Mapping[str, Sequence[CheckResult]], title: str) -> None:
    """A row for each check, a column for each library."""
    from rich.console import Console
    from rich.table import Table

    table = Table("check", *board, title=title)
    statuses = {name: {r.check: r.status for r in results} for name, results in board.items()}
    for check in dict.fromkeys(check for found in statuses.values() for check in found):
        row = [_styled(found.get(check, "")) for found in statuses.values()]
        table.add_row(check.removeprefix("check_"), *row)
    Console().print(table)


def _board_as_json(board: Mapping[str, Sequence[CheckResult]], versions: Mapping[str, str]) -> str:
    """{"versions": …, "peers": {name: [{"check", "status", "detail", "reproduce"}]}}."""
    keys = ("check", "status", "detail", "reproduce")
    listed = {
        name: [{key: getattr(result, key) for key in keys} for result in results]
        for name, results in board.items()
    }
    content = {"versions": versions, "peers": listed}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
