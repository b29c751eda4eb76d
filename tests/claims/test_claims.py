"""Claims, their mutants and the ledger: what is decided, what is remembered, and what a kill may cost."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import hesstheory
from hesstheory import claims
from hesstheory.claims.context import Context
from hesstheory.claims.course import validate
from hesstheory.claims.decide import decide
from hesstheory.claims.ledger import Ledger
from hesstheory.claims.registry import Claim, claim, select
from hesstheory.evidence.checks import Check, Kind, Status, Verdict, empirical, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.sequential import Tail, statistical
from hesstheory.run.provenance import fingerprint
from hesstheory.show import figures
from hesstheory.show import pages as report

ROOT = Path(hesstheory.__file__).parents[1]

# --- a small `validation` package of our own ------------------------------------------------------------------------

ARITHMETIC = '''
    """Cheap claims, which wait as long as a file `hold ID` exists; every decision is logged."""

    import time
    from pathlib import Path

    import torch

    from hesstheory.claims import claim
    from hesstheory.evidence import Tail, exact, statistical

    HERE = Path(__file__).parent


    def two():
        return 2.0


    def three():
        """Is one too many."""
        return 3.0


    def log(id, subject):
        if subject is two:
            with open(HERE / "decided", "a") as out:
                out.write(id + "\\n")


    def equals_two(id):
        def decide(subject, context):
            log(id, subject)
            while (HERE / f"hold {id}").exists():
                time.sleep(0.01)
            yield exact("value", subject(), 2.0)
            yield exact("square", subject() ** 2, 4.0)

        return decide


    def draws_centre_on_two(id):
        def decide(subject, context):
            log(id, subject)

            def draw(n, generator):
                return subject() + torch.randn(n, generator=generator, dtype=torch.float64)

            generator = context.generator("z")
            yield statistical(
                "mean", draw, 2.0, margin=0.5, tail=Tail(1.0, 0.0), alpha=context.alpha, generator=generator
            )

        return decide


    for id in ("A10", "A2.a", "A1", "A2", "A3"):
        claim(id, "Two is two.", reason="counting", subject=two, mutants=[three])(equals_two(id))
    for id in ("B2", "B1"):
        claim(
            id, "Draws centre on two.", reason="counting", subject=two, mutants=[three], statistical=1, profile="ci"
        )(draws_centre_on_two(id))
'''
SMOKE = ["A1", "A2", "A2.a", "A3", "A10"]
ALL = [*SMOKE, "B1", "B2"]


@pytest.fixture
def home(tmp_path):
    """A folder with the `validation` package of these tests."""
    package = tmp_path / "home" / "validation"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Cheap claims."""\n')
    (package / "arithmetic.py").write_text(textwrap.dedent(ARITHMETIC))
    return package.parent


