"""`hesstheory check` and `hesstheory mutants`: is an estimator right, and would a wrong one be noticed?"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from hesstheory.cli.edge import check_writable, interrupted, misuse, write

_STATUS_STYLE = {
    "passed": "green",
    "failed": "bold red",
    "xfailed": "cyan",
    "inconclusive": "yellow",
}


def check(
    estimator: Annotated[
        str,
        typer.Argument(
            help="package.module:name, path/file.py:name, or `peers` for the scoreboard of libraries."
        ),
    ],
    profile: Annotated[
        str,
        typer.Option(help="smoke (10 s; not the spread, nor standard errors), ci (90 s) or full."),
    ] = "ci",
    xfails: Annotated[
        Path | None,
        typer.Option(
            help='TOML file: check = "reason" of an expected failure; of peers, in a table for each.'
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

    if vary_seed:
        seed = secrets.randbits(31)
    check_writable("--json", json_file)
    check_writable("--junit", junit)
    json_file, junit = (
        path and path.absolute() for path in (json_file, junit)
    )  # an estimator may change the folder
    only = [conformance.full_name(name) for name in only or ()]
    if estimator == "peers":
        _refuse("peers", {"--junit": junit, "--probe": probe, "--isolate": isolate})
        options = {"profile": profile, "num_probes": num_probes, "seed": seed, "time_limit": time_limit, "names": peer,
                   "checks": only or None}  # fmt: skip
        raise typer.Exit(_print_peers(options, xfails, json_file))
    _refuse(estimator, {"--peer": peer})
    declared = _probe(probe)
    try:
        results = conformance.check_apart(
            estimator, profile, num_probes=num_probes, seed=seed, checks=only or None, probe=declared,
            expected_failed_checks=conformance.read_xfails(xfails) if xfails else None, time_limit=time_limit,
            isolate=isolate, on_result=_Dots(),
        )  # fmt: skip
    except conformance.Misuse as error:
        misuse(str(error))
    except KeyboardInterrupt:
        interrupted()
    code = conformance.exit_code(results)
    if not code and any(result.check in only and result.status == "skipped" for result in results):
        code = 3
    _print_results(estimator, results, code, f"profile {profile}, seed {seed}", partial=bool(only))
    if json_file is not None:
        write(
            json_file,
            json.dumps(conformance.to_json(estimator, results), indent=2, ensure_ascii=False)
            + "\n",
        )
    if junit is not None:
        write(junit, conformance.to_junit(estimator, results))
    raise typer.Exit(code)


def _refuse(estimator: str, given: dict[str, Any]) -> None:
    """Options that would be ignored are a misuse."""
    for option, value in given.items():
        if value:
            misuse(
                f"{option} does not go with `check {estimator}`: leave it out, or see hesstheory check --help"
            )


def _probe(name: str) -> Any:
    if not name:
        return None
    from hesstheory import estimators

    known = {cls.__name__: cls for cls in (estimators.Rademacher, estimators.Gaussian, estimators.Uniform,
                                           estimators.Sphere)}  # fmt: skip
    if name not in known:
        misuse(f"--probe {name}: choose from {', '.join(known)}")
    return known[name]()


class _Dots:
    """A line of progress per decided check."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    def __call__(self, result: Any) -> None:
        style = _STATUS_STYLE.get(result.status, "dim")
        self.console.print(
            f"[{style}]{result.status:<12}[/] {result.check} [dim]{result.seconds:.1f} s[/]"
        )


