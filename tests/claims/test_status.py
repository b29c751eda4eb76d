"""What the ledger says without a run: last verdicts, and which of them are stale."""

from __future__ import annotations

import os

import pytest

from hesstheory.claims.ledger import Ledger
from hesstheory.claims.status import counts, newest_ledger, standings, to_json
from hesstheory.evidence.checks import Verdict


@pytest.fixture
def book(run, tmp_path):
    """A ledger in which A1 and A2 are decided, A1 by other code."""
    run(["A1", "A2"], profile="smoke")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(ledger.last_records()["A1"] | {"fingerprint": "of other code"})
    return ledger


def test_standings(book):
    found = {standing.id: standing for standing in standings(book.path)}
    assert list(found) == ["A1", "A2", "A2.a", "A3", "A10", "B1", "B2"]
    assert (found["A1"].now, found["A1"].last) == (Verdict.STALE, Verdict.HOLDS)
    assert (found["A2"].now, found["A2"].last) == (Verdict.HOLDS, Verdict.HOLDS)
    assert (found["A3"].now, found["A3"].last) == (Verdict.UNTESTED, None)
    assert (found["A2"].profile, found["A3"].profile) == ("smoke", "")
    assert [standing.as_expected for standing in found.values()][:3] == [False, True, True]
    assert counts(list(found.values())) == {"HOLDS": 2, "STALE": 1, "UNTESTED": 4}


def test_standings_of_named_claims(book):
    found = standings(book.path, ["A2"])
    assert [standing.id for standing in found] == ["A2", "A2.a"]
    assert to_json(found)["counts"] == {"HOLDS": 2}
    assert to_json(found)["claims"][0]["verdict"] == "HOLDS"
    with pytest.raises(KeyError, match="no claim 'A9'"):
        standings(book.path, ["A9"])


def test_nothing_is_run(book, package):
    before = (package / "decided").read_bytes()
    standings(book.path)
    assert (package / "decided").read_bytes() == before


def test_without_a_ledger_all_is_untested(registry):
    assert {standing.now for standing in standings(None)} == {Verdict.UNTESTED}


def test_the_newest_ledger(tmp_path):
    first, second = paths = [tmp_path / "first", tmp_path / "second"]
    assert newest_ledger(paths) is None
    for path, time in ((first, 100), (second, 50)):
        path.touch()
        os.utime(path, (time, time))
    assert newest_ledger(paths) == first
    os.utime(second, (200, 200))
    assert newest_ledger(paths) == second
