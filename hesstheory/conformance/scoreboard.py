"""How do peer libraries fare?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hesstheory.conformance.contract import Misuse
from hesstheory.conformance.expectations import read_tables
from hesstheory.conformance.results import CheckResult
from hesstheory.conformance.settings import TIME_LIMIT
from hesstheory.conformance.subjects.peers import PEERS, distribution_of, installed
from hesstheory.conformance.suite import check_estimator
from hesstheory.run.names import check_list_of_names, no_such


def scoreboard(
    profile: str = "ci",
    *,
    names: Sequence[str] | None = None,
    num_probes: int = 32,
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
    checks: Sequence[str] | None = None,
    xfails: Path | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> Mapping[str, list[CheckResult]]:
    """Peer libraries that are installed, checked.

    Parameters
    ----------
    names
        Only these, such as "pyhessian".
    xfails
        A TOML file with a table of reasons for each.

    The others are those of `check_estimator`.

    Raises
    ------
    Misuse
        A peer is unknown or not installed.
    """
    check_list_of_names("names", names or (), Misuse)
    if unknown := [name for name in names or () if name not in PEERS]:
        raise Misuse(no_such("peer", unknown[0], PEERS))
    present = installed()
    expected = read_tables(xfails, PEERS) if xfails else {}
    if missing := [name for name in names or () if distribution_of(name) not in present]:
        raise Misuse(f"{missing[0]} is not installed: pip install -c constraints.txt -e '.[peers]'")
    return {
        name: check_estimator(
            PEERS[name],
            profile,
            num_probes=num_probes,
            seed=seed,
            checks=checks,
            time_limit=time_limit,
            expected_failed_checks=expected.get(name),
            on_result=on_result,
        )
        for name in names or PEERS
        if distribution_of(name) in present
    }