@pytest.fixture
def registry(home, monkeypatch):
    """An empty registry which that package fills; the one of the library and its `validation` come back afterwards."""
    for name in [name for name in sys.modules if name.split(".")[0] == "validation"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(claims, "REGISTRY", {})
    monkeypatch.syspath_prepend(home)
    importlib.import_module("validation")
    yield claims.REGISTRY
    for name in [name for name in sys.modules if name.split(".")[0] == "validation"]:
        del sys.modules[name]


def decided(home):
    """Ids in the order in which their subjects were looked at."""
    return (home / "validation" / "decided").read_text().split()


def two():
    return 2.0


def three():
    """Is one too many."""
    return 3.0


def twin():
    """Is right after all."""
    return 2.0


def twin_too():
    """Is right as well."""
    return 2.0


def broken():
    """Cannot be evaluated."""
    raise ZeroDivisionError("no value")


class Four:
    """Is two too many.

    Longer story.
    """

    def __call__(self):
        return 4.0


def power(base, exponent=1):
    """Is raised to a power."""
    return base**exponent


def value_is_two(subject, context):
    yield exact("value", subject(), 2.0)


def register(id="X1", decide=value_is_two, **changes):
    settings = {"subject": two, "mutants": [three], "reason": "counting"} | changes
    return claim(id, "Two is two.", **settings)(decide)


# --- registering and selecting --------------------------------------------------------------------------------------


def another(subject, context):
    yield exact("value", subject(), 2.0)


MISTAKES = {
    "an id of another claim": (
        {"decide": another},
        r"claim X1 is registered twice: test_claims and test_claims",
    ),
    "two mutants of one name": (
        {"id": "X2", "mutants": [three, Four(), Four]},
        r"claim X2 has two mutants of one name",
    ),
    "two unnamed mutants": (
        {"id": "X2", "mutants": [lambda: 1, lambda: 3]},
        r"two mutants of one name",
    ),
    "one function twice": (
        {"id": "X2", "mutants": [partial(power, 3), partial(power, 4)]},
        r"two mutants of one name",
    ),
    "sampling in smoke": (
        {"id": "X2", "statistical": 1},
        r"X2 has statistical checks.*pass profile='ci'",
    ),
    "expecting not to be decided": (
        {"id": "X2", "expected": Verdict.UNTESTED},
        r"X2 expects UNTESTED.*pass expected=",
    ),
    "expecting to be outdated": (
        {"id": "X2", "expected": Verdict.STALE},
        r"X2 expects STALE.*pass expected=",
    ),
    "unknown profile": (
        {"id": "X2", "profile": "huge"},
        r"profile is 'huge': choose from smoke, ci, full",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_registering_refuses(registry, changes, message):
    register()
    before = dict(registry)
    with pytest.raises(ValueError, match=message):
        register(**changes)
    assert registry == before


def test_registered_claim(registry):
    """The function is given back, names the claim, and may be registered again, as a reloaded module does."""
    mutants = [three, Four(), partial(power, 3)]
    for _ in range(2):
        assert (
            register(mutants=mutants, expected=Verdict.REFUTED, statistical=2, profile="ci")
            is value_is_two
        )
    X1 = registry["X1"]
    assert (X1.id, X1.title, X1.expected, X1.profile) == (
        "X1",
        "value is two",
        Verdict.REFUTED,
        "ci",
    )
    assert list(X1.mutants) == ["three", "Four", "power"]
    assert list(registry) == ["X1"]


def test_catalogue_is_in_natural_order(registry):
    register("B1.a")
    assert list(claims.catalogue()) == ["A1", "A2", "A2.a", "A3", "A10", "B1", "B1.a", "B2"]


SELECTIONS = [
    ((), ["T1", "T1.a", "T1.b", "T2", "T10", "E1"]),
    (("T1",), ["T1", "T1.a", "T1.b"]),
    (("T1.b",), ["T1.b"]),
    (("T10", "T2", "T10"), ["T2", "T10"]),
    (("T1.a", "T1"), ["T1", "T1.a", "T1.b"]),
    (("E1", "T2"), ["E1", "T2"]),
]


@pytest.mark.parametrize(("names", "expected"), SELECTIONS, ids=str)
def test_select(names, expected):
    known = dict.fromkeys(["T10", "T1.b", "T1", "E1", "T2", "T1.a"])
    assert sorted(select(names, known)) == sorted(expected)
    assert select(names, known) == sorted(
        expected, key=["E1", "T1", "T1.a", "T1.b", "T2", "T10"].index
    )


@pytest.mark.parametrize("name", ["T", "T3", "T1.", "T1.c", "t1", "", "T1 ", "validation"])
def test_select_names_the_claims_instead(name):
    known = ["T1", "T1.a", "T2"]
    with pytest.raises(KeyError) as caught:
        select(["T1", name], dict.fromkeys(known))
    assert caught.value.args[0] == f"no claim {name!r}; the claims are T1, T1.a, T2"


# --- deciding -------------------------------------------------------------------------------------------------------


def failing(subject, context):
    yield exact("value", subject(), 3.0)


def conditional(subject, context):
    yield exact("value", subject(), 2.0)
    yield holds("small", subject() < 1, "2 is not").unless("n is large")
    yield holds("tiny", subject() < 0.5, "2 is not").unless("n is large")
    yield holds("normal", subject() < 0, "2 is not").unless("the draws are normal")


def refuted_and_limited(subject, context):
    yield from conditional(subject, context)
    yield holds("negative", subject() < 0, f"{subject():g} is not")


def only_limited(subject, context):
    yield holds("negative", subject() > 2, f"{subject():g} is not").unless("elsewhere")


def open_ended(subject, context):
    yield exact("value", subject(), 2.0)
    yield from (Check(name, Kind.EMPIRICAL, Status.INCONCLUSIVE) for name in ("tail", "mean"))


def limited_and_open(subject, context):
    yield from open_ended(subject, context)
    yield holds("small", subject() < 1, "2 is not").unless("n is large")


def breaking(subject, context):
    yield exact("value", subject(), 2.0)
    raise ValueError("out of range")


def breaks_on_mutants(subject, context):
    if subject is not two:
        raise ValueError("out of range")
    yield exact("value", subject(), 2.0)


def mixed(subject, context):
    yield empirical("study", "effect 1")
    yield exact("value", subject(), 2.0)
    yield holds("proof", subject() == 2, "", kind=Kind.SYMBOLIC)


def failing_twice(subject, context):
    yield empirical("trend", "effect 1", statement=False)
    yield exact("value", subject(), 3.0)


def limited_study(subject, context):
    yield exact("value", subject(), 2.0)
    yield empirical("trend", "effect 1", statement=False).unless("n is large")


def talkative(subject, context):
    yield empirical("study", "effect 1")
    yield exact("value", 2.0, 2.0)
    if subject is not two:
        yield exact("only of mutants", subject(), 2.0)
        yield Check("value", Kind.EXACT, Status.INCONCLUSIVE)
        yield Check("value", Kind.EXACT, Status.REPORTED)
        yield empirical("study", "effect 2", statement=False)


UNDECLARED = "RuntimeError: 2 statistical checks, but statistical=1 is declared and paid for"
DECISIONS = {
    "holds": (value_is_two, [three, Four], Verdict.HOLDS, Kind.EXACT, "1 exact checks passed"),
    "the weakest kind": (
        mixed,
        [three],
        Verdict.HOLDS,
        Kind.EXACT,
        "1 symbolic, 1 exact checks passed; 1 reported",
    ),
    "any failure": (failing_twice, [three], Verdict.REFUTED, Kind.EXACT, "trend: effect 1"),
    "the weakest under a condition": (
        limited_study,
        [three],
        Verdict.CONDITIONAL,
        Kind.EMPIRICAL,
        "only where n is l",
    ),
    "refuted": (failing, [three], Verdict.REFUTED, Kind.EXACT, "value: 2 against 3"),
    "conditional": (
        conditional,
        [three],
        Verdict.CONDITIONAL,
        Kind.EXACT,
        "only where n is large; the draws are norm",
    ),
    "refuted, not limited": (
        refuted_and_limited,
        [three],
        Verdict.REFUTED,
        Kind.EXACT,
        "negative: 2 is not",
    ),
    "nothing but limits": (
        only_limited,
        [three],
        Verdict.REFUTED,
        Kind.EXACT,
        "negative: 2 is not",
    ),
    "undecided": (open_ended, [three], Verdict.INCONCLUSIVE, None, "undecided: tail, mean"),
    "a survivor": (
        value_is_two,
        [three, twin],
        Verdict.INCONCLUSIVE,
        None,
        "the checks do not notice twin",
    ),
    "survivors": (
        value_is_two,
        [twin, twin_too],
        Verdict.INCONCLUSIVE,
        None,
        "the checks do not notice twin, twin_",
    ),
    "a mutant breaks": (
        value_is_two,
        [twin, broken],
        Verdict.UNTESTED,
        None,
        "broken: the mutant itself broke: Zero",
    ),
    "limited and undecided": (
        limited_and_open,
        [three],
        Verdict.INCONCLUSIVE,
        Kind.EXACT,
        "undecided: tail, mean",
    ),
    "a refutation that sees no mutant": (
        failing,
        [twin],
        Verdict.INCONCLUSIVE,
        Kind.EXACT,
        "the checks do not notic",
    ),
    "no mutants": (value_is_two, [], Verdict.INCONCLUSIVE, None, "no mutant was tried"),
    "breaking": (breaking, [three], Verdict.UNTESTED, None, "ValueError: out of range"),
    "no checks": (
        lambda subject, context: (),
        [three],
        Verdict.INCONCLUSIVE,
        None,
        "the checks do not notice three",
    ),
    "noise of mutants": (
        talkative,
        [three],
        Verdict.INCONCLUSIVE,
        None,
        "the checks do not notice three",
    ),
}


def outcome(decide_, mutants, profile="smoke", **changes):
    named = {claims._mutant_name(mutant): mutant for mutant in mutants}
    X1 = Claim("X1", "", "", "", "", Verdict.HOLDS, "", two, named, decide_)
    return decide(dataclasses.replace(X1, **changes), Context(profile, 0, 1e-9))


@pytest.mark.parametrize(
    ("decide_", "mutants", "verdict", "kind", "detail"), DECISIONS.values(), ids=DECISIONS.keys()
)
def test_decision(decide_, mutants, verdict, kind, detail):
    mutants = [mutant() if isinstance(mutant, type) else mutant for mutant in mutants]
    found = outcome(decide_, mutants)
    assert (found.verdict, found.kind) == (verdict, kind)
    assert found.detail.startswith(detail)
    assert found.as_expected == (verdict is Verdict.HOLDS)


def test_a_claim_that_breaks_keeps_what_it_found():
    found = outcome(breaking, [three])
    assert [check.status for check in found.checks] == [Status.PASSED]
    assert found.mutants == ()


REJECTIONS = {
    "wrong value": (value_is_two, three, True, "value", "failed: 3 against 2", "Is one too many."),
    "first line of the sin": (
        value_is_two,
        Four(),
        True,
        "value",
        "failed: 4 against 2",
        "Is two too many.",
    ),
    "partial": (
        value_is_two,
        partial(power, 2, 2),
        True,
        "value",
        "failed: 4 against 2",
        "Is raised to a power.",
    ),
    "undocumented": (
        value_is_two,
        lambda: 5.0,
        True,
        "value",
        "failed: 5 against 2",
        "undocumented",
    ),
    "right where the truth is wrong": (
        failing,
        three,
        True,
        "value",
        "passed: 3 against 3",
        "Is one too many.",
    ),
    "equal": (
        value_is_two,
        twin,
        False,
        "",
        "every check came out as for the truth",
        "Is right after all.",
    ),
    "broken": (
        value_is_two,
        broken,
        False,
        "",
        "the mutant itself broke: ZeroDivisionError: no value",
        "Cannot be",
    ),
    "never decisive": (
        talkative,
        three,
        False,
        "",
        "every check came out as for the truth",
        "Is one too many.",
    ),
}


@pytest.mark.parametrize(
    ("decide_", "mutant", "rejected", "by", "detail", "sin"),
    REJECTIONS.values(),
    ids=REJECTIONS.keys(),
)
def test_mutant(decide_, mutant, rejected, by, detail, sin):
    (found,) = outcome(decide_, [mutant]).mutants
    assert (found.rejected, found.by, found.detail) == (rejected, by, detail)
    assert found.sin.startswith(sin)


@pytest.mark.parametrize(
    ("profile", "by"), [("smoke", "value"), ("ci", "value"), ("full", "value; proof")]
)
def test_a_mutant_stops_at_the_first_check_or_at_one_of_each_kind(profile, by):
    looked = []

    def watched(subject, context):
        for check in (*mixed(subject, context), exact("later", 1.0, 1.0)):
            if subject is three:
                looked.append(check.name)
            yield check

    (found,) = outcome(watched, [three], profile).mutants
    assert found.by == by
    assert looked[-1] == by.split("; ")[-1]


def samples(subject, context, times=1):
    for number in range(times):
        yield statistical(
            f"mean {number}", lambda n, _: np.full(n, subject()), 2.0,
            margin=0.1, tail=Tail(0.01, 0.0), alpha=context.alpha, generator=context.generator(),
        )  # fmt: skip


@pytest.mark.parametrize(("times", "declared"), [(1, 0), (2, 1), (3, 2), (3, 0)])
def test_sampling_that_is_not_paid_for_is_reported(times, declared):
    found = outcome(partial(samples, times=times), [three], "ci", statistical=declared)
    expected = UNDECLARED.replace("2", str(times), 1).replace("=1", f"={declared}")
    assert (found.verdict, found.detail) == (Verdict.UNTESTED, expected)


@pytest.mark.parametrize(("times", "declared"), [(1, 1), (1, 2), (3, 3)])
def test_sampling_that_is_paid_for(times, declared):
    assert (
        outcome(partial(samples, times=times), [three], "ci", statistical=declared).verdict
        is Verdict.HOLDS
    )


def same_name_twice(subject, context):
    yield exact("value", 1.0, 2.0).unless("elsewhere")
    yield exact("value", 2.0, 2.0)


def test_names_that_occur_twice_reject_no_mutant():
    """Its checks come out as for the truth, every one of them; or else the claim is refused."""
    assert not any(mutant.rejected for mutant in outcome(same_name_twice, [twin]).mutants)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"claim": "X2"}, {"names": ("y",)}, {"names": ("x", "y")}], ids=str
)
def test_streams_belong_to_seed_claim_and_names(change):
    def draws(seed=0, claim="X1", names=("x",)):
        return torch.randn(4, generator=Context("ci", seed, 1e-9, claim).generator(*names))

    assert torch.equal(draws(), draws())
    assert not torch.equal(draws(), draws(**change))


