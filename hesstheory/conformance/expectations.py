"""Failures that are expected, each with a reason."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

from hesstheory.conformance.contract import Misuse
from hesstheory.conformance.results import CheckResult
from hesstheory.conformance.selection import CHECKS, checks_of, full_name
from hesstheory.evidence.checks import Status


def read_xfails(path: Path, today: date | None = None) -> dict[str, str]:
    """Expected failures of a TOML file.

    Parameters
    ----------
    path
        A file with lines check = "reason", or tables [check] with `reason` and optionally a date
        `expires`.
    today
        The date that entries expire by.

    Returns
    -------
    dict
        Reasons by the full names of the checks.

    Raises
    ------
    Misuse
        The file does not parse, a check is unknown, a reason is missing or an entry has expired.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hesstheory.conformance import read_xfails
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "xfails.toml"
    ...     _ = path.write_text('one_probe = "needs two probes"')
    ...     read_xfails(path)
    {'check_one_probe': 'needs two probes'}
    """
    entries = _toml(path)
    return _entries(entries.get("expected_failed_checks", entries), path, today)


def read_tables(path: Path, subjects: Iterable[str]) -> dict[str, dict[str, str]]:
    """Expected failures of several subjects, from a table [subject] for each."""
    known = list(subjects)
    tables = _toml(path)
    if unknown := [name for name in tables if name not in known]:
        raise Misuse(f"--xfails {path}: no peer {unknown[0]!r}; the peers are {', '.join(known)}")
    return {name: _entries(table, path) for name, table in tables.items()}


def _toml(path: Path) -> dict[str, object]:
    """What a TOML file holds."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Misuse(f"--xfails {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misuse(f"--xfails {path} is no TOML: {error}") from error


def _entries(entries: object, path: Path, today: date | None = None) -> dict[str, str]:
    """Checks with their reasons; an expectation that is no table and no text has none."""
    found: dict[str, object] = {}
    for check, entry in (entries if isinstance(entries, dict) else {}).items():
        table = entry if isinstance(entry, dict) else {"reason": entry}
        expires = _expiry(table.get("expires"), f"--xfails {path}: {check}")
        if expires is not None and expires < (today or date.today()):
            raise Misuse(
                f"--xfails {path}: the entry of {check} expired on {expires}: mend the estimator, "
                "or renew it"
            )
        found[check] = table.get("reason")
    return read_expected(found, f"--xfails {path}: ")


def _expiry(given: object, where: str) -> date | None:
    """The date on which an entry expires, if any."""
    if isinstance(given, str):
        try:
            return date.fromisoformat(given)
        except ValueError as error:
            raise Misuse(f"{where} expires on {given!r}, which is no date: 2030-12-31") from error
    if isinstance(given, datetime):
        return given.date()
    return given if isinstance(given, date) else None


def read_expected(
    entries: Mapping[str, object] | None, where: str = "expected_failed_checks: "
) -> dict[str, str]:
    """Expected failures with their reasons, by full names.

    Raises
    ------
    Misuse
        A check is unknown or named twice, or a reason is missing; the message begins with `where`.
    """
    found: dict[str, str] = {}
    for check, reason in (entries or {}).items():
        name = full_name(check)
        if name not in CHECKS:
            raise Misuse(f"{where}no check is named {check!r}; the checks are {', '.join(CHECKS)}")
        if not isinstance(reason, str) or not reason.strip():
            raise Misuse(f"{where}{check} has no reason: say why the failure is expected")
        if name in found:
            raise Misuse(f"{where}{name} is named twice, with and without `check_`: remove one")
        found[name] = reason
    return found


def with_expectation(result: CheckResult, expected: Mapping[str, str], profile: str) -> CheckResult:
    """The result, given what was expected: an expectation that nothing bears out fails."""
    reason = expected.get(result.check)
    if reason is None:
        return result
    if result.status == Status.FAILED:
        text = f"expected ({reason}): {result.detail}"
        return replace(result, status=Status.XFAILED, detail=text)
    if result.status == Status.PASSED:
        text = f"passes, although it is expected to fail ({reason}): remove the entry"
        return replace(result, status=Status.FAILED, detail=text, stale=True)
    if result.status == Status.SKIPPED and result.check in checks_of(profile):
        text = f"skipped ({result.detail}), so that no failure can be expected: remove the entry"
        return replace(result, status=Status.FAILED, detail=text, stale=True)
    return replace(result, detail=f"{result.detail}; expected to fail ({reason})")
