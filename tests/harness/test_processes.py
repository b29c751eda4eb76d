"""Full-scale runs that are killed and go on, and runs of several processes."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from full_scale_runs import (
    TINY,
    command,
    command_here,
    kill_when,
    numbers,
    quiet,
    rendezvous,
    run_in_forks,
    same,
)

from hesstheory.harness.course import run


@pytest.mark.parametrize("stage", ["2_kinks", "8_products"])
def test_a_killed_run_goes_on(stage, finished, tmp_path):
    folder = tmp_path / "run"
    kill_when(command("--out", folder), lambda: (folder / "stages" / f"{stage}.json").exists())
    result = command_here("--out", folder, "--resume")
    assert result.exit_code == 0, result.output
    assert "checks held" in result.stdout
    same(numbers(folder), finished[1]["layers"])


def test_killed_training_goes_on_as_if_it_had_not_been(tmp_path):
    broken = tmp_path / "broken"
    kill_when(command("--steps", 45, "--out", broken), lambda: (broken / "training.pt").exists())
    process = command("--steps", 45, "--out", broken, "--resume")
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    whole = run(replace(TINY, steps=45), tmp_path / "whole", say=quiet)
    same(numbers(broken), whole["layers"])


# --- many processes -------------------------------------------------------------------------------


def test_torchrun_finds_what_one_process_finds(finished, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = command("--out", tmp_path / "run", "--parallel", "data", launcher=launcher)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    same(numbers(tmp_path / "run"), finished[1]["layers"])


@pytest.mark.parametrize("parallel", ["data", "probes"])
def test_three_processes_find_what_one_finds(parallel, finished, tmp_path):
    assert run_in_forks(3, replace(TINY, parallel=parallel), tmp_path / "run") == [0, 0, 0]
    same(numbers(tmp_path / "run"), finished[1]["layers"])


def test_a_lost_rank_is_an_error_in_bounded_time(tmp_path):
    folder = tmp_path / "run"
    shared = rendezvous(2)
    both = [
        command(
            "--out",
            folder,
            "--patience",
            "20",
            "--batch",
            "16",
            "--width",
            "2",
            RANK=str(rank),
            **shared,
        )
        for rank in range(2)
    ]
    kill_when(both[1], lambda: (folder / "stages" / "1_gradient.json").exists())
    start = time.monotonic()
    _, err = both[0].communicate(timeout=120)
    assert both[0].returncode == 2, err
    assert "another process ended or gave no answer in time" in err
    assert time.monotonic() - start < 60