# --- the ledger -----------------------------------------------------------------------------------------------------


def claim_record(id="T1", run="r1", verdict="HOLDS", code="f1", **more):
    return {
        "record": "claim",
        "run": run,
        "id": id,
        "verdict": verdict,
        "fingerprint": code,
        **more,
    }


HEADER = {"record": "run", "run": "r1", "profile": "ci", "seed": 0}
LAST = claim_record("T2", detail="Σ‖H_lm‖² ≤ \n2\\ 😀", checks=[{"x": [0.1, None, "inf"], "y": {}}])


@pytest.fixture
def ledger(tmp_path):
    book = Ledger(tmp_path / "reports" / "ledger.jsonl")
    for record in (HEADER, claim_record(), LAST):
        book.append(record)
    return book


def test_records_come_back(ledger):
    assert ledger.records() == [HEADER, claim_record(), LAST]
    assert ledger.run("r1") == ledger.records()
    assert ledger.run("r2") == []
    assert Ledger(ledger.path.with_name("none")).records() == []


def test_appending_changes_nothing_before(ledger):
    before = ledger.path.read_bytes()
    assert before.count(b"\n") == 3
    ledger.append({"record": "end", "run": "r1"})
    after = ledger.path.read_bytes()
    assert after[: len(before)] == before
    assert json.loads(after[len(before) :]) == {"record": "end", "run": "r1"}


