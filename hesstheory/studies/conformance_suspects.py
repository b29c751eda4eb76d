"""How often is a known mistake named among the suspects, at another seed than its pattern's?

    hesstheory study conformance_suspects --seed 20261121 --every 4

For every fourth wrong estimator the record holds the place of its own name among the suspects of
its own failures, with all checks of the ci profile. Names that share a pattern with it count as its
own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from hesstheory import conformance
from hesstheory.conformance.subjects.wrong import WRONG
from hesstheory.conformance.suite import check_estimator
from hesstheory.conformance.suspects import SIGNATURES, signatures, suspects
from hesstheory.studies.campaign import Campaign
from hesstheory.studies.records import FINGERPRINT, Record, SpotCheck
from hesstheory.studies.study import Call, Parser, Study, call_study

_MOST = 10  # suspects that are looked through
_SPOT = 2  # mistakes that a spot check repeats; each takes seconds


def place(name: str, seed: int) -> int | None:
    """1 where the mistake is the first suspect, None where it is not among the first ten."""
    results = check_estimator(WRONG[name], "ci", seed=seed)
    ranked = suspects({line for result in results for line in result.signature}, most=_MOST)
    known = signatures()
    alike = {other for other, pattern in known.items() if pattern == known.get(name)}
    return next((i for i, other in enumerate(ranked, start=1) if other in alike), None)


def summary(seed: int, places: Mapping[str, int | None]) -> Record:
    """How many mistakes were named first, and among the first three."""
    found = [place for place in places.values() if place is not None]
    return {
        "first": sum(place == 1 for place in found),
        "among_first_three": sum(place <= 3 for place in found),
        "of": len(places),
        "seed": seed,
        "places": dict(places),
    }


def spot_check(record: Record) -> SpotCheck:
    """Repeats the first mistakes and compares their places."""
    names = list(record["places"])[:_SPOT]
    found = [place(name, record["seed"]) for name in names]
    recorded = [record["places"][name] for name in names]
    return SpotCheck.of_outcomes(f"places of {', '.join(names)}", found, recorded)


def _work(task: tuple[str, int], folder: Path) -> Record:
    """One run of the campaign."""
    return {"place": place(*task)}


def _add_options(parser: Parser) -> None:
    """Which estimators, at which seed."""
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--every", type=int, default=4, help="every which of the wrong estimators")
    parser.add_argument("--workers", type=int, default=1, help="processes that share them")


def _run(call: Call) -> bool:
    """Runs the estimators; the record is written after each."""
    seed = call.options.seed
    names = list(WRONG)[:: call.options.every]
    campaign = Campaign(call.runs / f"seed {seed}", _work, call.header[FINGERPRINT])
    places: dict[str, int | None] = {}
    tasks = {name: (name, seed) for name in names}
    for name, found in campaign.runs(tasks, workers=call.options.workers):
        assert found is not None  # no time limit was given
        places[name] = found["place"]
        print(name, places[name], flush=True)
        ordered = {name: places[name] for name in names if name in places}
        call.write(summary(seed, ordered))
    return True


STUDY = Study(
    "conformance_suspects",
    "How often is a known mistake named among the suspects, at another seed than its pattern's?",
    _run,
    _add_options,
    spot_check,
    data=(Path(str(conformance.__file__)).parent / SIGNATURES,),
)

if __name__ == "__main__":
    sys.exit(call_study(STUDY))
