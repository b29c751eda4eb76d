"""Claims rest on claims: circles are refused, and nothing holds on a refuted premise."""

from __future__ import annotations

from functools import partial

import pytest
from claim_package import (
    breaking,
    conditional,
    failing,
    open_ended,
    register,
    three,
    value_is_two,
)

from hesstheory import claims
from hesstheory.claims.ledger import Ledger
from hesstheory.claims.premises import (
    all_premises,
    blocked_premises,
    faults_of_premises,
    refuted_premises,
    verdict_under,
)
from hesstheory.evidence.checks import Verdict

HOLDS, REFUTED, INCONCLUSIVE = Verdict.HOLDS, Verdict.REFUTED, Verdict.INCONCLUSIVE
UNTESTED = Verdict.UNTESTED

REFUSED = {
    "unknown": (
        {"T1": [], "T2": ["T1", "T9"]},
        {},
        {"T2": "T2 rests on T9, which no claim package"},
    ),
    "itself": ({"T1": ["T1"]}, {}, {"T1": "in a circle, T1 → T1: remove one"}),
    "two": ({"T1": ["T2"], "T2": ["T1"]}, {}, {"T1": "T1 → T2 → T1", "T2": "T2 → T1 → T2"}),
    "a circle below": (
        {"T1": ["T2"], "T2": ["T3"], "T3": ["T2"]},
        {},
        {"T2": "T2 → T3 → T2", "T3": "T3 → T2 → T3"},
    ),
    "the short way": (
        {"T1": ["T2", "T4"], "T2": ["T3"], "T3": ["T4"], "T4": ["T1"]},
        {},
        {
            "T1": "T1 → T4 → T1",
            "T2": "T2 → T3 → T4 → T1 → T2",
            "T3": "T3 → T4 → T1 → T2 → T3",
            "T4": "T4 → T1 → T4",
        },
    ),
    "hope on a refuted one": (
        {"T1": [], "T2": ["T1"], "T3": ["T2"]},
        {"T1": REFUTED, "T2": INCONCLUSIVE, "T3": HOLDS},
        {"T3": "T3 expects HOLDS, but rests on T1, which is expected to be refuted"},
    ),
    "a condition on a refuted one": (
        {"T1": [], "T2": ["T1"]},
        {"T1": REFUTED, "T2": Verdict.CONDITIONAL},
        {"T2": "T2 expects CONDITIONAL, but rests on T1"},
    ),
}


@pytest.mark.parametrize(("rests_on", "expected", "messages"), REFUSED.values(), ids=REFUSED)
def test_refused(rests_on, expected, messages):
    """Those that are wrong themselves; what rests on them is not."""
    found = faults_of_premises(rests_on, dict.fromkeys(rests_on, HOLDS) | expected)
    assert found.keys() == messages.keys()
    assert all(message in found[id] for id, message in messages.items())


ALLOWED = {
    "a diamond": ({"T1": [], "T2": ["T1"], "T3": ["T1"], "T4": ["T2", "T3"]}, {}),
    "refuted on refuted": ({"T1": [], "T2": ["T1"]}, {"T1": REFUTED, "T2": REFUTED}),
    "undecided on refuted": ({"T1": [], "T2": ["T1"]}, {"T1": REFUTED, "T2": INCONCLUSIVE}),
    "refuted on what holds": ({"T1": [], "T2": ["T1"]}, {"T1": HOLDS, "T2": REFUTED}),
}


@pytest.mark.parametrize(("rests_on", "expected"), ALLOWED.values(), ids=ALLOWED)
def test_allowed(rests_on, expected):
    assert not faults_of_premises(rests_on, dict.fromkeys(rests_on, HOLDS) | expected)


def test_premises_are_transitive():
    rests_on = {"T1": [], "T2": ["T1"], "T3": ["T2"], "T4": ["T3", "T2"]}
    assert all_premises("T4", rests_on) == ["T3", "T2", "T1"]
    assert refuted_premises("T4", rests_on, {"T1": REFUTED, "T4": REFUTED}) == ["T1"]
    assert blocked_premises("T4", rests_on, {"T1", "T4"}) == ["T1"]


@pytest.mark.parametrize("verdict", list(Verdict))
def test_only_what_is_affirmed_falls(verdict):
    found, detail = verdict_under(verdict, "why", ["T1", "T2"])
    fell = verdict in (HOLDS, Verdict.CONDITIONAL)
    assert found is (INCONCLUSIVE if fell else verdict)
    own = f"rests on T1, T2, which are refuted; its own checks say {verdict}: why"
    assert detail == (own if fell else "why")
    assert verdict_under(verdict, "why", []) == (verdict, "why")
    found, detail = verdict_under(verdict, "why", ["T1"], ["T2", "T3"])
    assert found is (INCONCLUSIVE if fell else verdict)
    grounds = "T1, which is refuted and on T2, T3, which cannot be decided"
    own = f"rests on {grounds}; its own checks say {verdict}: why"
    assert detail == (own if fell else "why")


