"""Claims are registered, found by their entry point and selected by their names."""

from __future__ import annotations

from functools import partial

import pytest
from claim_package import Four, power, register, three, value_is_two

from hesstheory import claims
from hesstheory.claims.registry import select
from hesstheory.evidence.checks import Verdict
from hesstheory.evidence.exact import exact


def another(subject, context):
    yield exact("value", subject(), 2.0)


MISTAKES = {
    "an id of another claim": (
        {"decide": another},
        r"claim X1 is registered twice: claim_package and \S*test_registry",
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
    "premises as a text": (
        {"id": "X2", "rests_on": "T1"},
        r"claim X2: rests_on is the text 'T1': pass a list of names, \['T1'\]",
    ),
    "premises that are no names": ({"id": "X2", "rests_on": [1]}, r"rests_on holds 1: pass a list"),
    "an id that is no text": ({"id": 3}, r"claim 3 has id=3: pass a text"),
    "no reason": ({"id": "X2", "reason": None}, r"claim X2 has reason=None: pass a text"),
    "an unknown expectation": (
        {"id": "X2", "expected": "TRUE"},
        r"X2 has expected='TRUE': pass expected=Verdict.HOLDS",
    ),
    "a number of checks as a text": (
        {"id": "X2", "statistical": "2"},
        r"X2 has statistical='2': pass a number of checks",
    ),
    "seconds as a text": ({"id": "X2", "seconds": "2"}, r"X2 has seconds='2': pass a number"),
    "one mutant": ({"id": "X2", "mutants": three}, r"X2 has mutants=.*pass a list, mutants="),
    "no function": (
        {"id": "X2", "decide": partial(another)},
        r"X2 decorates .*: decorate a function with a name",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_registering_refuses(registry, changes, message):
    register()
    before = dict(registry)
    with pytest.raises((ValueError, TypeError), match=message):
        register(**changes)
    assert registry == before
    assert all(not c.blocked for c in claims.catalogue().values())


def test_registered_claim(registry):
    """The function is given back, names the claim, and may be registered again, as a reloaded
    module does."""
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
    assert caught.value.args[0].startswith(f"no claim {name!r}: choose one of T1, T1.a, T2")
