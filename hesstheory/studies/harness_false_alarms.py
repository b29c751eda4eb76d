"""How often does a full-scale run whose code is right fail? Narrow networks of many seeds and sizes, all checks.

    OMP_NUM_THREADS=1 python tests/studies/harness_false_alarms.py --json reports/harness_false_alarms.json

Seeds are consecutive; width, batch, probes and network go by the seed; every fourth run has so many samples that rows
are sketched, every fifth one is trained for some steps. A failure is written down with its seed, which
repeats it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from scipy.stats import beta

from hesstheory.harness.course import run
from hesstheory.harness.subject import Settings
from hesstheory.run.files import write_atomically
from hesstheory.run.provenance import provenance


def settings_of(seed: int) -> Settings:
    """What is measured with a seed."""
    model, batch = ("resnet18", "vgg11")[seed % 2], 40 if seed % 8 in (0, 5) else 4 + seed % 5
    steps = 3 if seed % 5 == 0 else 0
    return Settings(
        model=model, width=1 + seed % 3, batch=batch, probes=4 + seed % 7, steps=steps, seed=seed
    )


def failed(seed: int) -> dict[str, str]:
    """The checks that failed, and what they said."""
    with tempfile.TemporaryDirectory() as folder:
        report = run(settings_of(seed), folder, say=lambda line: None)
    return {
        name: check["detail"]
        for name, check in report["checks"].items()
        if check["status"] == "failed"
    }


def main() -> None:
    """Runs all seeds; the file is written after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=3000)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    failures: dict[str, Any] = {}
    for done, seed in enumerate(
        range(options.first_seed, options.first_seed + options.runs), start=1
    ):
        if wrong := failed(seed):
            failures[str(seed)] = wrong
            print(seed, wrong)
        found = {
            "provenance": provenance("harness_false_alarms.py"),
            "first_seed": options.first_seed,
            "runs": done,
            "failures": failures,
            "upper_limit_95": float(beta.isf(0.05, len(failures) + 1, done - len(failures)))
            if done > len(failures)
            else 1.0,
        }
        write_atomically(options.json, json.dumps(found, indent=2) + "\n")
    print(f"{len(failures)} of {options.runs} runs failed")


if __name__ == "__main__":
    main()
