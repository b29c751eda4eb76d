"""Work in fresh processes."""

from __future__ import annotations

import os

import pytest

from hesstheory.bench import processes


def test_a_process_of_its_own_has_its_own_environment():
    assert processes.in_a_process(os.getenv, "HESSTHEORY_TEST", HESSTHEORY_TEST="there") == "there"
    assert "HESSTHEORY_TEST" not in os.environ


def test_a_process_that_is_killed_is_told_from_an_answer():
    with pytest.raises(MemoryError, match="runs out of memory"):
        processes.in_a_process(os._exit, 1)
