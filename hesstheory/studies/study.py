"""What a study is, and how it is called."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hesstheory.run.provenance import provenance
from hesstheory.studies.records import (
    FINGERPRINT,
    Origin,
    Record,
    SpotCheck,
    State,
    restamp,
    state_of,
    write_record,
)

DEFAULT_OUT = Path("runs/study")  # ignored by git

Parser = argparse.ArgumentParser
Options = argparse.Namespace


@dataclass(frozen=True)
class Call:
    """A study as it was called: its options, where its files go, and the command for the record.

    Parameters
    ----------
    name
        Of the study.
    options
        What the study's own options were set to.
    out
        The folder that receives `reports/`, and `runs/` for the runs of a campaign.
    file
        The record: OUT/reports/NAME.json, or what `--json` names.
    command
        The command line.
    origin
        What the numbers come from.
    written
        The files that were written.
    """

    name: str
    options: Options
    out: Path
    file: Path
    command: str
    origin: Origin
    written: list[Path] = field(default_factory=list)

    @cached_property
    def header(self) -> Record:
        """Where the numbers come from: command, versions, machine, commit and fingerprint."""
        return {
            "provenance": provenance(self.command),
            FINGERPRINT: self.origin.fingerprint(),
        }

    @property
    def runs(self) -> Path:
        """Where the runs of a campaign lie, a folder each."""
        return self.out / "runs" / self.name

    def write(self, record: Record, name: str = "") -> None:
        """Writes the record with its header; that of a run in a folder goes by its name."""
        file = self.file / f"{name}.json" if name else self.file
        write_record(file, self.header | record)
        self.written.append(file)


@dataclass(frozen=True)
class Study:
    """A question that many runs answer, with the record of its answer.

    Parameters
    ----------
    name
        The name of its module and of its record.
    question
        One line.
    run
        Does what was called for and returns whether all went well.
    add_options
        Adds the study's own options to a parser.
    spot_check
        Computes a part of a record again, within a minute or two. None where the numbers are times,
        which no machine repeats.
    code
        Module that the numbers come from, where it is not the study's own.
    data
        Files that it reads.
    in_folder
        The record is a folder of that name with a file for each run.
    """

    name: str
    question: str
    run: Callable[[Call], bool]
    add_options: Callable[[Parser], None]
    spot_check: Callable[[Record], SpotCheck] | None = None
    code: str = ""
    data: tuple[Path, ...] = ()
    in_folder: str = ""

    @property
    def origin(self) -> Origin:
        """What the numbers of its records come from."""
        return Origin(self.code or f"hesstheory.studies.{self.name}", self.data)

    def place(self, out: Path) -> Path:
        """Where its record lies: a file, or a folder of files."""
        reports = out / "reports"
        return reports / self.in_folder if self.in_folder else reports / f"{self.name}.json"

    def records(self, out: Path) -> list[Path]:
        """Files of its record; one that is not there is named too, so that it can be missed."""
        place = self.place(out)
        return sorted(place.glob("*.json")) if self.in_folder else [place]

    def states(self, out: Path) -> dict[Path, State]:
        """What is known of each of its records, without running anything."""
        return {file: state_of(file, self.origin) for file in self.records(out)}


def parser_of(study: Study) -> Parser:
    """The options that all studies have, and those of the study."""
    parser = Parser(
        prog=f"hesstheory study {study.name}",
        description=study.question,
        epilog=f"Writes {study.place(Path('OUT'))}.",
    )
    _add_shared_options(parser)
    study.add_options(parser)
    return parser


def _add_shared_options(parser: Parser) -> None:
    """Where files go, and what to do with a record instead of a run."""
    parser.add_argument(
        "--out",
        type=Path,
        help=f"folder of the files, {DEFAULT_OUT} by default; `--out .` renews the record of this "
        "folder, such as the one under version control",
    )
    parser.add_argument("--json", type=Path, help="write the record here instead")
    parser.add_argument(
        "--status",
        action="store_true",
        help="say whether the record in OUT, here this folder by default, is stale; run nothing",
    )
    parser.add_argument(
        "--restamp",
        action="store_true",
        help="compute a part of the record again and stamp it as current if that is reproduced",
    )


def call_study(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says; its exit code is 0 where all went well, else 1.

    Misuse ends the process with exit code 2 and a message.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = parser_of(study)
    options = parser.parse_args(words)
    if options.status:
        return _say_states(study, options.out or Path())
    try:
        if options.restamp:
            return _restamp(study, options.out or Path())
        return _run(study, options, shlex.join(["hesstheory", "study", study.name, *words]))
    except (ValueError, OSError) as error:  # what a user can mend
        parser.error(str(error))


def _run(study: Study, options: Options, command: str) -> int:
    """Runs a study and says where its record is."""
    out: Path = options.out or DEFAULT_OUT
    file: Path = options.json or study.place(out)
    call = Call(study.name, options, out, file, command, study.origin)
    went_well = study.run(call)
    written = ", ".join(map(str, dict.fromkeys(call.written)))
    if written and out.resolve() == Path.cwd():
        print(f"Renewed in this folder: {written}.")
    elif written:
        print(written)
    return 0 if went_well else 1


def _say_states(study: Study, out: Path) -> int:
    """A line for each record."""
    for file, state in study.states(out).items():
        print(f"{state:<10} {file}")
    return 0


def _restamp(study: Study, out: Path) -> int:
    """Re-stamps the stale records of a study, each only if its spot check reproduces it."""
    if study.spot_check is None:
        print(f"{study.name} holds times, which no machine repeats: run it again to renew it")
        return 1
    code = 0
    for file, state in study.states(out).items():
        if state is not State.STALE:
            print(f"{state:<10} {file}")
            continue
        try:
            found = restamp(file, study.origin, study.spot_check)
        except (ValueError, OSError) as error:  # such as data that are not on this machine
            print(f"NOT REPRODUCED {file}: {error}", flush=True)
            code = 1
            continue
        outcome = "re-stamped" if found.holds else "NOT REPRODUCED"
        print(f"{outcome} {file}: {found}", flush=True)
        code = code if found.holds else 1
    return code


def no_options(parser: Parser) -> None:
    """A study without options of its own."""


def seconds_or_inf(text: str) -> float:
    """A number of seconds from the command line."""
    seconds = float(text)
    if math.isnan(seconds) or seconds < 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds: pass 0 or more")
    return seconds
