"""A full-scale run: its stages in order, each kept on disk as soon as it is done, and what they say together."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hesstheory import evidence
from hesstheory.evidence.checks import Check, Status, Verdict
from hesstheory.harness.stages.registry import STAGES
from hesstheory.harness.stages.stage import Found, Measurement
from hesstheory.harness.subject import Say, Settings, Subject, built
from hesstheory.run.files import write_atomically
from hesstheory.run.memory import peak_memory
from hesstheory.run.precision import full_precision, precision_switches
from hesstheory.run.provenance import fingerprint, provenance
from hesstheory.run.ranks import PATIENCE, Ranks, device_named, ranks

Report = dict[str, Any]


def run(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    command: str = "",
    say: Say = print,
    patience: float = PATIENCE,
) -> Report:
    """Measures a full-scale network and returns what `DIR/harness.json` holds; the first process writes it.

    Every finished stage is a file in `DIR/stages`; with `resume` a run that was stopped goes on behind the last one,
    by the same code and versions alone.
    Raises ValueError for settings that cannot be run, and where DIR holds another run.
    """
    if not 0 < patience < math.inf:
        raise ValueError(f"patience is {patience}: pass seconds, more than 0")
    folder = Path(out)
    device = device_named(settings.device)
    with ranks(device, patience) as us, full_precision():
        talk: Say = say if us.first else lambda text: None
        us.agreed(lambda: _prepare(folder, settings, resume) if us.first else None)
        subject: Subject | None = None
        found: dict[str, Found] = {}
        for number, (name, stage) in enumerate(STAGES.items(), start=1):
            file = folder / "stages" / f"{number}_{name}.json"
            done = us.from_first(us.agreed(partial(_read, file) if us.first else _nothing))
            if done is None:
                if subject is None:
                    with _withdrawn_on_error(folder, us):
                        subject = built(settings, device, us, folder, talk)
                done = _measured(name, stage, subject, found)
                if us.first:
                    write_atomically(file, json.dumps(done, ensure_ascii=False) + "\n")
            found[name] = done
            talk(f"{name}: {done['wall_seconds']:.1f} s")
        report = _joined(settings, found, us, str(device), command)
        if us.first:
            write_atomically(
                folder / "harness.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n"
            )
    return report


def _prepare(folder: Path, settings: Settings, resume: bool) -> None:
    """Settings on disk first: what is measured later belongs to them."""
    file, code = folder / "settings.json", fingerprint("hesstheory")
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
            f"the run in {folder} has another {', '.join(differing)}: pass its settings, or another --out"
        )
    if before.get("code") != code:
        raise ValueError(
            f"the run in {folder} was begun by other code or other versions of its libraries, whose numbers do not mix "
            "with these: pass another folder as --out"
        )


def _nothing() -> None:
    """What the other processes read."""


def _record(file: Path, keys: set[str], cure: str) -> dict[str, Any]:
    """A JSON object on disk that has the keys."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be read ({str(error).partition(':')[0]}): {cure}"
        ) from error
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


def _read(file: Path) -> Found | None:
    """A finished stage; files are renamed into place, so that one which is there is whole unless it was damaged."""
    if not file.exists():
        return None
    keys = {
        "layers",
        "checks",
        "seconds",
        "found",
        "wall_seconds",
        "peak_memory_bytes",
        "num_params",
    }
    return _record(file, keys, "delete it, and --resume measures that stage again")


def _measured(
    name: str, stage: Measurement, subject: Subject, found: Mapping[str, Found]
) -> Found:
    start = time.perf_counter()
    result = stage(subject, found)
    return {
        "layers": result.layers,
        "checks": [_as_json(check) for check in result.checks],
        "seconds": result.seconds,
        "found": result.found,
        "wall_seconds": time.perf_counter() - start,
        "peak_memory_bytes": peak_memory(subject.device),
        "num_params": subject.problem.num_params,
    }


def _as_json(check: Check) -> dict[str, Any]:
    numbers = {key: getattr(check, key) for key in ("discrepancy", "bound", "alpha", "detectable")}
    finite = {key: x if x is None or math.isfinite(x) else None for key, x in numbers.items()}
    return {
        "name": check.name,
        "detail": check.detail,
        "kind": str(check.kind),
        "status": str(check.status),
        **finite,
    }


def _joined(
    settings: Settings, found: Mapping[str, Found], us: Ranks, device: str, command: str
) -> Report:
    """The report: layers with all their numbers, checks, costs."""
    checks = [check for stage in found.values() for check in stage["checks"]]
    layers: dict[str, dict[str, float]] = {}
    for stage in found.values():
        for quantity, by_layer in stage["layers"].items():
            for layer, value in by_layer.items():
                layers.setdefault(layer, {})[quantity] = value if math.isfinite(value) else None  # type: ignore[assignment]
    statuses = [Check(c["name"], c["kind"], Status(c["status"])) for c in checks]
    seconds = {key: value for stage in found.values() for key, value in stage["seconds"].items()}
    unit = seconds["gradient"]
    verdict = evidence.verdict(statuses)
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
        "layers": layers,
        "checks": {
            check["name"]: {k: v for k, v in check.items() if k != "name"} for check in checks
        },
        "found": {
            name: {k: v for k, v in s["found"].items() if k != "samples"}
            for name, s in found.items()
            if s["found"]
        },
        "seconds": seconds,
        "gradients": {key: value / unit for key, value in seconds.items()},
        "stages": {name: stage["wall_seconds"] for name, stage in found.items()},
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in found.values()),
        "precision": precision_switches(),
        "provenance": provenance(command),
        "threads": torch.get_num_threads(),
        "verdict": str(verdict),
        "passed": verdict in (Verdict.HOLDS, Verdict.CONDITIONAL),
    }
