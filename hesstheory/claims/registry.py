"""Claims, registered by a decorator."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeAlias

from hesstheory.claims.context import Context
from hesstheory.claims.premises import check_premises
from hesstheory.evidence.budget import PROFILES
from hesstheory.evidence.checks import Check, Verdict
from hesstheory.run.sources import CLAIM_PACKAGES

# A formula, a matrix or an estimator: only the claim knows how to call it.
Subject: TypeAlias = Any

Decide: TypeAlias = Callable[[Subject, Context], Iterable[Check]]


@dataclass(frozen=True)
class Claim:
    """A statement that can be decided.

    Attributes
    ----------
    decide
        `decide(subject, context)` yields checks of the subject.
    subject
        A formula or an estimator.
    mutants
        Each stands in for the subject and must change the outcome of a check.
    statistical
        Number of statistical checks that `decide` yields at most. They share the level of the
        suite.
    profile
        The smallest profile that can decide the claim.
    rests_on
        Ids of the claims that its derivation or its evidence uses.
    seconds
        About how long a decision takes in the ci profile, in CPU seconds.
    """

    id: str
    title: str
    statement: str
    formula: str
    source: str
    expected: Verdict
    reason: str
    subject: Subject
    mutants: Mapping[str, Subject]
    decide: Decide
    statistical: int = 0
    profile: str = "smoke"
    rests_on: tuple[str, ...] = ()
    seconds: float = 1.0


REGISTRY: dict[str, Claim] = {}


class ClaimPackageError(ImportError):
    """An installed claim package cannot be imported."""


def claim(
    id: str,
    statement: str,
    *,
    subject: Subject = None,
    mutants: Sequence[Subject] = (),
    expected: Verdict = Verdict.HOLDS,
    reason: str,
    source: str = "ours",
    formula: str = "",
    statistical: int = 0,
    profile: str = "smoke",
    rests_on: Sequence[str] = (),
    seconds: float = 1.0,
) -> Callable[[Decide], Decide]:
    """Registers the decorated `decide(subject, context)` as a claim.

    The name of the function becomes the title of the claim.

    Parameters
    ----------
    id
        Letter, number and optional part, such as `T2` or `T8.a`.
    statement
        One sentence that can be true or false.
    subject
        What is checked: a formula or an estimator.
    mutants
        Wrong versions of the subject. The first line of each docstring names the sin.
    expected, reason
        What is known on paper, and why. Validation fails when the verdict differs, either way.
    source
        Who published the statement.
    formula
        The statement in LaTeX.
    statistical
        Number of statistical checks. Each of them and each mutant is paid for from the level of the
        suite.
    profile
        The smallest profile that can decide the claim: `smoke`, `ci` or `full`.
    rests_on
        Ids of the claims that the derivation or the evidence uses.
    seconds
        About how long a decision takes in the ci profile, in CPU seconds. Several workers begin
        with the longest, so that none of them works alone in the end.

    Returns
    -------
    callable
        A decorator that gives the function back.

    Raises
    ------
    ValueError
        If the profile is unknown, the expected verdict is no outcome of checks, the smoke profile
        would have to draw numbers, the id is taken, or two mutants have one name.

    Examples
    --------
    >>> from hesstheory.claims.registry import REGISTRY
    >>> from hesstheory.evidence import exact
    >>> def double(x):
    ...     return 2 * x
    >>> def triple(x):
    ...     "Adds x once too often."
    ...     return 3 * x
    >>> @claim("X1", "2x = x + x.", subject=double, mutants=[triple], reason="counting")
    ... def doubling_is_adding(formula, context):
    ...     yield exact("at x = 3", formula(3.0), 3.0 + 3.0)
    >>> REGISTRY.pop("X1").title
    'doubling is adding'
    """
    _check_settings(id, expected, statistical, profile)

    def register(decide: Decide) -> Decide:
        _check_free(id, decide)
        named = {mutant_name(mutant): mutant for mutant in mutants}
        if len(named) != len(mutants):
            names = sorted(map(mutant_name, mutants))
            raise ValueError(f"claim {id} has two mutants of one name: {names}")
        title = decide.__name__.replace("_", " ")
        REGISTRY[id] = Claim(
            id, title, statement, formula, source, expected, reason, subject, named, decide,
            statistical, profile, tuple(rests_on), seconds,
        )  # fmt: skip
        return decide

    return register


def _check_settings(id: str, expected: Verdict, statistical: int, profile: str) -> None:
    """Refuses settings that contradict each other."""
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}: choose from {', '.join(PROFILES)}")
    if expected in (Verdict.STALE, Verdict.UNTESTED):
        raise ValueError(
            f"claim {id} expects {expected}, which is no outcome of checks: "
            f"pass expected=Verdict.HOLDS"
        )
    if statistical and profile == "smoke":
        raise ValueError(
            f"claim {id} has statistical checks, which the smoke profile leaves out: "
            f"pass profile='ci'"
        )


def _check_free(id: str, decide: Decide) -> None:
    """Refuses an id of another function; a module that is reloaded registers its own again."""
    known = REGISTRY.get(id)
    if known is None:
        return
    before = known.decide.__module__, known.decide.__qualname__
    if before != (decide.__module__, decide.__qualname__):
        raise ValueError(
            f"claim {id} is registered twice: {known.decide.__module__} and {decide.__module__}"
        )


def catalogue() -> dict[str, Claim]:
    """All claims of the installed claim packages and of the caller, in natural order of their ids.

    A claim package is named by an entry point of the group `hesstheory.claims`. All its modules are
    imported.

    Returns
    -------
    dict
        Claims by id: T2 comes before T10.

    Raises
    ------
    ClaimPackageError
        If a claim package cannot be imported.
    ValueError
        If a claim rests on an unknown one, on itself, or on one that is expected to be refuted.
    """
    for package in entry_points(group=CLAIM_PACKAGES):
        _import_all(package)
    claims = dict(sorted(REGISTRY.items(), key=lambda item: natural_order(item[0])))
    check_premises(
        {id: c.rests_on for id, c in claims.items()}, {id: c.expected for id, c in claims.items()}
    )
    return claims


def _import_all(package: EntryPoint) -> None:
    """Imports every module of a claim package."""
    try:
        root = package.load()
        for folder in map(Path, getattr(root, "__path__", ())):
            for file in sorted(folder.rglob("*.py")):  # also in folders without an __init__
                parts = file.relative_to(folder).with_suffix("").parts
                names = parts[:-1] if parts[-1] == "__init__" else parts
                importlib.import_module(".".join([root.__name__, *names]))
    except ImportError as error:
        raise ClaimPackageError(
            f"the claim package {package.value} (entry point {package.name!r} of the group "
            f"{CLAIM_PACKAGES}) cannot be imported: {error}; install what it needs, or uninstall it"
        ) from error


def select(names: Sequence[str], claims: Mapping[str, Claim]) -> list[str]:
    """Ids of the named claims; `T1` also means its parts `T1.a`, …, and no name means all.

    Raises KeyError for a name that no claim has.
    """
    chosen: dict[str, None] = {}
    for name in names or claims:
        found = [id for id in claims if id == name or id.startswith(name + ".")]
        if not found:
            raise KeyError(f"no claim {name!r}; the claims are {', '.join(claims)}")
        chosen.update(dict.fromkeys(found))
    return sorted(chosen, key=natural_order)


def mutant_name(mutant: Subject) -> str:
    """Name of a function, or of the class of an instance."""
    if isinstance(mutant, partial):
        return mutant_name(mutant.func)
    return str(getattr(mutant, "__name__", type(mutant).__name__))


def sin_of(mutant: Subject) -> str:
    """First line of the docstring, which says what is wrong with the mutant."""
    documented = mutant.func if isinstance(mutant, partial) else mutant
    lines = (inspect.getdoc(documented) or "").splitlines()
    return lines[0] if lines else "undocumented"


def natural_order(id: str) -> tuple[str, int, str]:
    """Sorts T2 before T10, and T10 before T10.a."""
    head, _, part = id.partition(".")
    digits = "".join(c for c in head if c.isdigit())
    return (head.rstrip("0123456789"), int(digits or 0), part)
