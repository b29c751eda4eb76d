"""What an estimator declares of its spread, and a budget that is counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import pytest
import torch
from user_estimators import checked

from hesstheory import (
    Gaussian,
    LayerwiseTrace,
    Problem,
    Rademacher,
    SparseSigns,
    Sphere,
    check_estimator,
    hessian,
)
from hesstheory.conformance.checks import CHECKS
from hesstheory.conformance.laws import declared_laws
from hesstheory.conformance.problems import references
from hesstheory.conformance.registry import budget
from hesstheory.conformance.session import MARGIN_FACTOR
from hesstheory.conformance.subjects.right import RIGHT as RIGHT_IN_PLAIN_TORCH
from hesstheory.estimators.probes import Probe
from hesstheory.estimators.protocol import law_of_probe
from hesstheory.evidence.budget import PROFILES, SUITE_ALPHA

CHECK = "check_variance_of_declared_probes"


def _status(estimator, **options):
    (*_, result) = check_estimator(estimator, checks=[CHECK], **options)
    return result.status


def test_a_new_estimator_in_one_file_passes_without_any_list(mine):
    code, output = checked(f"{mine}:Declared", "--check", "variance_of_declared_probes")
    assert (code, "the chosen checks found nothing" in output) == (0, True), output


def test_a_law_that_is_not_its_own_is_found(mine):
    code, output = checked(f"{mine}:DeclaredWrongly", "--check", "variance_of_declared_probes")
    assert (code, "variance over that of its variance_law" in output) == (1, True), output


_HELD: WeakKeyDictionary[Problem, torch.Tensor] = WeakKeyDictionary()


@dataclass(frozen=True)
class Dense:
    """A right estimator with the Hessian at hand, for thousands of runs.

    `separated` gives every block a probe that is zero elsewhere.
    """

    probe: Probe
    separated: bool = False

    def __call__(self, problem, *, num_probes, generator):
        if problem not in _HELD:
            _HELD[problem] = hessian(problem).to_dense()
        H = _HELD[problem]
        Z = self.probe.sample(problem.num_params, num_probes, generator).to(H)
        if self.separated:
            forms = {b: Z[i] * (H[i][:, i] @ Z[i]) for b, i in problem.index.items()}
        else:
            entries = Z * (H @ Z)
            forms = {b: entries[i] for b, i in problem.index.items()}
        return {block: float(form.sum(0).mean()) for block, form in forms.items()}


@dataclass(frozen=True)
class Declaring(Dense):
    """The same, with the law of its probes."""

    @property
    def variance_law(self):
        law = law_of_probe(self.probe)
        return (lambda own, diagonal, cross: law(own, diagonal, 0.0)) if self.separated else law


RIGHT = [
    Declaring(Gaussian()),
    Declaring(SparseSigns(0.5)),
    Declaring(Rademacher(), separated=True),
]


@pytest.mark.parametrize("estimator", RIGHT, ids=repr)
def test_right_estimators_have_the_variance_that_they_declare(estimator):
    assert _status(estimator) == "passed"


@pytest.mark.parametrize(
    ("estimator", "probe", "status"),
    [
        (Dense(Sphere()), Sphere(), "passed"),
        (Dense(Rademacher(), separated=True), Rademacher(), "passed"),
        (Dense(Gaussian()), Rademacher(), "failed"),
    ],
    ids=repr,
)
def test_a_distribution_may_be_declared_in_place_of_a_law(estimator, probe, status):
    assert _status(estimator, probe=probe) == status


def test_a_law_that_does_not_exist_is_not_asked():
    assert declared_laws(LayerwiseTrace(probe=Sphere()), None) == {}
    assert declared_laws(RIGHT_IN_PLAIN_TORCH["sphere"], None) == {}
    assert list(declared_laws(RIGHT_IN_PLAIN_TORCH["normals"], None)) == ["its variance_law"]


def test_an_attribute_probe_declares_where_there_is_no_law():
    """`Dense` has one; a law of None says that there is no law."""

    class WithoutLaw(Dense):
        variance_law = None

    class WrongProbe(Dense):
        def __call__(self, problem, *, num_probes, generator):
            signs = Dense(Rademacher())
            return signs(problem, num_probes=num_probes, generator=generator)

    assert _status(Dense(Gaussian())) == "passed"
    assert _status(WrongProbe(Gaussian())) == "failed"
    assert _status(WithoutLaw(Gaussian())) == "skipped"


@dataclass(frozen=True)
class _Exact:
    """Declares exact answers; `off` times too large."""

    off: float = 1.0
    is_exact = True

    def __call__(self, problem: Problem, *, num_probes: int, generator: torch.Generator):
        diagonal = self.off * hessian(problem).to_dense().diagonal()
        return {block: float(diagonal[index].sum()) for block, index in problem.index.items()}


def test_exactness_that_is_declared_is_checked():
    assert _status(_Exact()) == "passed"
    assert _status(_Exact(1 + 1e-8)) == "failed"
    assert _status(replace(_Exact(), off=1 + 1e-12)) == "passed"


# --- the level ------------------------------------------------------------------------------------


def test_the_level_is_shared_by_the_tests_that_are_registered():
    assert budget().num_tests == sum(check.num_tests for check in CHECKS.values()) > 0
    assert budget().num_tests * budget().alpha <= SUITE_ALPHA * (1 + 1e-12)
    assert CHECKS["check_unbiased"].num_tests == sum(
        len(references()[name].quantities) for name in ("flat", "coupled", "smooth_mlp", "skewed")
    )


def test_every_profile_has_its_margin():
    assert tuple(MARGIN_FACTOR) == PROFILES
    assert sorted(MARGIN_FACTOR.values(), reverse=True) == list(MARGIN_FACTOR.values())
