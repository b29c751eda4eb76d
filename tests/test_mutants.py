"""Wrong estimators for authors of claims: each is wrong by its sin, and by nothing else."""

from __future__ import annotations

import pytest
import torch

from hesstheory import (
    BlockSeparatedTrace,
    Gaussian,
    LayerwiseTrace,
    Rademacher,
    ggn,
    hessian,
    mutants,
)
from hesstheory.conformance.contract import accepts
from hesstheory.conformance.problems import references
from hesstheory.estimators.enumerations import hadamard_columns
from hesstheory.mutants import WrongSeparated, WrongTrace

PROBLEM = references()["smooth_mlp"].problem
# With all Hadamard columns the mean is the trace: what is off is the sin.
COLUMNS = hadamard_columns(PROBLEM.num_params)


def _own(base):
    """Subclasses of this module: claims have more."""
    return [cls for cls in base.__subclasses__() if cls.__module__ == "hesstheory.mutants"]


WRONG_TRACES = _own(WrongTrace)
WRONG_SEPARATED = _own(WrongSeparated)
# Their sin is in the draws.
DRAWN_WRONGLY = {mutants.ReusedProbe, mutants.UnscaledProbes}
# Their sin is in the bill.
BILLED_WRONGLY = {mutants.SweepsForProducts}


def _by_columns(estimator):
    return estimator(PROBLEM, probes=COLUMNS)


def test_the_mutants_were_found():
    assert len(WRONG_TRACES) == 10
    assert len(WRONG_SEPARATED) == 4


@pytest.mark.parametrize("mutant", [*WRONG_TRACES, *WRONG_SEPARATED])
def test_a_mutant_says_its_sin_and_is_asked_like_any_estimator(mutant):
    assert mutant.__doc__ not in (None, WrongTrace.__doc__, WrongSeparated.__doc__)
    assert accepts(mutant(), "num_probes", "generator", "probes")
    drawn = mutant()(PROBLEM, torch.Generator().manual_seed(0), num_probes=3)
    assert drawn.samples.shape == (3, 2)


@pytest.mark.parametrize("mutant", [*WRONG_TRACES, *WRONG_SEPARATED])
def test_a_mutant_is_wrong(mutant):
    right = LayerwiseTrace if issubclass(mutant, WrongTrace) else BlockSeparatedTrace
    found = _by_columns(mutant())
    expected = _by_columns(right())
    as_given = found.samples.equals(expected.samples)
    assert as_given == (mutant in DRAWN_WRONGLY | BILLED_WRONGLY)
    assert (found.num_matvecs != expected.num_matvecs) == (mutant in BILLED_WRONGLY)


@pytest.mark.parametrize("mutant", [mutants.SeparatedInNameOnly, mutants.LeaksIntoNeighbour])
def test_separated_mutants_are_wrong_with_probes_of_their_own(mutant):
    """They draw what the right estimator draws, and spoil that."""
    states = (torch.Generator().manual_seed(5) for _ in range(2))
    found, right = (
        cls(4)(PROBLEM, g) for cls, g in zip((mutant, WrongSeparated), states, strict=True)
    )
    assert right.samples.equals(
        BlockSeparatedTrace(4)(PROBLEM, torch.Generator().manual_seed(5)).samples
    )
    assert not found.samples.equals(right.samples)


@pytest.mark.parametrize("base", [WrongTrace, WrongSeparated])
def test_the_steps_that_nobody_spoilt_are_right(base):
    right = LayerwiseTrace if base is WrongTrace else BlockSeparatedTrace
    assert _by_columns(base()).samples.equals(_by_columns(right()).samples)


def test_each_is_wrong_by_its_sin():
    traces = {b: float(x) for b, x in hessian(PROBLEM).trace_by_block().items()}
    of_ggn = {b: float(x) for b, x in ggn(PROBLEM).trace_by_block().items()}
    last = hessian(PROBLEM.with_batches(PROBLEM.batches[-1:])).trace_by_block()
    expected = {
        mutants.GaussNewtonInstead: of_ggn,
        mutants.LastBatchOnly: dict(last),
        mutants.OnePercentHigh: {block: 1.01 * trace for block, trace in traces.items()},
        mutants.ShiftedBlocks: dict(zip(traces, reversed(traces.values()), strict=True)),
    }
    for mutant, wrong in expected.items():
        assert dict(_by_columns(mutant())) == pytest.approx(wrong), mutant


def test_one_probe_is_reused_and_uniform_draws_are_small(generator):
    reused = mutants.ReusedProbe()(PROBLEM, generator, num_probes=4)
    assert len(reused.samples.drop_duplicates()) == 1
    with pytest.raises(TypeError, match="pass a torch"):
        mutants.ReusedProbe()(PROBLEM)
    unscaled = mutants.UnscaledProbes()(PROBLEM, torch.Generator().manual_seed(1), num_probes=4000)
    shares = unscaled.value / hessian(PROBLEM).trace_by_block()
    # E z² = 1/3; the standard error of 4000 probes is 2 % of these traces at most.
    assert dict(shares) == pytest.approx(dict.fromkeys(shares.index, 1 / 3), abs=0.1)


def test_distributions_are_changed_where_they_are_declared(generator):
    assert isinstance(mutants.normals_for_signs(Rademacher()), Gaussian)
    assert isinstance(mutants.signs_for_normals(Gaussian()), Rademacher)
    assert mutants.normals_for_signs(Gaussian()) == Gaussian()
    shared = mutants.probe_shared_by_entries(Rademacher())
    assert shared.kurtosis(5) == Rademacher().kurtosis(5)
    Z = shared.sample(5, 20, generator)
    assert torch.equal(Z[0], Z[1])
    assert not torch.equal(Z[1], Z[2])
    wide = mutants.variance_just_outside_margin(Rademacher()).sample(5, 20, generator)
    assert wide.square().mean() == pytest.approx(1.04)


def test_mutants_of_claim_packages_are_named_here():
    from hesstheory.claims.registry import catalogue

    named = {name: of for claim in catalogue().values() for name, of in claim.mutants.items()}
    assert mutants.doubled_cross_blocks is named["doubled_cross_blocks"]
    with pytest.raises(AttributeError, match="no attribute 'nobody'"):
        mutants.nobody  # noqa: B018