def test_torn_at_every_byte(ledger):
    """Whatever is left of the last line, the lines before it are read, and the next record gets a line of its own."""
    whole = ledger.path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    more = {"record": "end", "run": "r1"}
    for length in range(start, len(whole) + 1):
        ledger.path.write_bytes(whole[:length])
        kept = [HEADER, claim_record()] + ([LAST] if length >= len(whole) - 1 else [])
        if start < length < len(whole) - 1:
            with pytest.warns(
                UserWarning, match=r"ledger.jsonl:3 is torn \(a killed run\?\) and skipped"
            ):
                assert ledger.records() == kept
            ledger.append(more)
            with pytest.warns(UserWarning, match="is torn"):
                assert ledger.records() == [*kept, more]
        else:
            assert ledger.records() == kept
            ledger.append(more)
            assert ledger.records() == [*kept, more]


@pytest.mark.parametrize(
    "rubbish", [b"\0" * 40, b"\xff\xfe\x00", b"\xce", b"{", b'"', b"}{"], ids=repr
)
def test_rubbish_at_the_end_costs_no_record(ledger, rubbish):
    before = ledger.records()
    ledger.path.write_bytes(ledger.path.read_bytes() + rubbish)
    with pytest.warns(UserWarning, match="is torn"):
        assert ledger.records() == before


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], Verdict.UNTESTED),
        ([claim_record("T2")], Verdict.UNTESTED),
        ([claim_record("T1.a")], Verdict.UNTESTED),
        ([claim_record()], Verdict.HOLDS),
        ([claim_record(verdict="REFUTED"), claim_record()], Verdict.HOLDS),
        (
            [claim_record(), claim_record(verdict="CONDITIONAL"), claim_record("T2")],
            Verdict.CONDITIONAL,
        ),
        ([claim_record(code="f0")], Verdict.STALE),
        ([claim_record(), claim_record(code="f0", verdict="REFUTED")], Verdict.STALE),
        ([claim_record(code="f0", verdict="REFUTED"), claim_record()], Verdict.HOLDS),
    ],
    ids=range(9),
)
def test_last_verdict(tmp_path, records, expected):
    book = Ledger(tmp_path / "ledger.jsonl")
    for record in records:
        book.append(record)
    assert book.verdict("T1", "f1") is expected


