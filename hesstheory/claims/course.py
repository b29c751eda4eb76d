"""A run over many claims."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from hesstheory.claims.context import Context
from hesstheory.claims.decide import decide
from hesstheory.claims.ledger import Ledger, now, plain
from hesstheory.claims.registry import PROFILES, Claim, catalogue, natural_order, select
from hesstheory.evidence.budget import Budget
from hesstheory.evidence.checks import Status, Verdict
from hesstheory.run.provenance import fingerprint, provenance
from hesstheory.run.workers import scatter


@dataclass(frozen=True)
class Run:
    """A finished run: the records as the ledger holds them and what they come to."""

    records: list[dict[str, Any]] = field(repr=False)
    suite_alpha: float

    @property
    def claims(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["record"] == "claim"]

    @property
    def records_run(self) -> int:
        """Number of check records in this run."""
        return sum(len(record["checks"]) for record in self.claims)

    @property
    def surprises(self) -> list[dict[str, Any]]:
        """Claims whose verdict differs from the expected one."""
        return [record for record in self.claims if record["verdict"] != record["expected"]]

    @property
    def exit_code(self) -> int:
        """0 all as expected, 1 a verdict differs, 3 the only differences are undecided claims."""
        open_ones = {Verdict.INCONCLUSIVE, Verdict.UNTESTED, Verdict.STALE}
        if not self.surprises:
            return 0
        return 3 if all(record["verdict"] in open_ones for record in self.surprises) else 1

    def to_json(self, records_shown: int) -> dict[str, Any]:
        """The machine-readable summary of DESIGN's contract."""
        keys = ("id", "verdict", "expected", "kind", "detail")
        return {
            "claims": [
                {key: record[key] for key in keys}
                | {"mutants": {m["name"]: m["rejected"] for m in record["mutants"]}}
                for record in self.claims
            ],
            "suite_alpha": self.suite_alpha,
            "records_run": self.records_run,
            "records_shown": records_shown,
        }


def validate(
    names: Sequence[str] = (),
    *,
    profile: str = "ci",
    seed: int = 0,
    ledger: str | os.PathLike[str] = "reports/ledger.jsonl",
    workers: int = 1,
    command: str = "",
    on_result: Callable[[dict[str, Any], int, int], None] | None = None,
) -> Run:
    """Decides the named claims (default: all that the profile can decide) and appends them to the ledger.

    A run that was killed goes on where it stopped when called again with the same code, names, profile and seed.
    `on_result(record, done, total)` is called after every claim. Raises KeyError for an unknown claim.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}: choose from {', '.join(PROFILES)}")
    if isinstance(names, str):
        raise ValueError(f"names is the text {names!r}: pass a list of claims, [{names!r}]")
    claims, book = catalogue(), Ledger(ledger)
    ids = select(names, claims)
    too_large = [id for id in ids if PROFILES.index(claims[id].profile) > PROFILES.index(profile)]
    if too_large and (
        set(too_large) & set(names) or set(too_large) == set(ids)
    ):  # parts that come along are left out
        raise ValueError(
            f"the {profile} profile cannot decide {', '.join(too_large)}: pass a larger --profile"
        )
    ids = [id for id in ids if id not in too_large]
    budget = Budget.of((c.statistical, len(c.mutants)) for c in claims.values())
    code = fingerprint("hesstheory", "hesstheory_validation")
    header = {"profile": profile, "seed": seed, "fingerprint": code, "claims": ids}
    run = book.unfinished(**header)
    if run is None:
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        book.append(
            {"record": "run", "run": run, **header, "suite_alpha": budget.suite_alpha, "alpha_per_check": budget.alpha,
             "num_statistical": budget.num_tests, "provenance": provenance(command), "time": now()}
        )  # fmt: skip
    done = {record["id"] for record in book.run(run) if record["record"] == "claim"}
    context = Context(profile, seed, budget.alpha)
    open_ones = [claims[id] for id in ids if id not in done]
    start = time.perf_counter()
    for record in scatter(partial(_decided_record, context=context), open_ones, workers):
        record |= {"run": run, "fingerprint": code, "time": now()}
        book.append(record)
        done.add(record["id"])
        if on_result is not None:
            on_result(record, len(done), len(ids))
    result = Run(book.run(run), budget.suite_alpha)
    counts = {v.value: sum(record["verdict"] == v for record in result.claims) for v in Verdict}
    book.append(
        {"record": "end", "run": run, "seconds": time.perf_counter() - start, "passed": result.exit_code == 0,
         "counts": {v: n for v, n in counts.items() if n}, "records_run": result.records_run, "time": now()}
    )  # fmt: skip
    return Run(sorted(book.run(run), key=_run_order), budget.suite_alpha)


def _run_order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return ({"run": 0, "claim": 1, "end": 2}[record["record"]], natural_order(record.get("id", "")))


def _decided_record(c: Claim, context: Context) -> dict[str, Any]:
    """Decides one claim in whatever process this is and flattens the outcome for the ledger."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = decide(c, context)
    failed = [check for check in outcome.checks if check.status is Status.FAILED]
    record = {
        "record": "claim", "id": c.id, "subject": c.title, "statement": c.statement, "formula": c.formula,
        "source": c.source, "expected": c.expected, "reason": c.reason, "verdict": outcome.verdict,
        "kind": outcome.kind or "", "detail": outcome.detail,
        "condition": outcome.detail if outcome.verdict is Verdict.CONDITIONAL else "",
        "counterexample": f"{failed[0].name}: {failed[0].detail}" if failed else "",
        "reproduce": f"hesstheory validate {c.id} --profile {context.profile} --seed {context.seed}",
        "checks": [plain(dataclasses.asdict(check)) for check in outcome.checks],
        "mutants": [dataclasses.asdict(mutant) for mutant in outcome.mutants],
        "seconds": outcome.seconds, "profile": context.profile, "seed": context.seed,
    }  # fmt: skip
    return record
