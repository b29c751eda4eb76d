"""The command line: thin doors to the library."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Decides claims about stochastic Hessian traces with evidence. Exit codes: 0 right, 1 wrong, 2 misuse, "
    "3 not decidable at this budget.",
)

_VERDICT_STYLE = {"HOLDS": "green", "CONDITIONAL": "cyan", "REFUTED": "magenta"}


@app.callback()
def doors() -> None:
    """hesstheory: evidence about stochastic Hessian traces."""


@app.command()
def validate(
    names: Annotated[
        list[str] | None, typer.Argument(help="Claims to decide, such as T1 or T2.a; all by default.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="smoke (deterministic, seconds), ci (2 minutes) or full (20 minutes).")
    ] = "ci",
    vary_seed: Annotated[bool, typer.Option("--vary-seed", help="Draw a fresh seed; it is printed.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of all random streams.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write a machine-readable summary here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that receives reports/ and figures/.")] = Path(),
    workers: Annotated[int, typer.Option(help="Processes; 0 means one per core.", min=0)] = 0,
) -> None:
    """Decides the claims and writes reports/ledger.jsonl, reports/index.html and figures/."""
    from hesstheory import claims, figures, report
    from hesstheory.execution import write_atomically

    if vary_seed:
        seed = secrets.randbits(31)
    ledger, page = out / "reports" / "ledger.jsonl", out / "reports" / "index.html"
    _check_writable("--json", json_file)
    for path in (ledger, page, out / "figures" / "*"):
        _check_writable("--out", path, makes_folders=True)
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
        shown = report.write(run.records, figures.draw_all(run.records, out / "figures"), page)
        if json_file is not None:
            write_atomically(json_file, json.dumps(run.to_json(shown), indent=2, ensure_ascii=False) + "\n")
    except (KeyError, ValueError, OSError) as error:
        _misuse(error.args[0] if isinstance(error, KeyError) else str(error))
    _print_summary(run, page)
    raise typer.Exit(run.exit_code)


class _Progress:
    """A line per decided claim, and a bar with the time left."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(f"deciding, {title}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
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
    table = Table("claim", "verdict", "expected", "evidence", "checks", "mutants rejected", "seconds", title="Verdicts")
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
    deterministic = sum(check["kind"] in ("symbolic", "exact") for record in run.claims for check in record["checks"])
    console.print(
        f"seed {run.records[0]['seed']}: {len(run.claims)} claims, {len(run.surprises)} not as expected; "
        f"{run.records_run} checks, {deterministic} of them deterministic; a false red has probability at most "
        f"{run.suite_alpha:g}. Report: {page}"
    )


_STATUS_STYLE = {"passed": "green", "failed": "bold red", "xfailed": "cyan", "inconclusive": "yellow"}


@app.command()
def check(
    estimator: Annotated[
        str, typer.Argument(help="package.module:name, path/file.py:name, or `peers` for the scoreboard of libraries.")
    ],
    profile: Annotated[
        str, typer.Option(help="smoke (10 s; not the spread, nor standard errors), ci (90 s) or full.")
    ] = "ci",
    xfails: Annotated[
        Path | None,
        typer.Option(help='TOML file: check = "reason" of an expected failure; of peers, in a table for each.'),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit XML report here.")] = None,
    num_probes: Annotated[int, typer.Option(help="Probes per call of the estimator.")] = 32,
    only: Annotated[list[str] | None, typer.Option("--check", help="Only this check and its prerequisites.")] = None,
    probe: Annotated[str, typer.Option(help="Distribution that the estimator declares: Rademacher, Gaussian, …")] = "",
    seed: Annotated[int, typer.Option(help="Seed of all random streams.")] = 0,
    vary_seed: Annotated[bool, typer.Option("--vary-seed", help="Draw a fresh seed; it is printed.")] = False,
    peer: Annotated[list[str] | None, typer.Option(help="With `peers`: only this one, such as pyhessian.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds per check.", min=0.1)] = 300.0,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Run each check in a process that may hang or die.")
    ] = False,
) -> None:
    """Checks a trace estimator: is it right, and if not, which mistake does it look like?"""
    from hesstheory import conformance

    if vary_seed:
        seed = secrets.randbits(31)
    _check_writable("--json", json_file)
    _check_writable("--junit", junit)
    json_file, junit = (path and path.absolute() for path in (json_file, junit))  # an estimator may change the folder
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
        _misuse(str(error))
    except KeyboardInterrupt:
        _interrupted()
    code = conformance.exit_code(results)
    if not code and any(result.check in only and result.status == "skipped" for result in results):
        code = 3
    _print_results(estimator, results, code, f"profile {profile}, seed {seed}", partial=bool(only))
    if json_file is not None:
        _write(json_file, json.dumps(conformance.to_json(estimator, results), indent=2, ensure_ascii=False) + "\n")
    if junit is not None:
        _write(junit, conformance.to_junit(estimator, results))
    raise typer.Exit(code)