END, OTHER = {"record": "end", "run": "r1"}, HEADER | {"run": "r2", "seed": 1}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], None),
        ([HEADER], "r1"),
        ([HEADER, claim_record()], "r1"),
        ([HEADER, claim_record(), END], None),
        ([OTHER], None),
        ([HEADER, OTHER], None),
        ([OTHER, HEADER], "r1"),
        ([HEADER, END, HEADER | {"run": "r2"}], "r2"),
        ([HEADER | {"run": "r2"}, HEADER, END], None),
    ],
    ids=range(9),
)
def test_unfinished_run(tmp_path, records, expected):
    book = Ledger(tmp_path / "ledger.jsonl")
    for record in records:
        book.append(record)
    assert book.unfinished(profile="ci", seed=0) == expected


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(registry, tmp_path):
    """validate() with the claims of these tests and a ledger beside them."""
    return partial(validate, ledger=tmp_path / "ledger.jsonl")


def test_everything_that_ran_is_recorded_and_shown(run, tmp_path):
    progress = []
    found = run(
        profile="ci",
        on_result=lambda record, done, total: progress.append((record["id"], done, total)),
    )
    page = tmp_path / "index.html"
    shown = report.write(found.records, figures.draw_all(found.records, tmp_path / "figures"), page)
    assert found.records_run == shown == 2 * len(SMOKE) + 2
    assert progress == [(id, number, len(ALL)) for number, id in enumerate(ALL, 1)]
    head, *middle, end = Ledger(tmp_path / "ledger.jsonl").records()
    assert (
        [record["id"] for record in middle]
        == [record["id"] for record in found.claims]
        == head["claims"]
        == ALL
    )
    assert (end["records_run"], end["passed"], end["counts"]) == (shown, True, {"HOLDS": len(ALL)})
    assert {record["run"] for record in (head, *middle, end)} == {head["run"]}
    assert report.NOTHING not in dict(report._facts(head, end)).values()
    assert set(found.to_json(shown)) == {"claims", "suite_alpha", "records_run", "records_shown"}


