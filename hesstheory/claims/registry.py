"""Claims, registered by a decorator."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from hesstheory.evidence.budget import PROFILES
from hesstheory.evidence.checks import Check, Verdict

Decide = Callable[[Any, "Context"], Iterable[Check]]


@dataclass(frozen=True)
class Claim:
    """A statement that can be decided.

    `decide(subject, context)` yields checks of the subject: a formula or an estimator. Each mutant stands in for the
    subject and must change the outcome of a check. `statistical` counts the statistical checks that decide yields.
    """

    id: str
    title: str
    statement: str
    formula: str
    source: str
    expected: Verdict
    reason: str
    subject: Any
    mutants: Mapping[str, Any]
    decide: Decide
    statistical: int = 0
    profile: str = "smoke"
    rests_on: tuple[str, ...] = ()


REGISTRY: dict[str, Claim] = {}


def claim(
    id: str,
    statement: str,
    *,
    subject: Any = None,
    mutants: Sequence[Any] = (),
    expected: Verdict = Verdict.HOLDS,
    reason: str,
    source: str = "ours",
    formula: str = "",
    statistical: int = 0,
    profile: str = "smoke",
    rests_on: Sequence[str] = (),
) -> Callable[[Decide], Decide]:
    """Registers the decorated `decide(subject, context)` as a claim; its name becomes the claim's title.

    `expected` with its `reason` is what is known on paper: validation fails when the verdict differs, either way.
    `profile` is the smallest profile that can decide the claim. Mutants are classes, functions or instances whose
    docstring names the sin.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}: choose from {', '.join(PROFILES)}")
    if expected in (Verdict.STALE, Verdict.UNTESTED):
        raise ValueError(
            f"claim {id} expects {expected}, which is no outcome of checks: pass expected=Verdict.HOLDS"
        )
    if statistical and profile == "smoke":
        raise ValueError(
            f"claim {id} has statistical checks, which the smoke profile leaves out: pass profile='ci'"
        )

    def register(decide: Decide) -> Decide:
        known = REGISTRY.get(id)
        if known and (known.decide.__module__, known.decide.__qualname__) != (
            decide.__module__,
            decide.__qualname__,
        ):
            raise ValueError(
                f"claim {id} is registered twice: {known.decide.__module__} and {decide.__module__}"
            )
        title = decide.__name__.replace("_", " ")
        named = {_mutant_name(mutant): mutant for mutant in mutants}
        if len(named) != len(mutants):
            raise ValueError(
                f"claim {id} has two mutants of one name: {sorted(map(_mutant_name, mutants))}"
            )
        REGISTRY[id] = Claim(
            id,
            title,
            statement,
            formula,
            source,
            expected,
            reason,
            subject,
            named,
            decide,
            statistical,
            profile,
            tuple(rests_on),
        )
        return decide

    return register


def catalogue() -> dict[str, Claim]:
    """All claims of the installed claim packages and those registered by the caller, in natural order of their ids.

    A claim package is a package named by an entry point of the group `hesstheory.claims`; all its modules are imported,
    but for those of notebooks.
    """
    for package in entry_points(group="hesstheory.claims"):
        root = package.load()
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            importlib.import_module(module.name)
    return dict(sorted(REGISTRY.items(), key=lambda item: natural_order(item[0])))


def select(names: Sequence[str], claims: Mapping[str, Claim]) -> list[str]:
    """Ids of the named claims; `T1` also means its parts `T1.a`, …, and no name means all. Raises KeyError."""
    chosen: dict[str, None] = {}
    for name in names or claims:
        found = [id for id in claims if id == name or id.startswith(name + ".")]
        if not found:
            raise KeyError(f"no claim {name!r}; the claims are {', '.join(claims)}")
        chosen.update(dict.fromkeys(found))
    return sorted(chosen, key=natural_order)


def _mutant_name(mutant: Any) -> str:
    if isinstance(mutant, partial):
        return _mutant_name(mutant.func)
    return str(getattr(mutant, "__name__", type(mutant).__name__))


def sin_of(mutant: Any) -> str:
    documented = mutant.func if isinstance(mutant, partial) else mutant
    lines = (inspect.getdoc(documented) or "").splitlines()
    return lines[0] if lines else "undocumented"


def natural_order(id: str) -> tuple[Any, ...]:
    head, _, part = id.partition(".")
    digits = "".join(c for c in head if c.isdigit())
    return (head.rstrip("0123456789"), int(digits or 0), part)
