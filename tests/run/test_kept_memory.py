"""What glibc keeps of the memory that was freed."""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace

import pytest
import torch

import hesstheory.autograd.products
import hesstheory.curvature.limits
import hesstheory.run.memory
from hesstheory.run.memory import keep_freed_memory


def test_free_memory_is_a_number_of_bytes():
    assert 2**20 < hesstheory.run.memory.free_memory(torch.device("cpu")) < 2**50


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
    keep_freed_memory.__wrapped__()
    assert found == asked
