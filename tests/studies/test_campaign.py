"""Campaigns: runs that are whole or absent, done once, and never mixed with those of other code."""

from __future__ import annotations

import json

import pytest

from hesstheory.studies.campaign import Campaign


class _Work:
    """Squares a number, and remembers what it was asked to do."""

    def __init__(self, breaking=()):
        self.breaking = set(breaking)
        self.tasks = []

    def __call__(self, task, folder):
        self.tasks.append(task)
        (folder / "notes.txt").write_text("beside the record")
        if task in self.breaking:
            self.breaking.remove(task)
            raise KeyboardInterrupt
        return {"square": task**2}


def _squares(runs):
    return {run.name: run.record and run.record["square"] for run in runs}


TASKS = {"one": 1, "two": 2, "three": 3}


def test_runs_are_done_once(tmp_path):
    """Each is a folder with its record."""
    work = _Work()
    campaign = Campaign(tmp_path, work, "code")
    for _ in range(2):
        assert _squares(campaign.runs(TASKS)) == {"one": 1, "two": 4, "three": 9}
    assert work.tasks == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == set(TASKS)
    assert (tmp_path / "two" / "notes.txt").exists()


def test_an_interrupted_run_is_the_only_one_that_is_lost(tmp_path):
    """It leaves no folder under its final name, and goes on in the folder that it left."""
    work = _Work(breaking=[2])
    campaign = Campaign(tmp_path, work, "code")
    with pytest.raises(KeyboardInterrupt):
        list(campaign.runs(TASKS))
    assert {path.name for path in tmp_path.iterdir()} == {"one", ".two"}
    assert _squares(campaign.runs(TASKS)) == {"one": 1, "two": 4, "three": 9}
    assert work.tasks == [1, 2, 2, 3]


def test_campaigns_merge_by_copying(tmp_path):
    """Runs of another folder are taken as done."""
    here, there = (Campaign(tmp_path / name, _Work(), "code") for name in ("here", "there"))
    list(there.runs({"two": 2}))
    list(here.runs({"one": 1}))
    (tmp_path / "there" / "two").rename(tmp_path / "here" / "two")
    assert _squares(here.runs(TASKS)) == {"one": 1, "two": 4, "three": 9}
    assert here.work.tasks == [1, 3]


def test_runs_of_other_code_do_not_mix(tmp_path):
    """The message says which, and what to do."""
    list(Campaign(tmp_path, _Work(), "code of yesterday").runs(TASKS))
    with pytest.raises(ValueError, match=r"one/record\.json was made by other code.*--out"):
        list(Campaign(tmp_path, _Work(), "code of today").runs(TASKS))


def test_a_damaged_record_is_named(tmp_path):
    """And the cure."""
    list(Campaign(tmp_path, _Work(), "code").runs(TASKS))
    (tmp_path / "two" / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"two/record\.json is damaged.*delete it"):
        list(Campaign(tmp_path, _Work(), "code").runs(TASKS))


def test_no_run_is_started_late(tmp_path):
    """What is done is still returned."""
    campaign = Campaign(tmp_path, _Work(), "code")
    list(campaign.runs({"one": 1}))
    assert _squares(campaign.runs(TASKS, seconds=0)) == {"one": 1, "two": None, "three": None}


def test_a_run_that_broke_is_tried_again(tmp_path):
    """An empty record is not kept."""
    campaign = Campaign(tmp_path, lambda task, folder: {}, "code")
    for _ in range(2):
        assert [run.record for run in campaign.runs({"one": 1})] == [{}]
    assert not (tmp_path / "one").exists()


def test_work_in_place_is_given_the_final_folder(tmp_path):
    """The record ends it."""
    folders = []

    def work(task, folder):
        folders.append(folder)
        return {"square": task**2}

    campaign = Campaign(tmp_path, work, "code", in_place=True)
    for _ in range(2):
        assert _squares(campaign.runs({"two": 2})) == {"two": 4}
    assert folders == [tmp_path / "two"]
    assert json.loads((tmp_path / "two" / "record.json").read_text())["fingerprint"] == "code"
