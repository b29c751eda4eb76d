"""The ledger is appended to, whatever happened to its last line."""

from __future__ import annotations

import json

import pytest

from hesstheory.claims.ledger import Ledger
from hesstheory.evidence.checks import Verdict


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
    """Whatever is left of the last line, the lines before it are read, and the next record gets a
    line of its own."""
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


@pytest.mark.parametrize("content", ["hello", "\x80pickle", '{"other": 1}\n'])
def test_a_file_of_another_kind_is_no_ledger(content, tmp_path):
    file = tmp_path / "file"
    file.write_text(content)
    with pytest.raises(ValueError, match="is no ledger"):
        Ledger(file)
    assert file.read_text() == content


def test_a_folder_is_no_ledger(tmp_path):
    with pytest.raises(ValueError, match="is a folder: name a file"):
        Ledger(tmp_path)
