"""The pytest door: `parametrize_with_checks` makes one test of every check, and the plugin gives it options.

    from hesstheory import parametrize_with_checks

    @parametrize_with_checks([my_estimator], expected_failed_checks={"check_one_probe": "needs two probes"})
    def test_estimator(estimator, check):
        check(estimator)

Imported by every pytest that runs where hesstheory is installed, so nothing heavy is imported here.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hesstheory.conformance.suite import CheckResult, Course

_DEFAULTS: dict[str, Any] = {"profile": "ci", "seed": 0}
_OPTIONS = dict(_DEFAULTS)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that hold for all estimators whose decorator does not say otherwise."""
    group = parser.getgroup("hesstheory")
    group.addoption(
        "--hesstheory-profile", choices=("smoke", "ci", "full"), default=_DEFAULTS["profile"],
        help="profile of conformance checks",
    )  # fmt: skip
    group.addoption(
        "--hesstheory-seed",
        type=int,
        default=_DEFAULTS["seed"],
        help="seed of the conformance checks",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hands the options to the checks."""
    _OPTIONS.update(
        profile=config.getoption("--hesstheory-profile"), seed=config.getoption("--hesstheory-seed")
    )


@dataclass
class BoundCheck:
    """One check, which shares its estimator's runs with the others; called with the estimator, it raises or returns."""

    name: str
    courses: _Courses

    def __call__(self, estimator: Any) -> None:
        result = self.courses.of(estimator).result(self.name)
        text = _text(result)
        if result.status in ("failed", "inconclusive"):
            pytest.fail(text, pytrace=False)
        if result.status == "xfailed":
            pytest.xfail(result.detail)
        if result.status in ("skipped", "blocked"):
            pytest.skip(f"{result.status}: {result.detail}")


def _text(result: CheckResult) -> str:
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
    settings: Mapping[str, Any]
    started: dict[int, Course] = field(default_factory=dict)

    def of(self, estimator: Any) -> Course:
        from hesstheory.conformance.suite import Course

        if id(estimator) not in self.started:
            given = {name: value for name, value in self.settings.items() if value is not None}
            self.started[id(estimator)] = Course(
                estimator, expected=self.expected, **{**_OPTIONS, **given}
            )
        return self.started[id(estimator)]


def parametrize_with_checks(
    estimators: Sequence[Any],
    *,
    expected_failed_checks: Mapping[str, str] | None = None,
    profile: str | None = None,
    num_probes: int | None = None,
    seed: int | None = None,
    probe: Any = None,
    time_limit: float | None = None,
    isolate: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of a test function (estimator, check) that runs every check of every estimator as one test.

    `expected_failed_checks` maps checks to reasons; one that passes all the same fails. Profile and seed come from
    `--hesstheory-profile` and `--hesstheory-seed` unless given. `isolate` runs each check in a child process: without
    it, an estimator that ends its process ends pytest, and one that swallows all exceptions outlasts `time_limit`
    (seconds per check). Raises `Misuse` for unknown checks and for what is no estimator.
    """
    from hesstheory.conformance.contract import as_estimator
    from hesstheory.conformance.named import load
    from hesstheory.conformance.suite import checks_of, read_expected

    expected = read_expected(expected_failed_checks)
    settings = {"profile": profile, "num_probes": num_probes, "seed": seed, "probe": probe, "time_limit": time_limit,
                "isolate": isolate}  # fmt: skip
    courses = _Courses(expected, settings)
    cases = []
    for estimator in (
        [estimators] if callable(estimators) or isinstance(estimators, str) else estimators
    ):
        subject = load(estimator) if isinstance(estimator, str) else as_estimator(estimator)
        name = (
            estimator
            if isinstance(estimator, str)
            else getattr(estimator, "__name__", repr(estimator))
        )
        for check in checks_of(profile or "full"):
            cases.append(pytest.param(subject, BoundCheck(check, courses), id=f"{name}-{check}"))
    return pytest.mark.parametrize(("estimator", "check"), cases)
