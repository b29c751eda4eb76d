"""How an estimator is checked, and the command that checks it so again."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass

from hesstheory.conformance.contract import Misuse
from hesstheory.conformance.isolation import CAN_FORK
from hesstheory.conformance.selection import check_profile
from hesstheory.conformance.subjects.peers import PEERS
from hesstheory.estimators.probes import Probe

TIME_LIMIT = 300.0  # seconds per check: the slowest of a right estimator take a tenth of it


@dataclass(frozen=True)
class Settings:
    """How an estimator is checked.

    Parameters
    ----------
    profile
        "smoke", "ci" or "full".
    num_probes
        Probes of a call, at least 2.
    seed
        Seed of all random streams.
    probe
        Declares the distribution of the probes.
    time_limit
        Seconds per check.
    isolate
        Whether each check runs in a child process that may hang or crash.

    Raises
    ------
    Misuse
        A setting is not possible.
    """

    profile: str = "ci"
    num_probes: int = 32
    seed: int = 0
    probe: Probe | None = None
    time_limit: float = TIME_LIMIT
    isolate: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.num_probes, int) or self.num_probes < 2:
            raise Misuse(
                f"num_probes is {self.num_probes!r}: pass a whole number of at least 2, better 32 "
                "or more"
            )
        check_profile(self.profile)
        if self.isolate and not CAN_FORK:
            raise Misuse("this platform cannot fork: leave isolate out")

    def command(self, estimator: object) -> str:
        """The command that checks an estimator so, or nothing where there is none."""
        words = _words(estimator)
        if not words:
            return ""
        options = {
            "--profile": self.profile,
            "--num-probes": str(self.num_probes),
            "--seed": str(self.seed),
        }
        if self.probe is not None:
            options["--probe"] = type(self.probe).__name__
        if self.time_limit != TIME_LIMIT:
            options["--time-limit"] = f"{self.time_limit:g}"
        flags = ["--isolate"] if self.isolate else []
        pairs = [word for option in options.items() for word in option]
        return shlex.join(["hesstheory", "check", *words, *pairs, *flags])


def _words(estimator: object) -> list[str]:
    """What names an estimator on the command line; nothing for what is local or configured."""
    if isinstance(estimator, str):
        return [estimator]
    if peers := [name for name, peer in PEERS.items() if peer is estimator]:
        return ["peers", "--peer", peers[0]]
    module = sys.modules.get(getattr(estimator, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return []
    where = file if module.__name__ == "__main__" else module.__name__
    return [f"{where}:{name}" for name, value in vars(module).items() if value is estimator][:1]
