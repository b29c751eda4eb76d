"""Files survive a kill; a ledger is only ever added to."""

from __future__ import annotations

import json
import os

import pytest

from hesstheory.run import files
from hesstheory.run.files import append_line, write_atomically


def test_a_file_is_written_and_replaced_whole(tmp_path):
    path = tmp_path / "new" / "summary.json"
    for text in ("Σ‖H_lm‖²", "", "longer\n" * 1000):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
        assert path.stat().st_mode & 0o777 == 0o644
        assert list(path.parent.iterdir()) == [path]


def test_bytes_and_text_are_the_same_file(tmp_path):
    for content in ("Σ\r\n\n", "Σ\r\n\n".encode()):
        write_atomically(tmp_path / "page", content)
        assert (tmp_path / "page").read_bytes() == "Σ\r\n\n".encode()
    write_atomically(tmp_path / "figure.png", bytes(range(256)))
    assert (tmp_path / "figure.png").read_bytes() == bytes(range(256))


FAILURES = {
    "no such character": (None, "\ud800", UnicodeEncodeError),
    "the disk is full": ("fsync", "new", OSError),
    "no renaming": ("replace", "new", OSError),
    "interrupted": ("fsync", "new", KeyboardInterrupt),
}


@pytest.mark.parametrize(("step", "text", "error"), FAILURES.values(), ids=FAILURES)
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    step, text, error, tmp_path, monkeypatch
):
    path = tmp_path / "summary.json"
    path.write_text("old")

    def fail(*arguments):
        raise error("no")

    with monkeypatch.context() as patch:
        if step is not None:
            patch.setattr(files.os, step, fail)
        with pytest.raises(error):
            write_atomically(path, text)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    assert path.read_text() == "old"


def test_a_folder_in_the_way_leaves_nothing_behind(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(OSError, match=r"summary\.json"):
        write_atomically(tmp_path / "summary.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


BEFORE = {
    "no file": (None, b""),
    "empty": (b"", b""),
    "whole": (b'{"a": 1}\n', b'{"a": 1}\n'),
    "torn": (b'{"a": 1}\n{"b"', b'{"a": 1}\n{"b"\n'),
    "torn in its first byte": (b"{", b"{\n"),
    "only a newline": (b"\n", b"\n"),
    "torn in a character": ("{Σ".encode()[:-1], "{Σ".encode()[:-1] + b"\n"),
}


@pytest.mark.parametrize(("before", "kept"), BEFORE.values(), ids=BEFORE)
def test_a_line_is_added_to_whatever_is_there(before, kept, tmp_path):
    path = tmp_path / "new" / "ledger.jsonl"
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)
    append_line(path, {"n": "Σ"})
    append_line(path, {"n": 2})
    assert path.read_bytes() == kept + '{"n": "Σ"}\n{"n": 2}\n'.encode()


def test_a_long_ledger_is_not_read_to_be_added_to(tmp_path):
    """A file without blocks on the disk, larger than the memory."""
    path = tmp_path / "ledger.jsonl"
    size = 2**40
    path.touch()
    os.truncate(path, size)
    append_line(path, {"n": 1})
    with open(path, "rb") as whole:
        whole.seek(size)
        assert whole.read() == b"\n" + json.dumps({"n": 1}).encode() + b"\n"