def _refuse(estimator: str, given: dict[str, Any]) -> None:
    """Options that would be ignored are a misuse."""
    for option, value in given.items():
        if value:
            _misuse(f"{option} does not go with `check {estimator}`: leave it out, or see hesstheory check --help")


def _probe(name: str) -> Any:
    if not name:
        return None
    from hesstheory import estimators

    known = {cls.__name__: cls for cls in (estimators.Rademacher, estimators.Gaussian, estimators.Uniform,
                                           estimators.Sphere)}  # fmt: skip
    if name not in known:
        _misuse(f"--probe {name}: choose from {', '.join(known)}")
    return known[name]()


def _check_writable(option: str, path: Path | None, *, makes_folders: bool = False) -> None:
    """Refuses, before any work is done for it, a file that could not be written in the end."""
    if path is None:
        return
    try:
        if path.is_dir():
            _misuse(f"{option} {path}: that is a folder; name a file, or move the folder away")
        folder = path.absolute().parent
        if makes_folders:
            folder = next(parent for parent in path.absolute().parents if parent.exists())
        elif not folder.is_dir():
            _misuse(f"{option} {path}: the folder does not exist; create it first")
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        _misuse(f"{option} {path}: {error.strerror}; name another folder, in which you may write")


def _write(path: Path, text: str) -> None:
    from hesstheory.execution import write_atomically

    try:
        write_atomically(path, text)
    except OSError as error:
        _misuse(f"{path}: {error.strerror or error}")


