"""Tasks over several processes."""

import os
import sys

import torch

from hesstheory.run.workers import scatter


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
