"""Records: stale or current by their fingerprint, re-stamped only where they are reproduced."""

from __future__ import annotations

import json
import math

import pytest

from hesstheory.studies import records
from hesstheory.studies.records import Origin, SpotCheck, State, restamp, state_of

ORIGIN = Origin("hesstheory.run.streams")


@pytest.fixture
def file(tmp_path):
    """A record that was made before records had fingerprints."""
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"value": 2.0, "provenance": {"commit": "a1b2c3"}}))
    return path


def _again(value):
    """A spot check that finds some value."""
    return lambda record: SpotCheck.of_numbers("the value", [value], [record["value"]], 1e-6)


def test_states(file, tmp_path):
    """By fingerprint alone; a record without one is stale."""
    assert state_of(tmp_path / "none.json", ORIGIN) is State.ABSENT
    assert state_of(file, ORIGIN) is State.STALE
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"fingerprint": ORIGIN.fingerprint()}))
    assert state_of(file, ORIGIN) is State.CURRENT
    assert state_of(file, Origin("hesstheory.run.files")) is State.STALE


def test_data_belong_to_the_fingerprint(tmp_path):
    """A changed file makes a record stale."""
    data = tmp_path / "data.csv"
    data.write_text("1")
    origin = Origin("hesstheory.run.streams", (data,))
    before = origin.fingerprint()
    data.write_text("2")
    assert len({before, origin.fingerprint(), ORIGIN.fingerprint()}) == 3


def test_a_record_that_is_reproduced_is_restamped_and_says_so(file, monkeypatch):
    """Numbers and provenance stay; the note has old commit, date, what was compared, deviation."""
    monkeypatch.setattr(records, "provenance", lambda command: {"commit": "d4e5f6"})
    before = json.loads(file.read_text())
    assert restamp(file, ORIGIN, _again(2.000001)).holds
    assert state_of(file, ORIGIN) is State.CURRENT
    after = json.loads(file.read_text())
    assert before.items() <= after.items()
    (note,) = after["restamped"]
    assert note["from"] == {"commit": "a1b2c3", "fingerprint": None}
    assert note["to"] == {"commit": "d4e5f6", "fingerprint": ORIGIN.fingerprint()}
    assert note["compared"] == "the value"
    assert note["deviation"] == pytest.approx(5e-7, rel=1e-6)
    assert note["date"].count("-") == 2


def test_a_record_is_restamped_as_often_as_it_is_reproduced(file):
    """Every time adds a note."""
    for _ in range(2):
        restamp(file, ORIGIN, _again(2.0))
    assert len(json.loads(file.read_text())["restamped"]) == 2


@pytest.mark.parametrize("value", [2.1, math.nan])
def test_a_record_that_is_not_reproduced_is_left_alone(file, value):
    """A number that is none is no reproduction either."""
    before = file.read_bytes()
    assert not restamp(file, ORIGIN, _again(value)).holds
    assert file.read_bytes() == before


def test_one_number_that_is_none_is_enough():
    """Wherever it stands."""
    for found in ([1.0, math.nan], [math.nan, 1.0]):
        assert not SpotCheck.of_numbers("two", found, [1.0, 1.0], 0.1).holds


def test_outcomes_must_be_the_same():
    """One that differs is one too many."""
    assert SpotCheck.of_outcomes("codes", [0, 1], [0, 1]).holds
    assert SpotCheck.of_outcomes("codes", [0, 1], [0, 0]).deviation == 1
    assert not SpotCheck.of_outcomes("codes", [0, 1], [0, 0]).holds


@pytest.mark.parametrize(("text", "message"), [("{", "is damaged"), ("[]", "is no record")])
def test_damaged_records_are_named(text, message, file):
    """With the file."""
    file.write_text(text)
    with pytest.raises(ValueError, match=f"found.json {message}"):
        state_of(file, ORIGIN)
