"""Which checks run: names, profiles and prerequisites."""

from __future__ import annotations

from collections.abc import Sequence

from hesstheory.conformance.checks import CHECKS as CHECKS
from hesstheory.conformance.contract import Misuse
from hesstheory.evidence.budget import PROFILES
from hesstheory.run.names import check_list_of_names, no_such


def full_name(check: str) -> str:
    """The name of a check, whose prefix `check_` may be left out."""
    return check if check in CHECKS else f"check_{check}"


def belongs(check: str, profile: str) -> bool:
    """Whether a profile asks a check: each asks all of those before it, too."""
    return PROFILES.index(CHECKS[check].profile) <= PROFILES.index(profile)


def checks_of(profile: str) -> list[str]:
    """Names of the checks of a profile."""
    return [name for name in CHECKS if belongs(name, profile)]


def chosen(names: Sequence[str] | None, profile: str) -> list[str]:
    """The named checks with their prerequisites, or all of the profile, in their order."""
    check_profile(profile)
    check_list_of_names("checks", names or (), Misuse)
    if unknown := [name for name in names or () if full_name(name) not in CHECKS]:
        raise Misuse(no_such("check", unknown[0], CHECKS))
    wanted: set[str] = set()

    def want(name: str) -> None:
        wanted.add(name)
        for need in CHECKS[name].needs:
            want(need)

    for name in names or checks_of(profile):
        want(full_name(name))
    return [name for name in CHECKS if name in wanted]


def check_profile(profile: str) -> None:
    """Raises Misuse for a profile that there is not."""
    if profile not in PROFILES:
        raise Misuse(f"profile is {profile!r}: choose from {', '.join(PROFILES)}")
