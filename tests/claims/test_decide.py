"""What the checks of a claim come to, on the subject and on its mutants."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from claim_package import (
    Four,
    breaking,
    broken,
    conditional,
    failing,
    failing_twice,
    limited_and_open,
    limited_study,
    mixed,
    only_limited,
    open_ended,
    power,
    refuted_and_limited,
    talkative,
    three,
    twin,
    twin_too,
    two,
    value_is_two,
)

from hesstheory.claims.context import Context
from hesstheory.claims.decide import decide
from hesstheory.claims.registry import Claim, mutant_name
from hesstheory.evidence.checks import Kind, Status, Verdict
from hesstheory.evidence.exact import exact
from hesstheory.evidence.sequential import Tail, statistical

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
    named = {mutant_name(mutant): mutant for mutant in mutants}
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