@pytest.mark.parametrize(
    ("premises", "message"),
    [(["X9"], "claim X2 rests on X9"), (["X3"], "X2 → X3 → X2"), (["X1"], "rests on X1, which is")],
)
def test_the_catalogue_blocks(run, premises, message):
    """Nothing holds on a claim that is blocked, and the others are decided."""
    register("X1", failing, expected=REFUTED)
    register("X2", rests_on=premises)
    register("X3", rests_on=["X2"])
    assert message in claims.catalogue()["X2"].blocked
    found = run(["A1", "X1", "X2", "X3"], profile="smoke")
    decided = {record["id"]: record for record in found.claims}
    assert message in decided["X2"]["detail"]
    assert "claim of claim_package" in decided["X2"]["detail"]
    assert verdicts(found) | {"X3": ""} == {"A1": HOLDS, "X1": REFUTED, "X2": UNTESTED, "X3": ""}
    assert decided["X3"]["verdict"] in (UNTESTED, INCONCLUSIVE)
    assert found.exit_code == 3


# --- what becomes of a claim under a refuted one --------------------------------------------------


@pytest.fixture
def chain(run):
    """X1 is refuted though it should hold; X2 to X5 rest on it, directly or not; X6 does not."""
    register("X1", failing)
    register("X2", value_is_two, rests_on=["X1"])
    register("X3", conditional, expected=Verdict.CONDITIONAL, rests_on=["X2"])
    register("X4", failing, expected=REFUTED, rests_on=["X1"])
    register("X5", open_ended, expected=INCONCLUSIVE, rests_on=["X1"])
    register("X6", value_is_two, rests_on=["A1"])
    return partial(run, profile="smoke")


CHAIN = [f"X{n}" for n in range(1, 7)]


def verdicts(found):
    return {record["id"]: record["verdict"] for record in found.claims}


def test_what_rests_on_a_refuted_claim_is_inconclusive(chain, tmp_path):
    found = chain(CHAIN)
    assert verdicts(found) == dict(
        zip(CHAIN, [REFUTED, *[INCONCLUSIVE] * 2, REFUTED, INCONCLUSIVE, HOLDS], strict=True)
    )
    X2, X3 = found.claims[1:3]
    own = "rests on X1, which is refuted; its own checks say "
    assert X2["detail"] == own + "HOLDS: 1 exact checks passed"
    assert X3["detail"].startswith(own + "CONDITIONAL: only where n is large")
    assert X3["condition"] == ""
    assert [record["rests_on"] for record in found.claims][:3] == [[], ["X1"], ["X2"]]
    assert found.exit_code == 1
    assert found.records[-1]["counts"] == {"HOLDS": 1, "REFUTED": 2, "INCONCLUSIVE": 3}


def test_the_ledger_keeps_both_verdicts(chain, tmp_path):
    """The claim's own one first, so that nothing is rewritten; the reader sees the last."""
    found = chain(CHAIN)
    book = Ledger(tmp_path / "ledger.jsonl")
    lines = [record for record in book.records() if record.get("id") == "X2"]
    assert [record["verdict"] for record in lines] == [HOLDS, INCONCLUSIVE]
    assert book.verdict("X2", lines[0]["fingerprint"]) is INCONCLUSIVE
    assert len(found.claims) == len(CHAIN)


def test_a_premise_counts_by_its_last_verdict_where_it_is_not_run(chain):
    assert verdicts(chain(["X2"])) == {"X2": HOLDS}  # nothing is known of X1
    chain(["X1"])
    assert verdicts(chain(["X2"])) == {"X2": INCONCLUSIVE}


def test_a_stale_refutation_counts_no_more(chain, tmp_path):
    chain(["X1"])
    book = Ledger(tmp_path / "ledger.jsonl")
    old = book.last_records()["X1"]
    book.append(old | {"fingerprint": "of other code"})
    assert verdicts(chain(["X2"])) == {"X2": HOLDS}


def test_what_rests_on_a_broken_claim_is_inconclusive(run):
    """Not what rests on one that nobody has asked for."""
    register("X1", breaking)
    register("X2", value_is_two, rests_on=["X1"])
    assert verdicts(run(["X2"], profile="smoke")) == {"X2": HOLDS}
    found = run(["X1", "X2"], profile="smoke")
    assert verdicts(found) == {"X1": UNTESTED, "X2": INCONCLUSIVE}
    assert found.claims[1]["detail"].startswith("rests on X1, which cannot be decided; its own")
    assert found.exit_code == 3


def test_mutants_do_not_come_into_it(run):
    """A claim whose check notices no mutant is undecided, and refutes nothing above it."""
    register("X1", value_is_two, mutants=[], expected=INCONCLUSIVE)
    register("X2", value_is_two, mutants=[three], rests_on=["X1"])
    assert verdicts(run(["X1", "X2"], profile="smoke")) == {"X1": INCONCLUSIVE, "X2": HOLDS}


# --- the claims of the library --------------------------------------------------------------------


def test_the_claims_of_the_library_name_their_premises():
    """Nothing rests on T12, which is refuted, and the roots are those that are derived alone."""
    rests_on = {id: c.rests_on for id, c in claims.catalogue().items()}
    assert not [id for id, premises in rests_on.items() if "T12" in premises]
    assert set(all_premises("T13", rests_on)) == {"T11", "T10", "T2", "T1"}
    assert all_premises("T8.a", rests_on) == ["T8", "T7", "T1", "T7.a"]
