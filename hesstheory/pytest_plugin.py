"""The pytest door: one test of every check, and options for them.

    from hesstheory import parametrize_with_checks

    @parametrize_with_checks(
        [my_estimator], expected_failed_checks={"check_one_probe": "needs two probes"}
    )
    def test_estimator(estimator, check):
        check(estimator)

Every pytest imports this where hesstheory is installed, so nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from hesstheory.conformance.contract import Estimator
    from hesstheory.conformance.results import CheckResult
    from hesstheory.conformance.settings import Settings
    from hesstheory.conformance.suite import Course
    from hesstheory.estimators.probes import Probe

_DEFAULTS: dict[str, object] = {"profile": "ci", "seed": 0}
_OPTIONS = dict(_DEFAULTS)


def _profile(name: str) -> str:
    """A profile that there is; called only where the option is given, for what it imports."""
    from hesstheory.evidence.budget import PROFILES

    if name not in PROFILES:
        raise argparse.ArgumentTypeError(f"{name!r}: choose from {', '.join(PROFILES)}")
    return name


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that hold for all estimators whose decorator does not say otherwise."""
    group = parser.getgroup("hesstheory")
    # No default here: pytest would send it through `type`.
    group.addoption(
        "--hesstheory-profile",
        type=_profile,
        help="profile of conformance checks: smoke, ci (default) or full",
    )
    group.addoption("--hesstheory-seed", type=int, help="seed of the conformance checks")


def pytest_configure(config: pytest.Config) -> None:
    """Hands the options to the checks."""
    for name, default in _DEFAULTS.items():
        given = config.getoption(f"--hesstheory-{name}")
        _OPTIONS[name] = default if given is None else given


@dataclass
class BoundCheck:
    """One check, which shares its estimator's runs with the others.

    Called with the estimator, it raises or returns.

    Parameters
    ----------
    name
        Name of the check.
    courses
        Where the runs are shared.
    """

    name: str
    courses: _Courses

    def __call__(self, estimator: Estimator) -> None:
        import pytest

        result = self.courses.of(estimator).result(self.name)
        if result.status in ("failed", "inconclusive"):
            pytest.fail(_text(result), pytrace=False)
        if result.status == "xfailed":
            pytest.xfail(result.detail)
        if result.status in ("skipped", "blocked"):
            pytest.skip(f"{result.status}: {result.detail}")


def _text(result: CheckResult) -> str:
    """What a check that failed saw, which mistakes look like it, and how to see it again."""
    from hesstheory.conformance.kill_matrix import sin_of

    lines = [f"{result.check} {result.status}: {result.detail}"]
    lines += [f"looks like {name}: {sin_of(name)}" for name in result.suspects]
    return "\n".join([*lines, _command()])


def _command() -> str:
    """What runs this test again: the command line may not be able to name its estimator."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    options = [
        f"--hesstheory-{name}={value}"
        for name, value in _OPTIONS.items()
        if value != _DEFAULTS[name]
    ]
    return shlex.join(["pytest", test, *options])


@dataclass
class _Courses:
    """One course of checks per estimator, started when its first check is called."""

    expected: Mapping[str, str] | None
    settings: Mapping[str, object]
    started: dict[int, Course] = field(default_factory=dict)

    def of(self, estimator: Estimator) -> Course:
        """The course of an estimator."""
        from hesstheory.conformance.suite import Course

        if id(estimator) not in self.started:
            settings = _settings({**_OPTIONS, **self.settings})
            self.started[id(estimator)] = Course(estimator, settings, self.expected)
        return self.started[id(estimator)]


def _settings(given: Mapping[str, object]) -> Settings:
    """Settings by name, checked."""
    from hesstheory.conformance.settings import Settings

    return Settings(**given)  # type: ignore[arg-type]


def parametrize_with_checks(
    estimators: Sequence[Estimator | str] | Estimator | str,
    *,
    expected_failed_checks: Mapping[str, str] | None = None,
    profile: str | None = None,
    num_probes: int | None = None,
    seed: int | None = None,
    probe: Probe | None = None,
    time_limit: float | None = None,
    isolate: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of a test function (estimator, check): every check of every estimator is one test.

    Parameters
    ----------
    estimators
        Estimators, or their names, `package.module:name`.
    expected_failed_checks
        Reasons by check; one that passes all the same fails.
    profile, seed
        By default those of `--hesstheory-profile` and `--hesstheory-seed`.
    isolate
        Whether each check runs in a child process. Without it, an estimator that ends its process
        ends pytest, and one that swallows all exceptions outlasts `time_limit` (seconds per check).

    The others are those of `check_estimator`.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    Misuse
        A check is unknown, or what is given is no estimator.

    Examples
    --------
    >>> from hesstheory import LayerwiseTrace, parametrize_with_checks
    >>> @parametrize_with_checks([LayerwiseTrace()], profile="smoke")
    ... def test_estimator(estimator, check):
    ...     check(estimator)
    >>> test_estimator.pytestmark[0].name
    'parametrize'
    """
    import pytest

    from hesstheory.conformance.contract import as_estimator
    from hesstheory.conformance.expectations import read_expected
    from hesstheory.conformance.named import load
    from hesstheory.conformance.selection import checks_of

    given = {
        "profile": profile,
        "num_probes": num_probes,
        "seed": seed,
        "probe": probe,
        "time_limit": time_limit,
        "isolate": isolate,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    courses = _Courses(read_expected(expected_failed_checks), settings)
    # The command line is read later: of a profile that is not asked, checks are skipped.
    names = checks_of(profile or "full")
    cases = []
    for estimator in _listed(estimators):
        is_name = isinstance(estimator, str)
        subject = load(estimator) if isinstance(estimator, str) else as_estimator(estimator)
        title = estimator if is_name else getattr(estimator, "__name__", repr(estimator))
        for name in names:
            cases.append(pytest.param(subject, BoundCheck(name, courses), id=f"{title}-{name}"))
    return pytest.mark.parametrize(("estimator", "check"), cases)


def _listed(
    estimators: Sequence[Estimator | str] | Estimator | str,
) -> Sequence[Estimator | str]:
    """One estimator as a list of one."""
    return [estimators] if callable(estimators) or isinstance(estimators, str) else estimators
