"""Claims, registered by a decorator."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias

from hesstheory.claims.context import Context
from hesstheory.claims.premises import faults_of_premises
from hesstheory.evidence.budget import PROFILES
from hesstheory.evidence.checks import Check, Verdict
from hesstheory.run.names import check_list_of_names, no_such
from hesstheory.run.sources import CLAIM_PACKAGES, tops_of_claim_packages

# A formula, a matrix or an estimator: only the claim knows how to call it.
Subject: TypeAlias = Any

Decide: TypeAlias = Callable[[Subject, Context], Iterable[Check]]

_P = ParamSpec("_P")


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
    blocked
        Why it cannot be decided, and what to mend; empty for a claim in order.
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
    blocked: str = ""


REGISTRY: dict[str, Claim] = {}

# What stands in for claims and modules of installed packages that were refused.
_BLOCKED: dict[str, Claim] = {}


def _blocks_itself_alone(
    make: Callable[_P, Callable[[Decide], Decide]],
) -> Callable[_P, Callable[[Decide], Decide]]:
    """In an installed claim package, a claim that is refused must not take the rest of its module
    along; elsewhere the error is for whoever types it."""

    @functools.wraps(make)
    def made(*args: _P.args, **kwargs: _P.kwargs) -> Callable[[Decide], Decide]:
        def register(decide: Decide) -> Decide:
            try:
                return make(*args, **kwargs)(decide)
            except Exception as error:
                if not _is_installed(getattr(decide, "__module__", "")):
                    raise
                id = args[0] if args else kwargs.get("id", "")
                _block_claim(str(id), decide, error)
                return decide

        return register

    return made


@_blocks_itself_alone
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
        would have to draw numbers, the id is taken, two mutants have one name, or `rests_on` is no
        list of names. In an installed claim package the claim is blocked instead, see `catalogue`.
    TypeError
        If a setting is of another type.

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

    def register(decide: Decide) -> Decide:
        texts = {"id": id, "statement": statement, "reason": reason, "source": source,
                 "formula": formula}  # fmt: skip
        _check_types(id, texts, statistical, seconds)
        _check_settings(id, expected, statistical, profile)
        _check_function(id, decide)
        check_list_of_names(f"claim {id}: rests_on", rests_on)
        _check_free(id, decide)
        REGISTRY[id] = Claim(
            id, _title(decide), statement, formula, source, Verdict(expected), reason, subject,
            _by_name(id, mutants), decide, statistical, profile, tuple(rests_on), seconds,
        )  # fmt: skip
        _BLOCKED.pop(id, None)  # a module that was mended and loaded again
        return decide

    return register


def _check_types(
    id: object, texts: Mapping[str, object], statistical: object, seconds: object
) -> None:
    """Refuses settings that later code would trip over."""
    for name, value in texts.items():
        if not isinstance(value, str) or (name == "id" and not value):
            raise TypeError(f"claim {id} has {name}={value!r}: pass a text")
    if not isinstance(statistical, int) or statistical < 0:
        raise TypeError(f"claim {id} has statistical={statistical!r}: pass a number of checks")
    if not isinstance(seconds, int | float):
        raise TypeError(f"claim {id} has seconds={seconds!r}: pass a number")


def _check_function(id: str, decide: object) -> None:
    """Refuses what has no name to become the title of a claim."""
    if not callable(decide) or not hasattr(decide, "__name__"):
        raise TypeError(f"claim {id} decorates {decide!r}: decorate a function with a name")


def _title(decide: Decide) -> str:
    return decide.__name__.replace("_", " ")


def _by_name(id: str, mutants: Sequence[Subject]) -> dict[str, Subject]:
    """Mutants by their names, of which no two may be the same."""
    if not isinstance(mutants, Sequence) or isinstance(mutants, str):
        raise TypeError(f"claim {id} has mutants={mutants!r}: pass a list, mutants=[...]")
    named = {mutant_name(mutant): mutant for mutant in mutants}
    if len(named) != len(mutants):
        names = sorted(map(mutant_name, mutants))
        raise ValueError(f"claim {id} has two mutants of one name: {names}")
    return named


def _check_settings(id: str, expected: object, statistical: int, profile: str) -> None:
    """Refuses settings that contradict each other."""
    if expected not in list(Verdict):
        raise ValueError(f"claim {id} has expected={expected!r}: pass expected=Verdict.HOLDS")
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

    What cannot be decided is in the catalogue too, and `blocked` says why: a claim that is
    malformed, one that rests on an unknown one, on itself or against what is expected of its
    premises, and, under its own name and with the claims that it had registered, a module that
    cannot be imported. The other claims are as they would be without it.

    Returns
    -------
    dict
        Claims by id: T2 comes before T10.
    """
    # Our own package first: an id that two packages want stays ours.
    for package in sorted(entry_points(group=CLAIM_PACKAGES), key=_ours_first):
        for module in _modules_of(package):
            _import(module, package)
    claims = dict(sorted((_BLOCKED | REGISTRY).items(), key=lambda item: natural_order(item[0])))
    faults = faults_of_premises(
        {id: c.rests_on for id, c in claims.items()}, {id: c.expected for id, c in claims.items()}
    )
    for id, fault in faults.items():
        blocked = f"{fault} (claim of {claims[id].decide.__module__})"
        claims[id] = replace(claims[id], blocked=blocked)
    return claims