def test_the_budget_covers_all_registered_tests_and_mutants(run):
    """Also where few claims are named: the level of a check does not depend on what else is run."""
    for names in ((), ("B1",)):
        head = run(names, profile="ci").records[0]
        assert head["num_statistical"] == 2 * (1 + 1)
        assert math.isclose(head["num_statistical"] * head["alpha_per_check"], head["suite_alpha"])


@pytest.mark.parametrize(("profile", "ids"), [("smoke", SMOKE), ("ci", ALL), ("full", ALL)])
def test_a_profile_decides_what_it_can(run, profile, ids):
    assert [record["id"] for record in run(profile=profile).claims] == ids


@pytest.mark.parametrize(
    ("names", "profile", "error", "message"),
    [
        (["A9"], "ci", KeyError, "no claim 'A9'; the claims are A1, A2, A2.a, A3, A10, B1, B2"),
        (
            ["A1", "B1"],
            "smoke",
            ValueError,
            "the smoke profile cannot decide B1: pass a larger --profile",
        ),
        ([], "huge", ValueError, "profile is 'huge': choose from smoke, ci, full"),
    ],
)
def test_misuse_leaves_no_trace(run, tmp_path, names, profile, error, message):
    with pytest.raises(error) as caught:
        run(names, profile=profile)
    assert caught.value.args[0] == message
    assert not (tmp_path / "ledger.jsonl").exists()


SURPRISES = [
    ([(value_is_two, Verdict.HOLDS)], 0),
    (
        [
            (failing, Verdict.REFUTED),
            (conditional, Verdict.CONDITIONAL),
            (open_ended, Verdict.INCONCLUSIVE),
        ],
        0,
    ),
    ([(failing, Verdict.HOLDS)], 1),
    ([(value_is_two, Verdict.REFUTED)], 1),
    ([(conditional, Verdict.HOLDS)], 1),
    ([(value_is_two, Verdict.CONDITIONAL)], 1),
    ([(value_is_two, Verdict.INCONCLUSIVE)], 1),
    ([(open_ended, Verdict.HOLDS)], 3),
    ([(breaking, Verdict.REFUTED), (value_is_two, Verdict.HOLDS)], 3),
    ([(breaking, Verdict.INCONCLUSIVE), (value_is_two, Verdict.HOLDS)], 3),
    ([(breaks_on_mutants, Verdict.INCONCLUSIVE)], 3),
    ([(open_ended, Verdict.HOLDS), (failing, Verdict.HOLDS)], 1),
    ([(open_ended, Verdict.HOLDS), (value_is_two, Verdict.REFUTED)], 1),
]


@pytest.mark.parametrize(("cases", "code"), SURPRISES, ids=range(len(SURPRISES)))
def test_exit_code(run, cases, code):
    """1 when a verdict differs from the expected one, either way; 3 when such verdicts are only undecided."""
    for number, (decide_, expected) in enumerate(cases):
        register(f"X{number}", decide_, expected=expected)
    found = run([f"X{number}" for number in range(len(cases))], profile="ci")
    assert found.exit_code == code
    assert found.records[-1]["passed"] is (code == 0)
    assert len(found.surprises) == sum(
        record["verdict"] != record["expected"] for record in found.claims
    )
    assert bool(found.surprises) == (code != 0)


def test_a_claim_that_breaks_does_not_stop_the_others(run):
    register("A2.b", breaking)
    register("A2.c", lambda subject, context: 1 / 0)
    found = {record["id"]: record for record in run(profile="smoke").claims}
    assert list(found) == ["A1", "A2", "A2.a", "A2.b", "A2.c", "A3", "A10"]
    assert found["A2.b"]["detail"] == "ValueError: out of range"
    assert found["A2.c"]["detail"] == "ZeroDivisionError: division by zero"
    assert {record["verdict"] for id, record in found.items() if id not in ("A2.b", "A2.c")} == {
        "HOLDS"
    }


