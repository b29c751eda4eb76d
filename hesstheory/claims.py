"""What do we believe, and why: claims with their mutants, the run that decides them and the ledger that remembers."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import os
import pkgutil
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesstheory.evidence import Budget, Check, Kind, Status, Verdict, verdict
from hesstheory.execution import append_line, fingerprint, provenance, scatter, stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hesstheory.problem import Problem

Decide = Callable[[Any, "Context"], Iterable[Check]]
PROFILES = ("smoke", "ci", "full")


@dataclass(frozen=True)
class Claim:
    """A statement that can be decided.

    `decide(subject, context)` yields checks of the subject: a formula or an estimator. Each mutant stands in for the
    subject and must change the outcome of a check. `statistical` counts the statistical checks that decide yields.
    """

    id: str
    title: str
    statement: str
    formula: str
    source: str
    expected: Verdict
    reason: str
    subject: Any
    mutants: Mapping[str, Any]
    decide: Decide
    statistical: int = 0
    profile: str = "smoke"


REGISTRY: dict[str, Claim] = {}


def claim(
    id: str,
    statement: str,
    *,
    subject: Any = None,
    mutants: Sequence[Any] = (),
    expected: Verdict = Verdict.HOLDS,
    reason: str,
    source: str = "ours",
    formula: str = "",
    statistical: int = 0,
    profile: str = "smoke",
) -> Callable[[Decide], Decide]:
    """Registers the decorated `decide(subject, context)` as a claim; its name becomes the claim's title.

    `expected` with its `reason` is what is known on paper: validation fails when the verdict differs, either way.
    `profile` is the smallest profile that can decide the claim. Mutants are classes, functions or instances whose
    docstring names the sin.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}: choose from {', '.join(PROFILES)}")
    if expected in (Verdict.STALE, Verdict.UNTESTED):
        raise ValueError(f"claim {id} expects {expected}, which is no outcome of checks: pass expected=Verdict.HOLDS")
    if statistical and profile == "smoke":
        raise ValueError(f"claim {id} has statistical checks, which the smoke profile leaves out: pass profile='ci'")

    def register(decide: Decide) -> Decide:
        known = REGISTRY.get(id)
        if known and (known.decide.__module__, known.decide.__qualname__) != (decide.__module__, decide.__qualname__):
            raise ValueError(f"claim {id} is registered twice: {known.decide.__module__} and {decide.__module__}")
        title = decide.__name__.replace("_", " ")
        named = {_mutant_name(mutant): mutant for mutant in mutants}
        if len(named) != len(mutants):
            raise ValueError(f"claim {id} has two mutants of one name: {sorted(map(_mutant_name, mutants))}")
        REGISTRY[id] = Claim(
            id, title, statement, formula, source, expected, reason, subject, named, decide, statistical, profile
        )
        return decide

    return register


def catalogue() -> dict[str, Claim]:
    """All claims of the `validation` package and those registered by the caller, in natural order of their ids."""
    package = importlib.import_module("validation")
    for module in pkgutil.iter_modules(package.__path__, "validation."):
        if not module.ispkg:
            importlib.import_module(module.name)
    return dict(sorted(REGISTRY.items(), key=lambda item: _natural(item[0])))


def select(names: Sequence[str], claims: Mapping[str, Claim]) -> list[str]:
    """Ids of the named claims; `T1` also means its parts `T1.a`, …, and no name means all. Raises KeyError."""
    chosen: dict[str, None] = {}
    for name in names or claims:
        found = [id for id in claims if id == name or id.startswith(name + ".")]
        if not found:
            raise KeyError(f"no claim {name!r}; the claims are {', '.join(claims)}")
        chosen.update(dict.fromkeys(found))
    return sorted(chosen, key=_natural)


def _mutant_name(mutant: Any) -> str:
    if isinstance(mutant, partial):
        return _mutant_name(mutant.func)
    return str(getattr(mutant, "__name__", type(mutant).__name__))


