"""Costs of compiled and of re-laid networks, on a tiny problem."""

from __future__ import annotations

import pytest
import torch

from hesstheory.bench.problems import SETTINGS
from hesstheory.studies import engine

# What the compiler of this version of PyTorch says of itself.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def uncompiled(monkeypatch):
    """The compiler takes a minute, and is not there on every machine."""
    monkeypatch.setattr(torch, "compile", lambda function: function)


def test_every_way_is_timed(uncompiled):
    """In gradients of the same problem."""
    problem = SETTINGS["cnn"].build(True, True)
    found = engine._costs(problem, repeats=1)
    assert found["gradient_seconds"] > 0
    assert set(found["gradients"]) == set(engine.ways(problem))
    assert all(0 < cost < 1000 for cost in found["gradients"].values())


def test_a_way_that_fails_says_why(uncompiled, monkeypatch):
    """The others are timed."""

    def broken(problem):
        raise RuntimeError("no traces\nand more")

    monkeypatch.setattr(engine, "exact_traces", broken)
    found = engine._costs(SETTINGS["cnn"].build(True, True), repeats=1)["gradients"]
    assert found["exact_traces"] == "RuntimeError: no traces"
    assert isinstance(found["gradient, compiled"], float)
