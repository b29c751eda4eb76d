"""How often is a known mistake named among the suspects, at a seed that its stored pattern was not made with?

    python tests/studies/conformance_suspects.py --seed 20261121 --every 4

writes reports/conformance_suspects.json: for every fourth wrong estimator the place of its own name among the suspects
of its own failures, all checks of the ci profile; names that share a pattern with it count as its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hesstheory.conformance.subjects.wrong import WRONG
from hesstheory.conformance.suite import check_estimator
from hesstheory.conformance.suspects import signatures, suspects
from hesstheory.run.files import write_atomically
from hesstheory.run.provenance import provenance

OUT = Path(__file__).parents[2] / "reports" / "conformance_suspects.json"


def place(name: str, seed: int) -> int | None:
    """1 where the mistake is the first suspect, None where it is not among the first ten."""
    results = check_estimator(WRONG[name], "ci", seed=seed)
    ranked = suspects({line for result in results for line in result.signature}, most=10)
    known = signatures()
    alike = {other for other, pattern in known.items() if pattern == known.get(name)}
    return next((i for i, other in enumerate(ranked, start=1) if other in alike), None)


def main() -> None:
    """Runs the estimators one after another and keeps what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--every", type=int, default=4, help="every which of the wrong estimators")
    options = parser.parse_args()
    places: dict[str, int | None] = {}
    for name in list(WRONG)[:: options.every]:
        places[name] = place(name, options.seed)
        print(name, places[name], flush=True)
        found = [p for p in places.values() if p is not None]
        report = {
            "first": sum(p == 1 for p in found),
            "among_first_three": sum(p <= 3 for p in found),
            "of": len(places),
            "seed": options.seed,
            "places": places,
            "provenance": provenance(
                f"conformance_suspects.py --seed {options.seed} --every {options.every}"
            ),
        }
        write_atomically(OUT, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