NOT_JSON = {"array": np.zeros(2), "tensor": torch.zeros(2), "set": {1}, "object": object()}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_rows_that_are_no_json_do_not_stop_the_others(run, value):
    def with_rows(subject, context):
        yield exact("value", subject(), 2.0).showing("power", [{"x": value}])

    register("A2.b", with_rows)
    found = run(profile="smoke")
    assert [record["id"] for record in found.claims] == ["A1", "A2", "A2.a", "A2.b", "A3", "A10"]


def test_the_ledger_is_strict_json(run, tmp_path):
    """Without NaN and infinities, and with numpy's and torch's numbers as plain ones."""
    numbers = {
        "nan": math.nan,
        "inf": np.float64(-np.inf),
        "one": np.int64(1),
        "half": torch.tensor(0.5),
    }

    def not_finite(subject, context):
        yield exact("value", subject(), 2.0).showing("power", [numbers])
        yield exact("nothing", math.nan, 2.0)

    register("X1", not_finite, expected=Verdict.REFUTED)
    assert run(["X1"], profile="smoke").exit_code == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    _, record, _ = (json.loads(line, parse_constant=refuse) for line in lines)
    first, second = record["checks"]
    assert first["rows"] == [{"nan": "nan", "inf": "-inf", "one": 1, "half": 0.5}]
    assert (second["discrepancy"], second["status"]) == ("nan", "failed")


def timeless(found):
    """Records without what may differ between two runs of the same code."""
    return [
        {key: value for key, value in record.items() if key not in ("time", "seconds", "run")}
        for record in found.records
    ]


@pytest.fixture
def no_workers_left():
    """Workers keep the `validation` that they have imported, so no other test may get them."""
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


@pytest.mark.usefixtures("no_workers_left")
def test_records_depend_neither_on_the_workers_nor_on_the_order_of_names(run, home, tmp_path):
    """Not even those of drawn numbers; A1 is made to wait, so that two workers finish in another order."""
    first, order, hold = run(profile="ci", seed=3), [], home / "validation" / "hold A1"

    def release(record, done, total):
        order.append(record["id"])
        hold.unlink(missing_ok=True)

    hold.touch()
    again = [
        run(profile="ci", seed=3, workers=2, on_result=release),
        run(ALL[::-1], profile="ci", seed=3),
    ]
    assert sorted(order) == sorted(ALL)
    assert order[0] != "A1"
    assert [timeless(found) for found in again] == [timeless(first)] * 2
    assert timeless(run(profile="ci", seed=4)) != timeless(first)


def test_workers_decide_claims_of_the_caller(run, registry, monkeypatch):
    """In a worker the registry has the claims of `validation` and no others; here it stands in for one."""
    register("X1")

    def scatter_to_a_worker(function, tasks, workers):
        del registry["X1"]
        return map(function, tasks)

    monkeypatch.setattr(claims, "scatter", scatter_to_a_worker)
    assert [record["id"] for record in run(["A2", "X1"], profile="smoke", workers=2).claims] == [
        "A2",
        "A2.a",
        "X1",
    ]


# --- interruptions --------------------------------------------------------------------------------------------------


def interrupt_after(id):
    def on_result(record, done, total):
        if record["id"] == id:
            raise KeyboardInterrupt

    return on_result


def ledger_counts(book):
    return {
        kind: sum(record["record"] == kind for record in book.records())
        for kind in ("run", "claim", "end")
    }


@pytest.mark.parametrize("last", SMOKE)
def test_an_interrupted_run_goes_on(run, home, tmp_path, last):
    with pytest.raises(KeyboardInterrupt):
        run(profile="smoke", on_result=interrupt_after(last))
    book = Ledger(tmp_path / "ledger.jsonl")
    done = SMOKE.index(last) + 1
    assert ledger_counts(book) == {"run": 1, "claim": done, "end": 0}

    found = run(profile="smoke")
    assert decided(home) == SMOKE
    assert ledger_counts(book) == {"run": 1, "claim": len(SMOKE), "end": 1}
    assert [record["id"] for record in found.claims] == SMOKE
    assert found.records_run == book.records()[-1]["records_run"] == 2 * len(SMOKE)

    run(profile="smoke")
    assert ledger_counts(book) == {"run": 2, "claim": 2 * len(SMOKE), "end": 2}, (
        "a finished run is not gone on with"
    )


