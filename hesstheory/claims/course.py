"""A run over many claims."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from hesstheory.claims.context import Context
from hesstheory.claims.decide import Outcome, decide
from hesstheory.claims.ledger import Ledger, Record, now, plain, verdict_now
from hesstheory.claims.premises import (
    all_premises,
    blocked_premises,
    refuted_premises,
    verdict_under,
)
from hesstheory.claims.registry import Claim, catalogue, natural_order, select
from hesstheory.evidence.budget import PROFILES, Budget
from hesstheory.evidence.checks import Status, Verdict
from hesstheory.run.provenance import fingerprint_of, provenance
from hesstheory.run.workers import scatter

# Beside the page and the figures of the same run; the command line has the folder as --out.
LEDGER = "runs/validate/reports/ledger.jsonl"

_OPEN = {Verdict.INCONCLUSIVE, Verdict.UNTESTED, Verdict.STALE}


@dataclass(frozen=True)
class Run:
    """A finished run: the records as the ledger holds them and what they come to."""

    records: list[Record] = field(repr=False)
    suite_alpha: float

    @property
    def claims(self) -> list[Record]:
        """The records of the claims."""
        return [record for record in self.records if record["record"] == "claim"]

    @property
    def records_run(self) -> int:
        """Number of check records in this run."""
        return sum(len(record["checks"]) for record in self.claims)

    @property
    def surprises(self) -> list[Record]:
        """Claims whose verdict differs from the expected one."""
        return [record for record in self.claims if record["verdict"] != record["expected"]]

    @property
    def exit_code(self) -> int:
        """0 all as expected, 1 a verdict differs, 3 the only differences are undecided claims."""
        if not self.surprises:
            return 0
        return 3 if all(record["verdict"] in _OPEN for record in self.surprises) else 1

    def to_json(self, records_shown: int) -> Record:
        """The machine-readable summary; `records_shown` is the number of checks that stand on the
        page."""
        keys = ("id", "verdict", "expected", "kind", "detail")
        claims = [
            {key: record[key] for key in keys}
            | {"mutants": {mutant["name"]: mutant["rejected"] for mutant in record["mutants"]}}
            for record in self.claims
        ]
        return {
            "claims": claims,
            "suite_alpha": self.suite_alpha,
            "records_run": self.records_run,
            "records_shown": records_shown,
        }


def validate(
    names: Sequence[str] = (),
    *,
    profile: str = "ci",
    seed: int = 0,
    ledger: str | os.PathLike[str] = LEDGER,
    workers: int = 1,
    command: str = "",
    on_result: Callable[[Record, int, int], None] | None = None,
) -> Run:
    """Decides claims and appends them to the ledger.

    A run that was killed goes on where it stopped when called again with the same code, names,
    profile and seed.

    Parameters
    ----------
    names
        Claims such as `["T1", "T2.a"]`; `T1` also means its parts. By default, all that the profile
        can decide.
    profile
        `smoke` (deterministic, seconds), `ci` or `full`.
    seed
        Seed of all random streams.
    ledger
        The file that receives the records. It is only ever appended to.
    workers
        Number of processes. The records do not depend on it.
    command
        The command line, for the provenance of the run.
    on_result
        `on_result(record, done, total)` is called after every claim.

    Returns
    -------
    Run
        The records of this run, in natural order of the claims.

    Raises
    ------
    KeyError
        If no claim has one of the names.
    ValueError
        If the profile is unknown or cannot decide a named claim.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = validate(["T14.b"], profile="smoke", ledger=folder + "/ledger.jsonl")
    >>> run.exit_code, run.claims[0]["verdict"]
    (0, 'HOLDS')
    """
    claims = _chosen(names, profile)
    book = Ledger(ledger)
    budget = Budget.of((c.statistical, len(c.mutants)) for c in claims.all.values())
    context = Context(profile, seed, budget.alpha)
    run = _begun(book, claims, context, budget, command)
    done = {record["id"] for record in book.run(run) if record["record"] == "claim"}
    waiting = claims.but_for(done, longest_first=workers > 1)
    start = time.perf_counter()
    for record in _decided(waiting, context, workers):
        record |= {"run": run, "fingerprint": claims.code[record["id"]], "time": now()}
        book.append(record)
        done.add(record["id"])
        if on_result is not None:
            on_result(record, len(done), len(claims.ids))
    for record in _under_fallen_premises(book, run, claims):
        book.append(record)
    book.append(_end(Run(book.run(run), budget.suite_alpha), run, time.perf_counter() - start))
    return Run(sorted(book.run(run), key=_run_order), budget.suite_alpha)


@dataclass(frozen=True)
class _Chosen:
    """All claims, the ids of those to decide, and fingerprints of these and their premises."""

    all: Mapping[str, Claim]
    ids: list[str]
    code: Mapping[str, str]

    def but_for(self, done: Collection[str], *, longest_first: bool) -> list[Claim]:
        """Claims that are still to be decided; several workers do not end with a long one."""
        waiting = [self.all[id] for id in self.ids if id not in done]
        return sorted(waiting, key=lambda c: -c.seconds) if longest_first else waiting

    @property
    def rests_on(self) -> dict[str, tuple[str, ...]]:
        """Premises of every claim."""
        return {id: c.rests_on for id, c in self.all.items()}


def fingerprints(claims: Iterable[Claim]) -> dict[str, str]:
    """Fingerprint of the code behind every claim, by its id.

    A claim without a source file, typed into a session, gets a new one every time: nothing can tell
    whether it changed.
    """
    by_module: dict[str, str] = {}
    found = {}
    for c in claims:
        module = c.decide.__module__
        if module not in by_module:
            by_module[module] = _code_of(module)
        found[c.id] = by_module[module]
    return found


def _code_of(module: str) -> str:
    try:
        return fingerprint_of(module)
    except (ValueError, SyntaxError):
        return secrets.token_hex(8)


def _chosen(names: Sequence[str], profile: str) -> _Chosen:
    """The named claims, or all that the profile can decide; parts that come along with a name may
    be left out."""
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}: choose from {', '.join(PROFILES)}")
    claims = catalogue()
    ids = select(names, claims)
    depth = PROFILES.index(profile)
    too_large = [id for id in ids if PROFILES.index(claims[id].profile) > depth]
    if too_large and (set(too_large) & set(names) or set(too_large) == set(ids)):
        raise ValueError(
            f"the {profile} profile cannot decide {', '.join(too_large)}: pass a larger --profile"
        )
    ids = [id for id in ids if id not in too_large]
    rests_on = {id: c.rests_on for id, c in claims.items()}
    needed = set(ids).union(*(all_premises(id, rests_on) for id in ids)) & claims.keys()
    return _Chosen(claims, ids, fingerprints(claims[id] for id in needed))


def _begun(book: Ledger, claims: _Chosen, context: Context, budget: Budget, command: str) -> str:
    """Id of the last run, where it is this one and was killed, or of a new one with its header in
    the ledger."""
    code = hashlib.sha256("".join(claims.code[id] for id in claims.ids).encode()).hexdigest()[:16]
    header = {
        "profile": context.profile,
        "seed": context.seed,
        "fingerprint": code,
        "claims": claims.ids,
    }
    if run := book.unfinished(**header):
        return run
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    book.append(
        {"record": "run", "run": run, **header, "suite_alpha": budget.suite_alpha,
         "alpha_per_check": budget.alpha, "num_statistical": budget.num_tests,
         "provenance": provenance(command), "time": now()}
    )  # fmt: skip
    return run


def _under_fallen_premises(book: Ledger, run: str, claims: _Chosen) -> list[Record]:
    """New records of the claims of this run that hold by their own checks but rest on one that is
    refuted or cannot be decided.

    A premise that is not part of the run counts by its last verdict in the ledger, unless that is
    stale.
    """
    decided = {record["id"]: record for record in book.run(run) if record["record"] == "claim"}
    last = book.last_records() | decided
    verdicts = {id: verdict_now(last.get(id), code) for id, code in claims.code.items()}
    # UNTESTED without a record is a premise that nobody has asked for yet.
    broken = {id for id, found in verdicts.items() if found is Verdict.UNTESTED and id in last}
    broken |= {id for id in claims.code if claims.all[id].blocked}
    changed = []
    for id, record in decided.items():
        refuted = refuted_premises(id, claims.rests_on, verdicts)
        blocked = blocked_premises(id, claims.rests_on, broken)
        found, detail = verdict_under(
            Verdict(record["verdict"]), record["detail"], refuted, blocked
        )
        if found != record["verdict"]:
            change = {"verdict": found, "detail": detail, "condition": "", "time": now()}
            changed.append(record | change)
    return changed


def _end(result: Run, run: str, seconds: float) -> Record:
    """The last record of a run."""
    counts = {v.value: sum(record["verdict"] == v for record in result.claims) for v in Verdict}
    return {
        "record": "end", "run": run, "seconds": seconds, "passed": result.exit_code == 0,
        "counts": {v: n for v, n in counts.items() if n}, "records_run": result.records_run,
        "time": now(),
    }  # fmt: skip


def _run_order(record: Record) -> tuple[int, tuple[str, int, str]]:
    """The header first, claims in natural order, the end last."""
    return ({"run": 0, "claim": 1, "end": 2}[record["record"]], natural_order(record.get("id", "")))


def _decided(waiting: Sequence[Claim], context: Context, workers: int) -> Iterator[Record]:
    """Records of claims as they are decided; what is blocked is not sent to another process, which
    could not load it."""
    record_of = partial(_decided_record, context=context)
    yield from (record_of(c) for c in waiting if c.blocked)
    yield from scatter(record_of, [c for c in waiting if not c.blocked], workers)


def _decided_record(c: Claim, context: Context) -> Record:
    """Decides one claim in whatever process this is and flattens the outcome for the ledger."""
    with warnings.catch_warnings():
        # A warning inside a claim is a finding about it, not noise on the terminal.
        warnings.simplefilter("error")
        outcome = decide(c, context)
    return {**_of_claim(c), **_of_outcome(outcome), **_of_run(c, context)}


def _of_claim(c: Claim) -> Record:
    """What the claim says."""
    return {
        "record": "claim", "id": c.id, "subject": c.title, "statement": c.statement,
        "formula": c.formula, "source": c.source, "expected": c.expected, "reason": c.reason,
        "rests_on": list(c.rests_on),
    }  # fmt: skip


def _of_outcome(outcome: Outcome) -> Record:
    """What was found; the first failure is the counterexample."""
    failed = [check for check in outcome.checks if check.status is Status.FAILED]
    is_conditional = outcome.verdict is Verdict.CONDITIONAL
    return {
        "verdict": outcome.verdict, "kind": outcome.kind or "", "detail": outcome.detail,
        "condition": outcome.detail if is_conditional else "",
        "counterexample": f"{failed[0].name}: {failed[0].detail}" if failed else "",
        "checks": [plain(dataclasses.asdict(check)) for check in outcome.checks],
        "mutants": [dataclasses.asdict(mutant) for mutant in outcome.mutants],
        "seconds": outcome.seconds,
    }  # fmt: skip


def _of_run(c: Claim, context: Context) -> Record:
    """How it was found, and the command that finds it again."""
    command = f"hesstheory validate {c.id} --profile {context.profile} --seed {context.seed}"
    return {"reproduce": command, "profile": context.profile, "seed": context.seed}