def _sin(mutant: Any) -> str:
    documented = mutant.func if isinstance(mutant, partial) else mutant
    lines = (inspect.getdoc(documented) or "").splitlines()
    return lines[0] if lines else "undocumented"


def _natural(id: str) -> tuple[Any, ...]:
    head, _, part = id.partition(".")
    digits = "".join(c for c in head if c.isdigit())
    return (head.rstrip("0123456789"), int(digits or 0), part)


# --- what a claim is given ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network of the zoo at a stage of training, with its exact Hessian."""

    network: str
    stage: str
    problem: Problem

    @cached_property
    def H(self) -> Tensor:
        """The dense Hessian, float64."""
        from hesstheory.curvature import hessian

        return hessian(self.problem).to_dense()

    @cached_property
    def per_sample(self) -> Tensor:
        """Dense Hessians of every sample, N×P×P, float64."""
        from hesstheory.curvature import per_sample_hessians

        return per_sample_hessians(self.problem)

    def block(self, l: str, m: str) -> Tensor:
        """H_lm cut from the dense Hessian."""
        index = self.problem.index
        return self.H[index[l]][:, index[m]]

    def cross_blocks(self, l: str) -> list[Tensor]:
        """H_lm for all m ≠ l."""
        return [self.block(l, m) for m in self.problem.index if m != l]

    def __str__(self) -> str:
        return f"{self.network}, {self.stage}"


@dataclass(frozen=True)
class Context:
    """What a claim may use: the profile, the level of one statistical test, named random streams and networks."""

    profile: str
    seed: int
    alpha: float
    claim: str = ""

    def generator(self, *names: str) -> torch.Generator:
        """The stream of this claim and these names; asking again starts it anew."""
        return stream(self.seed, self.claim, *names)

    def case(self, network: str, steps: int = 0) -> Case:
        """A network of the zoo after some training steps, built once per process and shared by all claims."""
        return _case(network, steps, self.seed)

    def cases(self, networks: Sequence[str] | None = None) -> list[Case]:
        """Small networks untrained and, beyond the smoke profile, trained on the digits."""
        from hesstheory import zoo

        if self.profile == "smoke":
            return [self.case(name) for name in networks or SMOKE_NETWORKS]
        names = networks or list(zoo.SMALL)
        return [self.case(name, steps) for name in names for steps in (0, TRAINED_STEPS)]

    @property
    def is_thorough(self) -> bool:
        """True in the full profile."""
        return self.profile == "full"


SMOKE_NETWORKS = ("tiny_mlp", "tiny_relu")
TRAINED_STEPS = 300


@lru_cache(maxsize=64)
def _case(network: str, steps: int, seed: int) -> Case:
    from hesstheory import zoo

    problem = zoo.problem(network, stream(seed, "network", network), steps=steps)
    return Case(network, f"trained {steps} steps" if steps else "untrained", problem)


# --- deciding -------------------------------------------------------------------------------------------------------

_DECISIVE = {Status.PASSED, Status.FAILED}


@dataclass(frozen=True)
class MutantOutcome:
    """Whether the checks of a claim noticed a mutant, and which check did."""

    name: str
    sin: str
    rejected: bool
    by: str
    detail: str
    broke: bool = False


@dataclass(frozen=True)
class Outcome:
    """A decided claim, as the ledger keeps it."""

    claim: Claim
    verdict: Verdict
    kind: Kind | None
    detail: str
    checks: tuple[Check, ...]
    mutants: tuple[MutantOutcome, ...]
    seconds: float

    @property
    def as_expected(self) -> bool:
        return self.verdict is self.claim.expected


