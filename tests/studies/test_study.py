"""What all studies have in common: names, options, states of their records, re-stamping."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hesstheory import studies
from hesstheory.studies import registry
from hesstheory.studies.records import SpotCheck, State
from hesstheory.studies.study import Study, call_study, no_options, parser_of


def _run(call):
    call.write({"value": 2.0})
    return True


TINY = Study(
    "tiny",
    "What is two?",
    _run,
    no_options,
    lambda record: SpotCheck.of_numbers("the value", [2.0], [record["value"]], 0.0),
    code="hesstheory.run.streams",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_study_is_listed():
    """A file of the wing that can be called is a study of the registry."""
    folder = Path(studies.__path__[0])
    callable_ones = [path.stem for path in folder.glob("*.py") if "STUDY = " in path.read_text()]
    assert sorted(callable_ones) == sorted(registry.NAMES)


@pytest.mark.parametrize("name", registry.NAMES)
def test_a_study_says_what_it_asks(name):
    """One line, a fingerprint, and a parser that takes no options."""
    study = registry.study(name)
    assert study.name == name
    assert study.question.endswith("?")
    assert len(study.question) < 100
    assert len(study.origin.fingerprint()) == 16
    parser_of(study).parse_args([])


def test_an_unknown_study_is_refused():
    """With the names of the known ones."""
    with pytest.raises(KeyError, match="no study 'nothing': choose one of conformance_"):
        registry.study("nothing")


def test_records_go_to_a_folder_that_git_ignores(here, capsys):
    """With the command, the commit and the fingerprint of their code."""
    assert call_study(TINY, []) == 0
    record = json.loads((here / "runs/study/reports/tiny.json").read_text())
    assert record["value"] == 2.0
    assert record["fingerprint"] == TINY.origin.fingerprint()
    assert record["provenance"]["command"] == "hesstheory study tiny"
    assert capsys.readouterr().out == "runs/study/reports/tiny.json\n"


def test_the_record_of_this_folder_is_renewed_on_demand(here, capsys):
    """And the command says so."""
    assert call_study(TINY, ["--out", "."]) == 0
    assert capsys.readouterr().out == "Renewed in this folder: reports/tiny.json.\n"
    assert TINY.states(Path()) == {Path("reports/tiny.json"): State.CURRENT}


def test_the_state_of_a_record_is_read_and_nothing_is_run(here, capsys):
    """In this folder unless another is named."""

    def broken(call):
        raise AssertionError("it ran")

    assert call_study(TINY, ["--out", "mine"]) == 0
    capsys.readouterr()
    study = replace(TINY, run=broken)
    assert call_study(study, ["--status"]) == 0
    assert capsys.readouterr().out == "no record  reports/tiny.json\n"
    assert call_study(study, ["--status", "--out", "mine"]) == 0
    assert capsys.readouterr().out == "current    mine/reports/tiny.json\n"
    assert (
        call_study(replace(study, code="hesstheory.run.files"), ["--status", "--out", "mine"]) == 0
    )
    assert capsys.readouterr().out == "STALE      mine/reports/tiny.json\n"


@pytest.mark.parametrize(("value", "code"), [(2.0, 0), (3.0, 1)])
def test_a_stale_record_is_restamped_where_it_is_reproduced(value, code, here, capsys):
    """Else it stays stale, and the exit code is 1."""
    (here / "reports").mkdir()
    file = here / "reports" / "tiny.json"
    file.write_text(json.dumps({"value": value}))
    assert call_study(TINY, ["--restamp"]) == code
    said = capsys.readouterr().out
    assert said.startswith("re-stamped" if code == 0 else "NOT REPRODUCED")
    assert "the value, deviation" in said
    assert ("restamped" in json.loads(file.read_text())) is (code == 0)


def test_a_current_record_is_not_restamped(here):
    """It is what it was."""
    call_study(TINY, ["--out", "."])
    before = (here / "reports/tiny.json").read_bytes()
    assert call_study(TINY, ["--restamp"]) == 0
    assert (here / "reports/tiny.json").read_bytes() == before


def test_times_are_not_restamped(here, capsys):
    """No machine repeats them."""
    assert call_study(replace(TINY, spot_check=None), ["--restamp"]) == 1
    assert "run it again to renew it" in capsys.readouterr().out


def test_a_spot_check_that_cannot_be_made_does_not_end_the_others(here, capsys):
    """Such as one whose data are on another machine."""

    def missing(record):
        if record["value"] == 1:
            raise FileNotFoundError("no such data")
        return SpotCheck("the value", 0.0, 0.0)

    folder = here / "reports" / "many"
    folder.mkdir(parents=True)
    for value in (1, 2):
        (folder / f"{value}.json").write_text(json.dumps({"value": value}))
    study = replace(TINY, spot_check=missing, in_folder="many")
    assert call_study(study, ["--restamp"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == "NOT REPRODUCED reports/many/1.json: no such data"
    assert second.startswith("re-stamped reports/many/2.json")
    assert list(study.states(Path()).values()) == [State.STALE, State.CURRENT]
