"""The studies measure what they say: their estimators are those of the library, drawn and multiplied otherwise."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from hesstheory import BlockSeparatedTrace, Gaussian, LayerwiseTrace, Rademacher
from hesstheory.conformance import references

_PATH = Path(__file__).parent / "studies" / "conformance_error_rates.py"
_SPEC = importlib.util.spec_from_file_location(_PATH.stem, _PATH)
study = importlib.util.module_from_spec(_SPEC)
sys.modules[_PATH.stem] = study  # dataclasses look themselves up there
_SPEC.loader.exec_module(study)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("signs", LayerwiseTrace(16, Rademacher())),
        ("normal", LayerwiseTrace(16, Gaussian())),
        ("block-separated", BlockSeparatedTrace(16, Rademacher())),
    ],
)
def test_estimators_with_a_held_hessian_give_what_the_library_gives(name, twin):
    for reference in ("smooth_mlp", "tied", "layouts"):
        problem = references()[reference].build()
        found = study.RIGHT[name](problem, num_probes=16, generator=torch.Generator().manual_seed(3))
        expected = twin(problem, torch.Generator().manual_seed(3))
        for block, (value, error) in found.items():
            assert value == pytest.approx(expected.value[block], rel=1e-10)
            assert error == pytest.approx(expected.stderr[block], rel=1e-8)


def test_the_held_hessian_follows_the_parameters():
    problem = references()["smooth_mlp"].build()
    before = study.held(problem)
    with torch.no_grad():
        next(iter(problem.params.values())).mul_(0.5)
    assert not torch.equal(study.held(problem), before)


def test_a_run_is_recorded_and_rated():
    right, wrong = study.one_run(("total only", 5)), study.one_run(("total only, 1 % too large", 5))
    assert (right["code"], wrong["code"]) == (0, 1), right
    rates = study.rates([right, wrong])
    assert rates["total only"]["accepted"] == rates["total only, 1 % too large"]["rejected"] == 1
