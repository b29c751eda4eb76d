"""Inputs as people bring them: every number is right, or refused with a cure."""

from __future__ import annotations

import importlib
import inspect

import pytest
from kinds.judge import faults

from hesstheory.estimators import recommendation

SUBJECTS = (
    "derivatives",
    "complex_numbers",
    "samples",
    "means",
    "partial",
    "precision",
    "small_losses",
    "infinities",
    "modes",
    "positions",
    "models",
)


def cases():
    """The cases of every subject, under its name."""
    for subject in SUBJECTS:
        module = importlib.import_module(f"kinds.{subject}")
        named = {**vars(module), **getattr(module, "TABLE", {})}
        for name, build in named.items():
            is_own = inspect.isfunction(build) and build.__module__ == module.__name__
            if is_own and not build.__name__.startswith("_"):
                yield pytest.param(build, id=f"{subject}-{name}", marks=getattr(build, "marks", ()))


CASES = list(cases())


@pytest.mark.parametrize("case", CASES)
def test_a_number_is_right_or_refused(case, build, unchecked, monkeypatch):
    # Short pilots: how well they tell costs and variances is not what is tested.
    monkeypatch.setattr(recommendation, "_TIMES_FIRST", 0)
    monkeypatch.setattr(recommendation, "_PILOT", 4)
    assert build(lambda: faults(case())) == {}


def test_there_are_enough():
    assert len(CASES) >= 60
