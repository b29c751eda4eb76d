"""A full-scale run: its stages in order, each kept on disk, and what they say together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch

from hesstheory import evidence
from hesstheory.evidence.checks import Check, Kind, Status, Verdict
from hesstheory.harness.stages.registry import STAGES
from hesstheory.harness.stages.stage import Found, Measurement
from hesstheory.harness.subject import Say, Settings, Subject, built
from hesstheory.run.clock import wall_timed
from hesstheory.run.files import write_atomically
from hesstheory.run.memory import peak_memory
from hesstheory.run.precision import full_precision, precision_switches
from hesstheory.run.provenance import fingerprint, provenance
from hesstheory.run.ranks import PATIENCE, Ranks, device_named, ranks

Report = Found


def run(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    command: str = "",
    say: Say = print,
    patience: float = PATIENCE,
) -> Report:
    """Measures a full-scale network; the first process writes `OUT/harness.json`.

    Every finished stage is a file in `OUT/stages`.

    Parameters
    ----------
    settings
        What is measured.
    out
        Folder of the run, new or empty.
    resume
        Whether a run that was stopped goes on behind its last finished stage, by the same code
        and versions alone.
    command
        The command line, for the record.
    say
        Is told what happens, in the first process.
    patience
        Seconds that a process waits for the others.

    Returns
    -------
    dict
        What `harness.json` holds.

    Raises
    ------
    ValueError
        Settings that cannot be run, a folder that holds another run or other files, or a damaged
        record.
    LostRank
        Another process failed or ended.
    """
    if not 0 < patience < math.inf:
        raise ValueError(f"patience is {patience}: pass seconds, more than 0")
    folder = Path(out)
    device = device_named(settings.device)
    with ranks(device, patience) as us, full_precision():
        us.agreed(lambda: _prepare(folder, settings, resume) if us.first else None)
        course = _Course(settings, folder, device, us, say if us.first else _nothing)
        for number, (name, stage) in enumerate(STAGES.items(), start=1):
            course.add(number, name, stage)
        report = _joined(settings, course.found, us, str(device), command)
        if us.first:
            text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
            write_atomically(folder / "harness.json", text)
    return report


@dataclass
class _Course:
    """A run on its way: the stages that are done, and the subject, built when one is not."""

    settings: Settings
    folder: Path
    device: torch.device
    us: Ranks
    say: Say
    found: dict[str, Found] = field(default_factory=dict)

    @cached_property
    def subject(self) -> Subject:
        """The network on its batch; settings that cannot be built leave no run behind."""
        with _withdrawn_on_error(self.folder, self.us):
            return built(self.settings, self.device, self.us, self.folder, self.say)

    def add(self, number: int, name: str, stage: Measurement) -> None:
        """Reads what a stage found, or measures and keeps it."""
        file = self.folder / "stages" / f"{number}_{name}.json"
        done = self.us.from_first(self.us.agreed(partial(_read, file, self.us)))
        if done is None:
            done = _measured(stage, self.subject, self.found)
            if self.us.first:
                write_atomically(file, json.dumps(done, ensure_ascii=False) + "\n")
        self.found[name] = done
        self.say(f"{name}: {done['wall_seconds']:.1f} s")


def _prepare(folder: Path, settings: Settings, resume: bool) -> None:
    """Settings on disk first: what is measured later belongs to them."""
    file = folder / "settings.json"
    code = fingerprint("hesstheory")
    if not file.exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(
                f"{folder} holds files that are no run: pass an empty or a new folder as --out"
            )
        write_atomically(file, json.dumps(asdict(settings) | {"code": code}, indent=2) + "\n")
        return
    if not resume:
        raise ValueError(
            f"{folder} holds a run: pass --resume to go on with it, or another folder as --out"
        )
    before = _record(file, set(), "pass another folder as --out")
    if differing := settings.differing(before):
        raise ValueError(
            f"the run in {folder} has another {', '.join(differing)}: pass its settings, "
            "or another --out"
        )
    if before.get("code") != code:
        raise ValueError(
            f"the run in {folder} was begun by other code or other versions of its libraries, "
            "whose numbers do not mix with these: pass another folder as --out"
        )


def _nothing(text: str) -> None:
    """What the other processes say."""


def _record(file: Path, keys: set[str], cure: str) -> Found:
    """A JSON object on disk that has the keys."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = str(error).partition(":")[0]
        raise ValueError(f"{file} cannot be read ({reason}): {cure}") from error
    if not isinstance(found, dict) or not keys <= found.keys():
        raise ValueError(f"{file} is no record of a run: {cure}")
    return found


