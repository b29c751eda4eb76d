"""Would the checks notice? Wrong estimators × checks, and the smallest set that notices all."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hesstheory.conformance.results import CheckResult
from hesstheory.conformance.subjects.wrong import WRONG
from hesstheory.conformance.suite import check_estimator
from hesstheory.conformance.suspects import SIGNATURES
from hesstheory.evidence.checks import Status
from hesstheory.run.files import write_atomically
from hesstheory.run.names import check_list_of_names, no_such
from hesstheory.run.workers import scatter


@dataclass(frozen=True)
class Killed:
    """One wrong estimator and what the checks said of it."""

    name: str
    sin: str
    killed_by: tuple[str, ...]
    signature: tuple[str, ...]
    seconds: float


def kill_matrix(
    names: Sequence[str] | None = None,
    *,
    profile: str = "ci",
    num_probes: int = 32,
    seed: int = 0,
    workers: int = 1,
    all_checks: bool = False,
    on_result: Callable[[Killed, int, int], None] | None = None,
) -> list[Killed]:
    """Runs the suite on every wrong estimator.

    The smoke profile comes first: what that notices need not be asked again. `all_checks` asks it
    all the same, for the whole matrix.

    Raises
    ------
    KeyError
        A name is not known.
    ValueError
        `names` is no list of names.
    """
    check_list_of_names("names", names or ())
    chosen = list(names or WRONG)
    if unknown := [name for name in chosen if name not in WRONG]:
        raise KeyError(no_such("mutant", unknown[0], WRONG))
    profiles = (profile,) if all_checks else tuple(dict.fromkeys(("smoke", profile)))
    tasks = [(name, profiles, num_probes, seed) for name in chosen]
    found = {}
    for killed in scatter(_killed, tasks, workers):
        found[killed.name] = killed
        if on_result:
            on_result(killed, len(found), len(tasks))
    return [found[name] for name in chosen]


def _killed(task: tuple[str, tuple[str, ...], int, int]) -> Killed:
    """What the checks say of one mutant, profile by profile until one notices it."""
    name, profiles, num_probes, seed = task
    start = time.monotonic()
    failed: list[CheckResult] = []
    for profile in profiles:
        results = check_estimator(WRONG[name], profile, num_probes=num_probes, seed=seed)
        failed = [result for result in results if result.status == Status.FAILED]
        if failed:
            break
    lines = sorted(line for result in failed for line in result.signature)
    seconds = time.monotonic() - start
    return Killed(
        name, sin_of(name), tuple(result.check for result in failed), tuple(lines), seconds
    )


def sin_of(name: str) -> str:
    """What the mutant does wrong, in a sentence."""
    return (inspect.getdoc(WRONG.get(name)) or "undocumented").splitlines()[0]


def smallest_set(killed_by: Mapping[str, Sequence[str]]) -> list[str]:
    """The fewest checks that notice every mutant that any check notices.

    Minimum set cover by integer programming.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    rows = [set(checks) for checks in killed_by.values() if checks]
    checks = sorted({check for row in rows for check in row})
    if not rows:
        return []
    covers = np.array([[check in row for check in checks] for row in rows], dtype=float)
    ones = np.ones(len(checks))
    covered = LinearConstraint(covers, lb=1)
    found = milp(ones, constraints=covered, integrality=ones, bounds=Bounds(0, 1))
    return [check for check, chosen in zip(checks, found.x, strict=True) if chosen > 0.5]


def to_json(matrix: Sequence[Killed]) -> dict[str, object]:
    """{"mutants": {name: {"killed_by": [...], "sin"}}, "smallest_set": [...]}."""
    return {
        "mutants": {
            killed.name: {"killed_by": list(killed.killed_by), "sin": killed.sin}
            for killed in matrix
        },
        "smallest_set": smallest_set({killed.name: killed.killed_by for killed in matrix}),
    }


def write_signatures(matrix: Sequence[Killed]) -> Path:
    """Stores the patterns that suspects are compared with, beside this module."""
    path = Path(__file__).with_name(SIGNATURES)
    patterns = {killed.name: list(killed.signature) for killed in matrix if killed.signature}
    write_atomically(path, json.dumps(patterns, indent=1, ensure_ascii=False) + "\n")
    return path


def records(matrix: Sequence[Killed]) -> list[dict[str, object]]:
    """Rows for the figure: mutant, check, whether it was noticed."""
    checks = list(dict.fromkeys(check for killed in matrix for check in killed.killed_by))
    return [
        {"mutant": killed.name, "check": check, "killed": float(check in killed.killed_by)}
        for killed in matrix
        for check in checks
    ]