def _ours_first(package: EntryPoint) -> tuple[bool, str]:
    return (package.dist is None or package.dist.name != "hesstheory", package.name)


def _modules_of(package: EntryPoint) -> Iterator[str]:
    """Names of a package and its modules; more than its own only once it is imported."""
    yield package.module
    root = sys.modules.get(package.module)
    for folder in map(Path, getattr(root, "__path__", ())):
        for file in sorted(folder.rglob("*.py")):  # also in folders without an __init__
            parts = file.relative_to(folder).with_suffix("").parts
            names = parts[:-1] if parts[-1] == "__init__" else parts
            if names:
                yield ".".join([package.module, *names])


def _import(module: str, package: EntryPoint) -> None:
    """Imports a module of a claim package, or blocks it with the claims that it registered."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a script may end itself where it is imported
        reason = (
            f"module {module} of the claim package {package.module} (entry point {package.name!r} "
            f"of the group {CLAIM_PACKAGES}) cannot be imported: {type(error).__name__}: {error}; "
            "mend it, install what it needs, or uninstall the package"
        )
        _BLOCKED[module] = _stand_in(module, module, "a module of claims", reason)
        # Another process could not load their functions either.
        for c in [c for c in REGISTRY.values() if c.decide.__module__ == module]:
            text = f"claim {c.id} is registered by {module}, which cannot be imported"
            _BLOCKED[c.id] = replace(REGISTRY.pop(c.id), blocked=text)
    else:
        _BLOCKED.pop(module, None)


def _is_installed(module: str) -> bool:
    """Whether a module belongs to an installed claim package."""
    return module.partition(".")[0] in tops_of_claim_packages()


def _block_claim(id: str, decide: Decide, error: Exception) -> None:
    """Puts a stand-in where a claim was refused; where its id is taken, under a name of its own."""
    module = decide.__module__
    reason = f"claim {id!r} of {module} is malformed: {error}"
    name = f"{id}@{module}" if id in REGISTRY or not id else id
    _BLOCKED[name] = _stand_in(
        name, module, getattr(decide, "__name__", "").replace("_", " "), reason
    )


def _stand_in(id: str, module: str, title: str, reason: str) -> Claim:
    """A claim that nothing can decide."""

    def decide(subject: Subject, context: Context) -> Iterable[Check]:
        raise RuntimeError(reason)

    decide.__module__ = module  # as its fingerprint and the listing expect
    return Claim(id, title, title, "", "", Verdict.HOLDS, "", None, {}, decide, blocked=reason)


def select(names: Sequence[str], claims: Mapping[str, Claim]) -> list[str]:
    """Ids of the named claims; `T1` also means its parts `T1.a`, …, and no name means all.

    Raises KeyError for a name that no claim has.
    """
    check_list_of_names("names", names)
    chosen: dict[str, None] = {}
    for name in names or claims:
        found = [id for id in claims if id == name or id.startswith(name + ".")]
        if not found:
            raise KeyError(no_such("claim", name, claims))
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