@contextmanager
def _withdrawn_on_error(folder: Path, us: Ranks) -> Iterator[None]:
    """Settings that cannot be built leave no run behind."""
    try:
        yield
    except Exception:
        if us.first and {path.name for path in folder.iterdir()} == {"settings.json"}:
            (folder / "settings.json").unlink()
        raise


_KEYS = {
    "layers", "checks", "seconds", "found", "wall_seconds", "peak_memory_bytes", "num_params"
}  # fmt: skip


def _read(file: Path, us: Ranks) -> Found | None:
    """A finished stage, which the first process reads.

    Files are renamed into place: one which is there is whole unless it was damaged.
    """
    if not us.first or not file.exists():
        return None
    return _record(file, _KEYS, "delete it, and --resume measures that stage again")


def _measured(stage: Measurement, subject: Subject, found: Mapping[str, Found]) -> Found:
    """What a stage found, as its file holds it."""
    seconds, result = wall_timed(partial(stage, subject, found), subject.device)
    return {
        "layers": result.layers,
        "checks": [_as_json(check) for check in result.checks],
        "seconds": result.seconds,
        "found": result.found,
        "wall_seconds": seconds,
        "peak_memory_bytes": peak_memory(subject.device),
        "num_params": subject.problem.num_params,
    }


def _as_json(check: Check) -> Found:
    """A check of the report; a number that JSON does not know is null."""
    numbers = {key: getattr(check, key) for key in ("discrepancy", "bound", "alpha", "detectable")}
    finite = {key: x if x is None or math.isfinite(x) else None for key, x in numbers.items()}
    return {
        "name": check.name,
        "detail": check.detail,
        "kind": str(check.kind),
        "status": str(check.status),
        **finite,
    }


# --- the report -----------------------------------------------------------------------------------


def _joined(
    settings: Settings, found: Mapping[str, Found], us: Ranks, device: str, command: str
) -> Report:
    """The report: layers with all their numbers, checks, costs."""
    verdict = evidence.verdict([_as_check(check) for check in _checks(found)])
    return {
        "model": settings.model,
        "data": settings.data,
        "device": device,
        "dtype": settings.dtype,
        "batch": settings.batch,
        "settings": asdict(settings),
        "matrix": "H" if settings.activation == "relu" else "G",
        "num_params": next(iter(found.values()))["num_params"],
        "processes": us.count,
        "layers": _layers(found),
        "checks": {check["name"]: _without(check, "name") for check in _checks(found)},
        "found": {
            name: _without(stage["found"], "samples")
            for name, stage in found.items()
            if stage["found"]
        },
        **_costs(found),
        "precision": precision_switches(),
        "provenance": provenance(command),
        "threads": torch.get_num_threads(),
        "verdict": str(verdict),
        "passed": verdict in (Verdict.HOLDS, Verdict.CONDITIONAL),
    }


def _costs(found: Mapping[str, Found]) -> Report:
    """Seconds, gradients and bytes."""
    seconds = {key: value for stage in found.values() for key, value in stage["seconds"].items()}
    unit = seconds["gradient"]
    return {
        "seconds": seconds,
        "gradients": {key: value / unit for key, value in seconds.items()},
        "stages": {name: stage["wall_seconds"] for name, stage in found.items()},
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in found.values()),
    }


def _checks(found: Mapping[str, Found]) -> list[Found]:
    """The checks of all stages."""
    return [check for stage in found.values() for check in stage["checks"]]


def _as_check(record: Found) -> Check:
    """As much of a check as its verdict depends on."""
    return Check(record["name"], Kind(record["kind"]), Status(record["status"]))


def _layers(found: Mapping[str, Found]) -> dict[str, dict[str, float | None]]:
    """All numbers of every layer; one that is not finite is null."""
    layers: dict[str, dict[str, float | None]] = {}
    for stage in found.values():
        for quantity, by_layer in stage["layers"].items():
            for layer, value in by_layer.items():
                finite = value if math.isfinite(value) else None
                layers.setdefault(layer, {})[quantity] = finite
    return layers


def _without(record: Found, key: str) -> Found:
    """A record without one of its keys."""
    return {name: value for name, value in record.items() if name != key}
