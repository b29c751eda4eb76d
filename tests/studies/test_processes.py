"""Seconds by number of processes, each call adding its own."""

from __future__ import annotations

import json

import pytest

from hesstheory.studies import processes as study
from hesstheory.studies.study import call_study


def test_a_call_adds_its_number_of_processes(tmp_path, capsys):
    """And the gain over one process; another network does not mix."""
    file = tmp_path / "reports" / "processes.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"seconds": {"2": 0.5}}))
    tiny = ["--model", "vgg11", "--repeats", "1", "--out", str(tmp_path)]
    assert call_study(study.STUDY, [*tiny, "--batch", "2"]) == 0
    record = json.loads(file.read_text())
    assert set(record["seconds"]) == set(record["gain"]) == {"1", "2"}
    assert record["gain"]["2"] == record["seconds"]["1"] / 0.5
    with pytest.raises(SystemExit):
        call_study(study.STUDY, [*tiny, "--batch", "3"])
    assert "is of another network or batch: pass another --out" in capsys.readouterr().err
