"""Batches are cut to the free memory, and that changes no number."""

from __future__ import annotations

import pytest
from builders import close

import hesstheory.outputs.fit
import hesstheory.outputs.premise
from hesstheory import (
    exact_traces,
    ggn,
    zoo,
)
from hesstheory.outputs.fit import fitted


@pytest.mark.parametrize("name", ["cnn", "residual", "relu_mlp"])
def test_smaller_batches_give_the_same_traces(name, generator):
    problem = zoo.problem(name, generator, num_samples=13)
    for size in (1, 4, 13):
        close(exact_traces(problem.rebatched(size), matrix=ggn), exact_traces(problem, matrix=ggn))
        assert max(problem.rebatched(size).batch_sizes) <= size


def test_batches_are_cut_to_the_free_memory(generator, monkeypatch):
    problem = zoo.problem("cnn", generator, num_samples=13)
    expected = exact_traces(problem)
    assert fitted(problem) is problem
    monkeypatch.setattr(hesstheory.outputs.fit, "_LITTLE", 0)
    monkeypatch.setattr(hesstheory.outputs.fit, "free_memory", lambda device: 60_000)
    assert 1 < max(fitted(problem).batch_sizes) < max(problem.batch_sizes)
    close(exact_traces(problem), expected)
    monkeypatch.setattr(hesstheory.outputs.fit, "free_memory", lambda device: 1000)
    with pytest.raises(
        MemoryError, match=r"a single sample takes about [0-9,]+ bytes and 500 may be used"
    ):
        exact_traces(problem)