def decide(claim: Claim, context: Context) -> Outcome:
    """Runs the checks on the subject, then on every mutant, and gives the verdict: UNTESTED where an exception stops
    one of them, which no claim can expect."""
    start, context = time.perf_counter(), dataclasses.replace(context, claim=claim.id)
    checks: list[Check] = []
    try:
        for check in claim.decide(claim.subject, context):
            if not isinstance(check, Check):
                raise TypeError(f"{claim.decide.__name__} yields {check!r}: yield checks, such as exact(...) gives")
            checks.append(check)
        names = [check.name for check in checks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise RuntimeError(f"checks share a name: {', '.join(repeated)}")
        used = sum(check.kind is Kind.STATISTICAL for check in checks)
        if used > claim.statistical:
            raise RuntimeError(
                f"{used} statistical checks, but statistical={claim.statistical} is declared and paid for"
            )
        mutants = tuple(_try_mutant(claim, name, mutant, checks, context) for name, mutant in claim.mutants.items())
    except Exception as error:  # a claim that breaks is reported with the others, not instead of them
        detail = f"{type(error).__name__}: {error}"
        return Outcome(claim, Verdict.UNTESTED, None, detail, tuple(checks), (), time.perf_counter() - start)
    found, survivors = verdict(checks), [mutant.name for mutant in mutants if not mutant.rejected]
    if broken := [f"{mutant.name}: {mutant.detail}" for mutant in mutants if mutant.broke]:
        found, detail = Verdict.UNTESTED, "; ".join(broken)
    elif not mutants:
        found, detail = Verdict.INCONCLUSIVE, "no mutant was tried: a check that cannot fail says nothing"
    elif survivors:
        found, detail = Verdict.INCONCLUSIVE, f"the checks do not notice {', '.join(survivors)}"
    else:
        detail = _because(found, checks)
    return Outcome(claim, found, _kind(found, checks), detail, tuple(checks), mutants, time.perf_counter() - start)


def _try_mutant(claim: Claim, name: str, mutant: Any, truth: Sequence[Check], context: Context) -> MutantOutcome:
    """Runs the checks on a mutant until one comes out otherwise than for the truth; in the full profile, one of each
    kind."""
    before = {check.name: check.status for check in truth if check.status in _DECISIVE}
    kinds = {check.kind for check in truth if check.name in before}
    noticed: dict[Kind, Check] = {}
    try:
        for check in claim.decide(mutant, context):
            if check.status in _DECISIVE and before.get(check.name, check.status) is not check.status:
                noticed.setdefault(check.kind, check)
                if not context.is_thorough or noticed.keys() == kinds:
                    break
    except Exception as error:
        detail = f"the mutant itself broke: {type(error).__name__}: {error}"
        return MutantOutcome(name, _sin(mutant), False, "", detail, broke=True)
    if not noticed:
        return MutantOutcome(name, _sin(mutant), False, "", "every check came out as for the truth")
    detail = "; ".join(f"{check.status}: {check.detail}" for check in noticed.values())
    return MutantOutcome(name, _sin(mutant), True, "; ".join(check.name for check in noticed.values()), detail)


def _because(found: Verdict, checks: Sequence[Check]) -> str:
    failed = [check for check in checks if check.status is Status.FAILED]
    if found is Verdict.REFUTED:
        first = next((check for check in failed if not check.condition), failed[0])
        return f"{first.name}: {first.detail}"
    if found is Verdict.CONDITIONAL:
        return "only where " + "; ".join(dict.fromkeys(check.condition for check in failed))
    if found is Verdict.INCONCLUSIVE:
        open_ones = [check.name for check in checks if check.status is Status.INCONCLUSIVE]
        return f"undecided: {', '.join(open_ones)}" if open_ones else "no check decided anything"
    passed = [check.kind for check in checks if check.status is Status.PASSED]
    counted = ", ".join(f"{passed.count(kind)} {kind}" for kind in Kind if kind in passed) + " checks passed"
    return counted + (f"; {len(checks) - len(passed)} reported" if len(checks) > len(passed) else "")


def _kind(found: Verdict, checks: Sequence[Check]) -> Kind | None:
    """Weakest kind of check that the verdict needs: all that decided for HOLDS and CONDITIONAL, any failure else."""
    rank = list(Kind).index
    if found in (Verdict.HOLDS, Verdict.CONDITIONAL):
        return max((check.kind for check in checks if check.status in _DECISIVE), key=rank)
    return min((check.kind for check in checks if check.status is Status.FAILED), key=rank, default=None)


# --- the ledger -----------------------------------------------------------------------------------------------------


class Ledger:
    """Append-only file of runs, one JSON record a line: a `run` header, a `claim` per decided claim, an `end`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, record: dict[str, Any]) -> None:
        append_line(self.path, record)

    def records(self) -> list[dict[str, Any]]:
        """All whole records; a line torn by a kill is skipped with a warning."""
        if not self.path.exists():
            return []
        records = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                warnings.warn(f"{self.path}:{number} is torn (a killed run?) and skipped", stacklevel=2)
        return records

    def run(self, run: str) -> list[dict[str, Any]]:
        """Records of one run, in order."""
        return [record for record in self.records() if record.get("run") == run]

    def unfinished(self, **header: Any) -> str | None:
        """Id of the last run if it has this header and no end."""
        heads = [record for record in self.records() if record["record"] == "run"]
        if not heads or any(heads[-1].get(key) != value for key, value in header.items()):
            return None
        run = str(heads[-1]["run"])
        return None if any(record["record"] == "end" for record in self.run(run)) else run

    def verdict(self, id: str, fingerprint: str) -> Verdict:
        """Last verdict on a claim: UNTESTED without one, STALE when the code or data have changed since."""
        found = [record for record in self.records() if record["record"] == "claim" and record["id"] == id]
        if not found:
            return Verdict.UNTESTED
        return Verdict(found[-1]["verdict"]) if found[-1]["fingerprint"] == fingerprint else Verdict.STALE


# --- a run ----------------------------------------------------------------------------------------------------------


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
                {key: record[key] for key in keys} | {"mutants": {m["name"]: m["rejected"] for m in record["mutants"]}}
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
    if too_large and (set(too_large) & set(names) or set(too_large) == set(ids)):  # parts that come along are left out
        raise ValueError(f"the {profile} profile cannot decide {', '.join(too_large)}: pass a larger --profile")
    ids = [id for id in ids if id not in too_large]
    budget = Budget.of((c.statistical, len(c.mutants)) for c in claims.values())
    code = fingerprint("hesstheory", "validation")
    header = {"profile": profile, "seed": seed, "fingerprint": code, "claims": ids}
    run = book.unfinished(**header)
    if run is None:
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        book.append(
            {"record": "run", "run": run, **header, "suite_alpha": budget.suite_alpha, "alpha_per_check": budget.alpha,
             "num_statistical": budget.num_tests, "provenance": provenance(command), "time": _now()}
        )  # fmt: skip
    done = {record["id"] for record in book.run(run) if record["record"] == "claim"}
    context = Context(profile, seed, budget.alpha)
    open_ones = [claims[id] for id in ids if id not in done]
    start = time.perf_counter()
    for record in scatter(partial(_decided_record, context=context), open_ones, workers):
        record |= {"run": run, "fingerprint": code, "time": _now()}
        book.append(record)
        done.add(record["id"])
        if on_result is not None:
            on_result(record, len(done), len(ids))
    result = Run(book.run(run), budget.suite_alpha)
    counts = {v.value: sum(record["verdict"] == v for record in result.claims) for v in Verdict}
    book.append(
        {"record": "end", "run": run, "seconds": time.perf_counter() - start, "passed": result.exit_code == 0,
         "counts": {v: n for v, n in counts.items() if n}, "records_run": result.records_run, "time": _now()}
    )  # fmt: skip
    return Run(sorted(book.run(run), key=_run_order), budget.suite_alpha)


def _run_order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return ({"run": 0, "claim": 1, "end": 2}[record["record"]], _natural(record.get("id", "")))


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
        "checks": [_plain(dataclasses.asdict(check)) for check in outcome.checks],
        "mutants": [dataclasses.asdict(mutant) for mutant in outcome.mutants],
        "seconds": outcome.seconds, "profile": context.profile, "seed": context.seed,
    }  # fmt: skip
    return record


def _plain(value: Any) -> Any:
    """JSON has no NaN, no infinity and no numpy scalars."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
