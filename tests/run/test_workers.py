"""Tasks over several processes."""

import os
import sys

import torch

from hesstheory.run.workers import scatter, started


def square(x):
    return x * x, os.getpid(), torch.get_num_threads()


def memory_growth_at_which_loky_ends_a_worker(_):
    from joblib.externals.loky import process_executor

    return process_executor._MAX_MEMORY_LEAK_SIZE


def test_one_worker_stays_in_this_process():
    threads = torch.get_num_threads()
    found = list(scatter(square, [1, 2, 3], workers=1))
    assert found == [(1, os.getpid(), 1), (4, os.getpid(), 1), (9, os.getpid(), 1)]
    assert torch.get_num_threads() == threads


def test_several_workers_give_all_results():
    found = list(scatter(square, [1, 2, 3], workers=2))
    assert sorted(x for x, _, _ in found) == [1, 4, 9]
    assert os.getpid() not in {process for _, process, _ in found}


def test_a_worker_with_full_caches_is_kept():
    found = list(scatter(memory_growth_at_which_loky_ends_a_worker, [1, 2], workers=2))
    assert found == [sys.maxsize] * 2


def prepare():
    sys.prepared_by_test = os.getpid()


def prepared(_):
    return os.getpid(), getattr(sys, "prepared_by_test", None)


def test_started_processes_are_those_of_the_tasks():
    with started(prepare, workers=2):
        here = os.getpid()
    found = list(scatter(prepared, range(8), workers=2))
    assert all(process != here for process, _ in found)
    # One process may have prepared itself twice and the other not at all.
    assert any(process == by for process, by in found)
    assert not hasattr(sys, "prepared_by_test")


def fail():
    raise ValueError("no such thing")


def test_what_fails_in_preparing_is_left_to_the_tasks():
    with started(fail, workers=2):
        pass
    assert sorted(x for x, _, _ in scatter(square, [1, 2], workers=2)) == [1, 4]


def test_one_worker_starts_nothing():
    with started(fail, workers=1):
        pass