class _Dots:
    """A line of progress per decided check."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    def __call__(self, result: Any) -> None:
        style = _STATUS_STYLE.get(result.status, "dim")
        self.console.print(f"[{style}]{result.status:<12}[/] {result.check} [dim]{result.seconds:.1f} s[/]")


def _print_results(estimator: str, results: Any, code: int, how: str, *, partial: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from hesstheory.conformance import CHECKS
    from hesstheory.conformance.kill_matrix import sin_of

    console = Console()
    table = Table("check", "question", "status", title=f"{estimator}, {how}")
    for result in results:
        style = _STATUS_STYLE.get(result.status, "dim")
        table.add_row(
            result.check.removeprefix("check_"), CHECKS[result.check].question, f"[{style}]{result.status}[/]"
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
    verdict = {0: "is right, as far as the checks above see", 1: "is WRONG", 3: "is not decidable at this budget"}[code]
    stale = [result.check for result in results if result.stale]
    if stale and all(result.stale for result in results if result.status == "failed"):
        verdict = f"does better than expected: remove {', '.join(stale)} from the expected failures"
    if partial and code == 0:
        console.print("the chosen checks found nothing; the others were not asked")
    else:
        expected = sum(result.status == "xfailed" for result in results)
        failures = f", {expected} failures expected" if expected else ""
        console.print(f"{estimator} {verdict}{failures} ({how}); nominal level of the whole run 1e-6", markup=False)
    if not partial and len(results) < len(CHECKS):
        console.print(f"{len(CHECKS) - len(results)} checks, of the spread and of errors, belong to --profile ci")


def _print_peers(options: dict[str, Any], xfails: Path | None, json_file: Path | None) -> int:
    """The scoreboard. Given what is expected, 1 where a library fails something else, or passes it."""
    from rich.console import Console
    from rich.table import Table

    from hesstheory.conformance import Misuse, peers, scoreboard

    versions = peers.installed()
    if not versions:
        _misuse("none of the peer libraries is installed: pip install -c constraints.txt 'hesstheory[peers]'")
    try:
        board = scoreboard(**options, xfails=xfails, on_result=_Dots())
    except Misuse as error:
        _misuse(str(error))
    except KeyboardInterrupt:
        _interrupted()
    if not board:
        _misuse(f"no adapter to {', '.join(versions)}: pip install -c constraints.txt -e '.[peers]'")
    title = ", ".join(f"{name} {version}" for name, version in versions.items())
    table = Table("check", *board, title=f"{title}; profile {options['profile']}, seed {options['seed']}")
    checks = dict.fromkeys(result.check for results in board.values() for result in results)
    for name in checks:
        row = [next((r.status for r in results if r.check == name), "") for results in board.values()]
        table.add_row(name.removeprefix("check_"), *(f"[{_STATUS_STYLE.get(s, 'dim')}]{s}[/]" for s in row))
    console = Console()
    console.print(table)
    outcomes = [(library, result) for library, results in board.items() for result in results]
    for library, result in outcomes:
        if result.status in ("failed", "xfailed"):
            console.print(f"{library}: {result.check}: {result.detail}", markup=False)
            console.print(f"  {result.reproduce}", style="dim", markup=False, soft_wrap=True)
    surprises = [f"{library}: {result.check}" for library, result in outcomes if result.status == "failed"]
    if xfails is not None:
        expected = sum(result.status == "xfailed" for _, result in outcomes)
        console.print(f"{expected} failures as expected, {len(surprises)} results not", markup=False)
        for surprise in surprises:
            console.print(surprise, style="red", markup=False)
    if json_file is not None:
        keys = ("check", "status", "detail", "reproduce")
        listed = {name: [{key: getattr(r, key) for key in keys} for r in results] for name, results in board.items()}
        _write(json_file, json.dumps({"versions": versions, "peers": listed}, indent=2, ensure_ascii=False) + "\n")
    return int(xfails is not None and bool(surprises))


@app.command()
def mutants(
    names: Annotated[list[str] | None, typer.Argument(help="Wrong estimators to try; all by default.")] = None,
    profile: Annotated[str, typer.Option(help="smoke, ci or full.")] = "ci",
    num_probes: Annotated[int, typer.Option(help="Probes per call.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of all random streams.")] = 0,
    vary_seed: Annotated[bool, typer.Option("--vary-seed", help="Draw a fresh seed; it is printed.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the matrix here.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that receives figures/kill_matrix.*.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 means one per core.", min=0)] = 0,
    all_checks: Annotated[bool, typer.Option("--all-checks", help="Ask all checks, also of what is noticed.")] = False,
    write_signatures: Annotated[bool, typer.Option(help="Store the patterns that suspects are compared with.")] = False,
) -> None:
    """Runs the checks on known wrong estimators: which check notices which, and which checks suffice."""
    from rich.console import Console

    from hesstheory.conformance import kill_matrix

    if vary_seed:
        seed = secrets.randbits(31)
    _check_writable("--json", json_file)
    _check_writable("--out", out and out / "figures" / "*", makes_folders=True)
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
        _misuse(error.args[0] if isinstance(error, KeyError) else str(error))
    except KeyboardInterrupt:
        _interrupted()
    alive = [killed.name for killed in matrix if not killed.killed_by]
    summary = kill_matrix.to_json(matrix)
    console = Console()
    for killed in matrix:
        noticed = ", ".join(name.removeprefix("check_") for name in killed.killed_by) or "NOTHING"
        console.print(f"{killed.name}: {killed.sin}\n  noticed by {noticed}", markup=False)
    console.print(f"{len(matrix) - len(alive)} of {len(matrix)} mutants killed, seed {seed}", markup=False)
    smallest = summary["smallest_set"]
    assert isinstance(smallest, list)
    console.print(f"the smallest set of checks that kills as many: {', '.join(smallest)}", markup=False)
    if json_file is not None:
        _write(json_file, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    if write_signatures:
        kill_matrix.write_signatures(matrix)
    if out is not None:
        from hesstheory import figures

        figures.draw_kill_matrix(kill_matrix.records(matrix), out / "figures")
    raise typer.Exit(1 if alive else 0)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="mlp, mlp-tanh, cnn, resnet18, dense; all by default.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the numbers here instead of OUT/reports/bench.json.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder that receives reports/bench.json and figures/frontier.*.")] = Path(),
    repeats: Annotated[int | None, typer.Option(help="Rounds of timings; by default what a problem needs.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", hidden=True, help="Tiny problems: is everything in place?")] = False,
) -> None:
    """Measures what traces cost, ours and those of other libraries, in gradients: minutes, on one thread."""
    from rich.console import Console

    from hesstheory import bench as room
    from hesstheory import frontier
    from hesstheory.execution import write_atomically

    _check_writable("--json", json_file)
    _check_writable("--out", out / "figures" / "*", makes_folders=True)
    if json_file is None:
        json_file = out / "reports" / "bench.json"
        _check_writable("--out", json_file, makes_folders=True)
    if repeats is not None and repeats < 1:
        _misuse(f"--repeats {repeats}: pass one round or more, or leave it out")
    progress, console = Console(stderr=True), Console()
    try:
        command = shlex.join(["hesstheory", *sys.argv[1:]])
        say = partial(progress.print, markup=False, highlight=False, soft_wrap=True)
        for report in room.run(names or (), repeats=repeats, command=command, tiny=tiny, say=say):
            write_atomically(json_file, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
            _print_costs(console, report["problems"][next(reversed(report["problems"]))])
            if rows := [row for found in report["problems"].values() for row in found["frontier"]]:
                frontier.draw(rows, out / "figures")
    except (ValueError, OSError, MemoryError) as error:
        _misuse(str(error))
    except KeyboardInterrupt:
        typer.echo(f"hesstheory: interrupted; what was measured before is in {json_file}", err=True)
        raise typer.Exit(130) from None
    _print_marks(console, report["marks"])
    console.print(f"{json_file}" + (f", {out / 'figures' / 'frontier.png'}" if rows else ""), markup=False)


@app.command()
def harness(
    model: Annotated[str, typer.Option(help="resnet18, resnet34 or vgg11.")] = "resnet18",
    data: Annotated[str, typer.Option(help="digits, cifar10 or cifar100.")] = "digits",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch: Annotated[int, typer.Option(help="Images in the batch that is measured.")] = 16,
    probes: Annotated[int, typer.Option(help="Probes K of the one-product estimate.")] = 10,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    steps: Annotated[int, typer.Option(help="Training steps before the measurement; 0: untrained.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("harness"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    activation: Annotated[str, typer.Option(help="relu, silu or gelu; smooth ones are measured on G.")] = "relu",
    width: Annotated[int, typer.Option(help="Channels of the first stage; 64 is the full network.")] = 64,
    classes: Annotated[int | None, typer.Option(help="Outputs of the network; as many as the data by default.")] = None,
    label_noise: Annotated[float, typer.Option(help="Fraction of wrong labels.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of all random streams.")] = 0,
    parallel: Annotated[str, typer.Option(help="Under torchrun, what processes share: data or probes.")] = "data",
    root: Annotated[Path | None, typer.Option(help="Folder of the CIFAR files.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds that a process waits for the others.")] = 300.0,
) -> None:
    """Measures ResNet-18/34 or VGG-11 beside their exact traces; writes DIR/harness.json, a table, a figure, a page."""
    import torch
    from rich.console import Console

    from hesstheory import harness as room
    from hesstheory.execution import LostRank
    from hesstheory.harness import show

    progress, first = Console(stderr=True), os.environ.get("RANK", "0") == "0"
    say = partial(progress.print, markup=False, highlight=False, soft_wrap=True)
    if out.exists() and not out.is_dir():
        _misuse(f"--out {out}: that is a file; name a folder")
    _check_writable("--out", out / "*", makes_folders=True)
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
        if not isinstance(error, LostRank | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        cure = "" if isinstance(error, LostRank) else ": use a smaller --width, --batch or --classes"
        _misuse(f"{reason}{cure}")
    except (ValueError, OSError, MemoryError) as error:
        _misuse(str(error))
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


@app.command()
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
            f"{'passed' if held else 'FAILED':<26} {name}: {detail}", markup=False, highlight=False, soft_wrap=True
        )
    raise typer.Exit(0 if all(held for _, held, _ in checks) else 1)


def _print_costs(console: Any, found: dict[str, Any]) -> None:
    """One row per way; of the dense Hessian, time and memory."""
    from rich.table import Table

    title = (
        f"{found['about']}: {found['num_params']:,} parameters, one gradient {1000 * found['gradient_seconds']:.3g} ms"
    )
    columns = {
        "once": "once", "per_probe": "per probe", "worst_relative_spread_of_one_probe": "one probe",
        "work_to_1_percent": "to 1 %", "peak_in_training_steps": "memory",
        "seconds": "seconds", "gradients": "gradients", "times_ours": "times ours",
        "peak_in_matrices": "memory",
    }  # fmt: skip
    shown = [key for key in columns if any(way.get(key) is not None for way in found["ways"].values())]
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
        table.add_row(mark["mark"], f"{mark['limit']:g}", f"{mark['measured']:.3g}", f"[{style}]{mark['met']}[/]")
    console.print(table)


def _misuse(message: str) -> NoReturn:
    typer.echo(f"hesstheory: {message}", err=True)
    raise typer.Exit(2)


def _interrupted() -> NoReturn:
    typer.echo("hesstheory: interrupted, nothing was written", err=True)
    raise typer.Exit(130)


def main() -> None:
    """Entry point of the `hesstheory` command."""
    app()
