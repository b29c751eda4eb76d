"""How often does a full-scale run fail whose code is right?

    OMP_NUM_THREADS=1 hesstheory study harness_false_alarms

Narrow networks of many seeds and sizes go through all checks. Seeds are consecutive. Width, batch,
probes and network go by the seed. Every fourth run has so many samples that rows are sketched, and
every fifth one is trained for some steps. A failure is written down with its seed, which repeats
it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hesstheory.evidence.intervals import clopper_pearson
from hesstheory.harness.course import run
from hesstheory.harness.subject import Settings
from hesstheory.studies.campaign import Campaign
from hesstheory.studies.records import FINGERPRINT, Record, SpotCheck
from hesstheory.studies.study import Call, Parser, Study, call_study

_LEVEL = 0.90  # of the two-sided interval, whose upper end is the one-sided limit at 95 %
_SPOT = 3  # runs that a spot check repeats: both networks, with and without training


def settings_of(seed: int) -> Settings:
    """What is measured with a seed."""
    model = ("resnet18", "vgg11")[seed % 2]
    batch = 40 if seed % 8 in (0, 5) else 4 + seed % 5
    steps = 3 if seed % 5 == 0 else 0
    return Settings(
        model=model, width=1 + seed % 3, batch=batch, probes=4 + seed % 7, steps=steps, seed=seed
    )


def failed(seed: int, folder: Path) -> dict[str, str]:
    """The checks that failed, and what they said."""
    report = run(settings_of(seed), folder / "harness", resume=True, say=_nothing)
    return {
        name: check["detail"]
        for name, check in report["checks"].items()
        if check["status"] == "failed"
    }


def summary(first_seed: int, failures: Mapping[int, Mapping[str, str]]) -> Record:
    """The record: which seeds failed, and the upper limit of the rate at 95 %."""
    wrong = {str(seed): failures[seed] for seed in sorted(failures) if failures[seed]}
    return {
        "first_seed": first_seed,
        "runs": len(failures),
        "failures": wrong,
        "upper_limit_95": clopper_pearson(len(wrong), len(failures), _LEVEL)[1],
    }


def spot_check(record: Record) -> SpotCheck:
    """Repeats the first runs and compares which of their checks fail."""
    seeds = range(record["first_seed"], record["first_seed"] + min(_SPOT, record["runs"]))
    with tempfile.TemporaryDirectory() as folder:
        found = [sorted(failed(seed, Path(folder, str(seed)))) for seed in seeds]
    recorded = [sorted(record["failures"].get(str(seed), ())) for seed in seeds]
    compared = f"failed checks of seeds {seeds.start} to {seeds.stop - 1}"
    return SpotCheck.of_outcomes(compared, found, recorded)


def _nothing(line: str) -> None:
    """A run of a campaign says nothing."""


def _work(seed: int, folder: Path) -> Record:
    """One run of the campaign."""
    return {"seed": seed, "failures": failed(seed, folder)}


def _add_options(parser: Parser) -> None:
    """How many runs, from which seed on."""
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=1, help="processes that share the runs")


def _run(call: Call) -> bool:
    """Runs all seeds in their order; the record is written after each."""
    options = call.options
    seeds = range(options.first_seed, options.first_seed + options.runs)
    campaign = Campaign(call.runs, _work, call.header[FINGERPRINT])
    failures: dict[int, dict[str, str]] = {}
    for _, found in campaign.runs({str(seed): seed for seed in seeds}, workers=options.workers):
        assert found is not None  # no time limit was given
        failures[found["seed"]] = found["failures"]
        if found["failures"]:
            print(found["seed"], found["failures"])
        call.write(summary(options.first_seed, failures))
    print(f"{sum(map(bool, failures.values()))} of {options.runs} runs failed")
    return True


STUDY = Study(
    "harness_false_alarms",
    "How often does a full-scale run fail whose code is right?",
    _run,
    _add_options,
    spot_check,
)

if __name__ == "__main__":
    sys.exit(call_study(STUDY))
