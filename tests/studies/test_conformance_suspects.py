"""Suspects: places of known mistakes among those that a failed suite names."""

from __future__ import annotations

import json

from hesstheory.studies import conformance_suspects as study
from hesstheory.studies.records import State, state_of
from hesstheory.studies.study import call_study


def test_a_known_mistake_is_the_first_suspect():
    """At a seed that its pattern was not made with."""
    assert study.place("missing_block", 20261121) == 1


def test_places_are_counted_and_repeated(tmp_path, monkeypatch):
    """None is no place; a spot check compares the first two."""
    places = {"one": 1, "two": 3, "three": None}
    monkeypatch.setattr(study, "WRONG", dict.fromkeys(places))
    monkeypatch.setattr(study, "place", lambda name, seed: places[name])
    assert call_study(study.STUDY, ["--every", "1", "--out", str(tmp_path)]) == 0
    file = tmp_path / "reports" / "conformance_suspects.json"
    record = json.loads(file.read_text())
    assert (record["first"], record["among_first_three"], record["of"]) == (1, 2, 3)
    assert record["places"] == places
    assert state_of(file, study.STUDY.origin) is State.CURRENT
    assert study.spot_check(record).holds
    places["two"] = 2
    assert study.spot_check(record).deviation == 1


def test_the_stored_patterns_are_data_of_the_study():
    """A new pattern makes the record stale."""
    (file,) = study.STUDY.data
    assert file.is_file()