@pytest.mark.parametrize(
    ("again", "ids"),
    [
        ({"seed": 1}, SMOKE),
        ({"profile": "ci"}, ALL),
        ({"names": ["A2"]}, ["A2", "A2.a"]),
        ({"code": "# changed\n"}, SMOKE),
    ],
    ids=["seed", "profile", "names", "code"],
)
def test_another_run_starts_anew(run, home, tmp_path, again, ids):
    with pytest.raises(KeyboardInterrupt):
        run(profile="smoke", on_result=interrupt_after("A2"))
    with open(home / "validation" / "arithmetic.py", "a") as source:
        source.write(again.pop("code", ""))
    found = run(**{"profile": "smoke"} | again)
    assert decided(home) == ["A1", "A2", *ids]
    assert [record["id"] for record in found.claims] == ids
    assert ledger_counts(Ledger(tmp_path / "ledger.jsonl")) == {
        "run": 2,
        "claim": 2 + len(ids),
        "end": 1,
    }


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename"])
def test_verdicts_are_stale_once_the_code_changes(run, home, tmp_path, change):
    package = home / "validation"
    spare = package / "spare.py"
    spare.write_text('"""Nothing yet."""\n')
    run(["A2"], profile="smoke")
    book = Ledger(tmp_path / "ledger.jsonl")

    def found():
        code = fingerprint("hesstheory", "validation")
        return [book.verdict(id, code) for id in ("A2", "A2.a", "A3")]

    (package / "notes.txt").write_text("no code")
    assert found() == [Verdict.HOLDS, Verdict.HOLDS, Verdict.UNTESTED]
    changes = {
        "edit": lambda: spare.write_text('"""Nothing still."""\n'),
        "add": lambda: (package / "more.py").write_text(""),
        "remove": spare.unlink,
        "rename": lambda: spare.rename(package / "other.py"),
    }
    changes[change]()
    assert found() == [Verdict.STALE, Verdict.STALE, Verdict.UNTESTED]


def start(home, *arguments):
    """Python in a process of its own, with the `validation` that lies there."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(home), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kill_when(process, condition):
    """SIGKILL, to this process and no other, as soon as the condition is met."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def finish(process):
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints.decode()
    assert b"Traceback" not in complaints


def test_a_kill_costs_the_claim_in_flight_and_no_other(home, tmp_path):
    """A3 is made to wait, so that the kill finds it in flight."""
    hold, book = home / "validation" / "hold A3", Ledger(tmp_path / "ledger.jsonl")
    script = (
        "import sys; from hesstheory import validate; validate(profile='smoke', ledger=sys.argv[1])"
    )
    hold.touch()
    log = home / "validation" / "decided"
    kill_when(
        start(home, "-c", script, book.path), lambda: log.exists() and decided(home)[-1:] == ["A3"]
    )
    assert [record.get("id") for record in book.records()] == [None, "A1", "A2", "A2.a"]

    hold.unlink()
    finish(start(home, "-c", script, book.path))
    assert decided(home) == ["A1", "A2", "A2.a", "A3", "A3", "A10"]
    head, *middle, end = book.records()
    assert [record["id"] for record in middle] == SMOKE
    assert {record["run"] for record in (*middle, end)} == {head["run"]}
    assert (end["record"], end["passed"], end["records_run"]) == ("end", True, 2 * len(SMOKE))


@pytest.mark.filterwarnings("ignore:.*is torn:UserWarning")
def test_a_kill_at_any_time_is_made_good(tmp_path):
    """With claims of the library, killed once the first is in the ledger, wherever the next happens to be by then."""
    ids, book = ["E2", "T1.a", "T5", "T13", "T14.b"], Ledger(tmp_path / "reports" / "ledger.jsonl")
    command = ["-m", "hesstheory", "validate", *ids[::-1], "--profile", "smoke", "--out", tmp_path]
    mark = b'"record": "claim"'
    kill_when(start(ROOT, *command), lambda: book.path.exists() and mark in book.path.read_bytes())
    before = book.path.read_bytes()
    whole = [json.loads(line) for line in before.split(b"\n")[:-1]]
    assert [record.get("id") for record in whole] == [None, *ids][: len(whole)]
    assert not any(record["record"] == "end" for record in whole)

    finish(start(ROOT, *command))
    assert book.path.read_bytes().startswith(before)
    heads = [record for record in book.records() if record["record"] == "run"]
    same_code = heads[0]["fingerprint"] == heads[-1]["fingerprint"]
    assert len(heads) == (1 if same_code else 2)
    found = book.run(heads[-1]["run"])
    assert [record.get("id") for record in found] == [None, *ids, None]
    assert found[-1]["passed"]
    page = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="claim-{id.replace(".", "-")}"' in page for id in ids)