def _print_results(estimator: str, results: Any, code: int, how: str, *, partial: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from hesstheory.conformance.checks import CHECKS
    from hesstheory.conformance.kill_matrix import sin_of

    console = Console()
    table = Table("check", "question", "status", title=f"{estimator}, {how}")
    for result in results:
        style = _STATUS_STYLE.get(result.status, "dim")
        table.add_row(
            result.check.removeprefix("check_"),
            CHECKS[result.check].question,
            f"[{style}]{result.status}[/]",
        )
    console.print(table)
    for result in results:
        if result.status in ("failed", "inconclusive"):
            console.print(f"{result.check}: {result.detail}", style="red", markup=False)
            for suspect in result.suspects:
                console.print(f"  looks like {suspect}: {sin_of(suspect)}", markup=False)
            console.print(f"  {result.reproduce}", style="dim", markup=False, soft_wrap=True)
        elif result.status == "xfailed" or (partial and result.status == "skipped"):
            console.print(f"{result.check} {result.status}: {result.detail}", markup=False)
    verdict = {
        0: "is right, as far as the checks above see",
        1: "is WRONG",
        3: "is not decidable at this budget",
    }[code]
    stale = [result.check for result in results if result.stale]
    if stale and all(result.stale for result in results if result.status == "failed"):
        verdict = f"does better than expected: remove {', '.join(stale)} from the expected failures"
    if partial and code == 0:
        console.print("the chosen checks found nothing; the others were not asked")
    else:
        expected = sum(result.status == "xfailed" for result in results)
        failures = f", {expected} failures expected" if expected else ""
        console.print(
            f"{estimator} {verdict}{failures} ({how}); nominal level of the whole run 1e-6",
            markup=False,
        )
    if not partial and len(results) < len(CHECKS):
        console.print(
            f"{len(CHECKS) - len(results)} checks, of the spread and of errors, belong to --profile ci"
        )


def _print_peers(options: dict[str, Any], xfails: Path | None, json_file: Path | None) -> int:
    """The scoreboard. Given what is expected, 1 where a library fails something else, or passes it."""
    from rich.console import Console
    from rich.table import Table

    from hesstheory.conformance.contract import Misuse
    from hesstheory.conformance.subjects import peers
    from hesstheory.conformance.suite import scoreboard

    versions = peers.installed()
    if not versions:
        misuse(
            "none of the peer libraries is installed: pip install -c constraints.txt 'hesstheory[peers]'"
        )
    try:
        board = scoreboard(**options, xfails=xfails, on_result=_Dots())
    except Misuse as error:
        misuse(str(error))
    except KeyboardInterrupt:
        interrupted()
    if not board:
        misuse(f"no adapter to {', '.join(versions)}: pip install -c constraints.txt -e '.[peers]'")
    title = ", ".join(f"{name} {version}" for name, version in versions.items())
    table = Table(
        "check", *board, title=f"{title}; profile {options['profile']}, seed {options['seed']}"
    )
    checks = dict.fromkeys(result.check for results in board.values() for result in results)
    for name in checks:
        row = [
            next((r.status for r in results if r.check == name), "") for results in board.values()
        ]
        table.add_row(
            name.removeprefix("check_"), *(f"[{_STATUS_STYLE.get(s, 'dim')}]{s}[/]" for s in row)
        )
    console = Console()
    console.print(table)
    outcomes = [(library, result) for library, results in board.items() for result in results]
    for library, result in outcomes:
        if result.status in ("failed", "xfailed"):
            console.print(f"{library}: {result.check}: {result.detail}", markup=False)
            console.print(f"  {result.reproduce}", style="dim", markup=False, soft_wrap=True)
    surprises = [
        f"{library}: {result.check}" for library, result in outcomes if result.status == "failed"
    ]
    if xfails is not None:
        expected = sum(result.status == "xfailed" for _, result in outcomes)
        console.print(
            f"{expected} failures as expected, {len(surprises)} results not", markup=False
        )
        for surprise in surprises:
            console.print(surprise, style="red", markup=False)
    if json_file is not None:
        keys = ("check", "status", "detail", "reproduce")
        listed = {
            name: [{key: getattr(r, key) for key in keys} for r in results]
            for name, results in board.items()
        }
        write(
            json_file,
            json.dumps({"versions": versions, "peers": listed}, indent=2, ensure_ascii=False)
            + "\n",
        )
    return int(xfails is not None and bool(surprises))


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
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the matrix here.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder that receives figures/kill_matrix.*.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 means one per core.", min=0)] = 0,
    all_checks: Annotated[
        bool, typer.Option("--all-checks", help="Ask all checks, also of what is noticed.")
    ] = False,
    write_signatures: Annotated[
        bool, typer.Option(help="Store the patterns that suspects are compared with.")
    ] = False,
) -> None:
    """Runs the checks on known wrong estimators: which check notices which, and which checks suffice."""
    from rich.console import Console

    from hesstheory.conformance import kill_matrix

    if vary_seed:
        seed = secrets.randbits(31)
    check_writable("--json", json_file)
    check_writable("--out", out and out / "figures" / "*", makes_folders=True)
    progress = Console(stderr=True)
    try:
        matrix = kill_matrix.kill_matrix(
            names or None, profile=profile, num_probes=num_probes, seed=seed, workers=workers or os.cpu_count() or 1,
            all_checks=all_checks, on_result=lambda killed, done, total: progress.print(
                f"{done}/{total} {killed.name} [dim]{killed.seconds:.0f} s[/]: "
                + (", ".join(name.removeprefix("check_") for name in killed.killed_by) or "[bold red]ALIVE[/]")
            ),
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        misuse(error.args[0] if isinstance(error, KeyError) else str(error))
    except KeyboardInterrupt:
        interrupted()
    alive = [killed.name for killed in matrix if not killed.killed_by]
    summary = kill_matrix.to_json(matrix)
    console = Console()
    for killed in matrix:
        noticed = ", ".join(name.removeprefix("check_") for name in killed.killed_by) or "NOTHING"
        console.print(f"{killed.name}: {killed.sin}\n  noticed by {noticed}", markup=False)
    console.print(
        f"{len(matrix) - len(alive)} of {len(matrix)} mutants killed, seed {seed}", markup=False
    )
    smallest = summary["smallest_set"]
    assert isinstance(smallest, list)
    console.print(
        f"the smallest set of checks that kills as many: {', '.join(smallest)}", markup=False
    )
    if json_file is not None:
        write(json_file, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    if write_signatures:
        kill_matrix.write_signatures(matrix)
    if out is not None:
        from hesstheory.show import figures

        figures.draw_kill_matrix(kill_matrix.records(matrix), out / "figures")
    raise typer.Exit(1 if alive else 0)
