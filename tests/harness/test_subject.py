"""What is measured, and its part in a process."""

from __future__ import annotations

import pytest
import torch
from full_scale_runs import TINY, quiet

from hesstheory import zoo
from hesstheory.harness.subject import Subject
from hesstheory.run.ranks import Ranks


def _problem():
    return zoo.full_scale_problem(
        "vgg11",
        zoo.images("digits", num_samples=4),
        batch_size=4,
        width=1,
        generator=torch.Generator().manual_seed(0),
    )


def test_running_out_of_memory_halves_the_batches():
    seen, said = [], []

    def hungry(problem):
        seen.append(max(problem.batch_sizes))
        if seen[-1] > 1:
            raise torch.OutOfMemoryError("no")
        return "done"

    assert Subject(TINY, _problem(), Ranks(), said.append).halving(hungry, _problem()) == "done"
    assert seen == [4, 2, 1]
    assert said[0] == "the device is out of memory with batches of 4: going on with 2"


def test_more_processes_than_samples_is_refused():
    crowd = Subject(TINY, _problem(), Ranks(0, 9), quiet)
    with pytest.raises(
        ValueError, match="9 processes for 4 samples: use at most one for each sample"
    ):
        _ = crowd.own_samples
