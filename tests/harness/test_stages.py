"""Pieces of the stages: which samples, which law, which tolerance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hesstheory import dual_gram, zoo
from hesstheory.evidence.budget import SUITE_ALPHA
from hesstheory.evidence.sequential import Tail
from hesstheory.harness.stages import checks, logit_probes, products, rows, variance
from hesstheory.harness.subject import Settings, built
from hesstheory.run.ranks import Ranks


@pytest.mark.parametrize("samples", [2, 3, 7, 28, 1000])
def test_some_samples_are_evenly_spaced(samples):
    found = rows.spaced(1000, samples)
    steps = {b - a for a, b in itertools.pairwise(found)}
    assert (found[0], found[-1], len(found)) == (0, 999, samples)
    assert max(steps) - min(steps) <= 1
    assert rows.spaced(3, samples) == [0, 1, 2][:: 2 if samples == 2 else 1]


@pytest.mark.parametrize("network", ["relu_mlp", "cnn"])
def test_the_law_of_logit_probes_from_sample_traces_covers_the_true_one(network, generator):
    """Variance and largest eigenvalue of the form of one probe, beside bounds by traces."""
    problem = zoo.problem(network, generator, num_samples=6)
    gram, columns = dual_gram(problem), problem.outputs(problem.batches[0]).shape[1] - 1
    forms = rows.logit_forms(gram)
    traces = gram.sample_traces.mT
    found = logit_probes.tail_of_sample_traces(traces, columns)
    true = Tail.sign_form(
        forms.square().sum((1, 2, 3)).sqrt(),
        [float(torch.linalg.eigvalsh(M).abs().max()) for M in forms],
    )
    assert (found.variance >= true.variance).all()
    assert (found.scale >= true.scale).all()


def test_levels_are_what_the_checks_pay():
    """Means are tested at the suite's level; the bounds of variances rest on some runs."""
    assert checks.ALPHA == SUITE_ALPHA
    layers_of_resnet18 = 62
    runs_beyond = 1_000_000 * checks.VARIANCE_ALPHA / layers_of_resnet18 / 2
    assert runs_beyond >= 8
    assert pytest.approx(1 - checks.MISSED) == checks.POWER


def test_bounds_of_variances_hold_at_their_level():
    """A share of the runs lies beyond each bound, and power is what it says."""
    K, L = 4, 3
    low, high, detectable = variance.SquareLaw(K, L).variance_ratios()
    draws = torch.randn(400_000, K, generator=torch.Generator().manual_seed(7))
    ratios = (draws.square() / math.sqrt(2)).var(1)
    share = checks.VARIANCE_ALPHA / L / 2
    for beyond in ((ratios < low), (ratios > high)):
        assert float(beyond.double().mean()) == pytest.approx(share, rel=0.5)
    missed = float((detectable * ratios < high).double().mean())
    assert missed == pytest.approx(checks.MISSED, rel=0.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model", ["vgg11", "resnet18"])
def test_rounding_leaves_products_far_more_symmetric_than_is_asked(model, dtype, tmp_path):
    """The tolerance is four times the largest rounding of full-scale runs: here, too, it is wide.

    A mistake of a thousandth is far outside (test_mistakes).
    """
    settings = Settings(model=model, batch=4, width=2, dtype=dtype)
    subject = built(settings, torch.device("cpu"), Ranks(), tmp_path, print)
    (check, *_), bound = _symmetry(subject), products.asymmetry_of_rounding(subject.problem)
    assert check.bound == bound
    assert 0 < check.discrepancy < bound / 4


def _symmetry(subject):
    kinks = {"kinks": {"found": {"tolerance": 1.0, "flipped": 0}}}
    return products.products(subject, kinks).checks
