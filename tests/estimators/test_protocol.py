"""The library's estimators keep the contract that it asks of others."""

from __future__ import annotations

import inspect

import pytest
import torch
from builders import problem_of, stream

from hesstheory import (
    BlockSeparatedTrace,
    ControlVariateTrace,
    Gaussian,
    HadamardColumns,
    HutchPP,
    LayerwiseTrace,
    LogitProbeTrace,
    SparseSigns,
    Sphere,
    XTrace,
    hessian,
    theory,
)
from hesstheory.estimators.enumerations import strength_four_signs
from hesstheory.estimators.protocol import (
    Estimator,
    claims_exactness,
    law_of_probe,
    variance_law_of,
)

OURS = [
    LayerwiseTrace,
    BlockSeparatedTrace,
    HutchPP,
    XTrace,
    LogitProbeTrace,
    ControlVariateTrace,
]
TAKE_PROBES = [LayerwiseTrace, BlockSeparatedTrace, ControlVariateTrace]
WITHOUT_A_LAW = [HutchPP, XTrace, LogitProbeTrace, ControlVariateTrace]
each = pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)


@each
def test_the_signature_is_that_of_the_protocol(kind):
    parameters = list(inspect.signature(kind().__call__).parameters.values())
    assert isinstance(kind(), Estimator)
    assert [p.name for p in parameters[:3]] == ["problem", "generator", "num_probes"]
    assert [p.default for p in parameters[1:]] == [None] * (len(parameters) - 1)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])
    assert ("probes" in [p.name for p in parameters]) is (kind in TAKE_PROBES)


@each
def test_a_call_may_choose_the_number_of_probes(kind):
    problem = problem_of("tiny_relu")
    configured = kind(num_probes=4)(problem, stream())
    asked = kind()(problem, stream(), num_probes=4)
    assert asked.samples.equals(configured.samples)
    assert asked.num_matvecs == configured.num_matvecs
    by_keyword = kind(num_probes=4)(problem, generator=stream(), num_probes=None)
    assert by_keyword.samples.equals(configured.samples)


@each
@pytest.mark.parametrize("bad", [0, 2.5, True])
def test_an_impossible_number_is_refused(kind, bad, unchecked):
    with pytest.raises(ValueError, match=r"num_probes is .*: pass a whole number of at least 1"):
        kind()(problem_of("tiny_relu"), stream(), num_probes=bad)


@pytest.mark.parametrize("kind", TAKE_PROBES, ids=lambda kind: kind.__name__)
def test_given_probes_are_as_many_as_asked_for(kind):
    problem = problem_of("tiny_relu")
    Z = torch.ones(problem.num_params, 3)
    assert len(kind()(problem, probes=Z, num_probes=3).samples) == 3
    with pytest.raises(ValueError, match="num_probes is 4 and probes has 3 columns: pass one of"):
        kind()(problem, probes=Z, num_probes=4)


@pytest.mark.parametrize("kind", [LayerwiseTrace, BlockSeparatedTrace])
def test_the_claimed_law_is_the_variance_over_all_signs(kind):
    """Signs of strength four have the variance of independent ones, exactly."""
    problem = problem_of("tiny_relu")
    law = variance_law_of(kind())
    norms2 = hessian(problem).block_norms() ** 2
    H = hessian(problem).to_dense()
    samples = kind()(problem, probes=strength_four_signs(problem.num_params)).samples
    for block, index in problem.index.items():
        own = float(norms2.loc[block, block])
        diagonal = float(H.diagonal()[index].square().sum())
        expected = law(own, diagonal, float(norms2.loc[block].sum()) - own)
        assert samples[block].var(ddof=0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("probe", [Gaussian(), SparseSigns(0.25)], ids=repr)
def test_the_law_holds_the_kurtosis_of_the_distribution(probe):
    kurtosis = probe.kurtosis(1)
    expected = theory.probe_variance_from_norms(5.0, 2.0, 1.0, kurtosis)
    assert variance_law_of(LayerwiseTrace(probe=probe))(5.0, 2.0, 1.0) == expected
    assert variance_law_of(BlockSeparatedTrace(probe=probe))(5.0, 2.0, 1.0) == expected - 1.0


@pytest.mark.parametrize("probe", [Sphere(), HadamardColumns()], ids=repr)
def test_dependent_probes_have_no_such_law(probe):
    assert law_of_probe(probe) is None
    assert variance_law_of(LayerwiseTrace(probe=probe)) is None
    assert variance_law_of(BlockSeparatedTrace(probe=probe)) is None


@pytest.mark.parametrize("kind", WITHOUT_A_LAW, ids=lambda kind: kind.__name__)
def test_an_estimator_that_does_more_claims_no_law(kind):
    assert variance_law_of(kind()) is None


@each
def test_an_estimator_that_draws_is_not_exact(kind):
    assert not claims_exactness(kind())
    assert not claims_exactness(lambda problem: None)
