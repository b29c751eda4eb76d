"""Memory: free, held and held at most."""

from __future__ import annotations

import ctypes
import mmap
import os
from types import SimpleNamespace

import psutil
import pytest
import torch
from pretend_cuda import MEMORY

from hesstheory.run import memory

CPU = torch.device("cpu")
HELD = 2**26


def test_what_pytorch_keeps_is_free_memory(device):
    assert memory.free_memory(device) == MEMORY // 4 + MEMORY // 2 - MEMORY // 8


def test_free_memory_is_what_the_system_calls_available(monkeypatch):
    assert 2**20 < memory.free_memory(CPU) <= psutil.virtual_memory().total
    available = psutil.virtual_memory()._replace(available=12_345, free=1)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: available)
    assert memory.free_memory(CPU) == 12_345


def test_the_peak_is_at_least_what_is_held():
    held = psutil.Process().memory_info().rss
    # The counters of the kernel lag behind by a few pages of every core.
    assert memory.peak_memory(CPU) >= 0.9 * held


@pytest.mark.skipif(memory.resident_now() is None, reason="the peak cannot be read without /proc")
def test_memory_counts_what_is_held_at_once():
    before = memory.resident_now()
    # Pages of its own, where torch might take what an earlier test gave back.
    with mmap.mmap(-1, HELD) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert memory.resident_peak() - before >= 0.9 * len(held)
    after = memory.resident_now()
    assert memory.resident_peak() - after < 0.5 * HELD


def test_free_memory_is_a_number_of_bytes():
    assert 2**20 < memory.free_memory(CPU) < 2**50


@pytest.mark.parametrize(
    ("environment", "library", "asked"),
    [
        ({}, SimpleNamespace, [(-1, 2**30)]),  # M_TRIM_THRESHOLD of malloc.h
        ({"MALLOC_ARENA_MAX": "1"}, SimpleNamespace, []),
        ({}, lambda **functions: object(), []),  # another C library
    ],
)
def test_freed_memory_is_kept_where_the_user_says_nothing_else(
    environment, library, asked, monkeypatch
):
    found = []
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name: library(mallopt=lambda *arguments: found.append(arguments))
    )
    memory.keep_freed_memory.__wrapped__()
    assert found == asked
