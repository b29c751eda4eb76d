"""Reference problems: certified by two routes, and with the traits that they are built for."""

from __future__ import annotations

import pytest
import torch

from hesstheory import LayerwiseTrace, Rademacher, Sphere, hessian, theory
from hesstheory.conformance.laws import declared_laws
from hesstheory.conformance.problems import (
    certificate,
    certified,
    certify,
    grid,
    references,
    second_route,
)
from hesstheory.conformance.problems.springs import spring_hessian

# Importing torch.func compiles something the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@pytest.mark.parametrize("name", references())
def test_certified_values_agree_with_two_routes(name):
    reference = references()[name]
    problem = reference.build().double()
    first, second = hessian(problem).to_dense(), second_route(problem)
    assert torch.allclose(
        first, second, rtol=0, atol=1e-14 * float(second.abs().max()) * problem.num_params**0.5
    )
    for H in (first, second):
        for block, values in certify(H, problem).items():
            stored = certified()[name][block]
            scale = max(1.0, sum(abs(t) for t in reference.traces.values()))
            assert values["trace"] == pytest.approx(stored["trace"], rel=1e-14, abs=1e-14 * scale)
            for norm in ("own", "diagonal", "cross"):
                assert values[norm] == pytest.approx(stored[norm], rel=1e-12, abs=1e-12)


def test_certified_values_are_those_of_the_problems_to_the_last_digit():
    """Problems that moved, or a network that the zoo changed, would show here."""
    assert certificate() == certified()


@pytest.mark.parametrize("probe", [Rademacher(), Sphere()], ids=str)
@pytest.mark.parametrize("name", references())
def test_the_variance_that_is_certified_is_measured(name, probe):
    reference = references()[name]
    problem = reference.build().double()
    q = LayerwiseTrace(4000, probe)(problem, torch.Generator().manual_seed(1)).samples
    laws = declared_laws(None, probe)
    for block in problem.index:
        predicted = laws["one product for all blocks"](reference, block)
        assert q[block].var() == pytest.approx(
            predicted, rel=0.35, abs=1e-20
        )  # 4000 draws: 2.2 % for normal ones


def test_the_law_of_the_sphere_from_norms_is_the_law_of_the_matrix():
    reference = references()["coupled"]
    H = hessian(reference.problem).to_dense()
    upper, lower = reference.problem.index.values()
    law = declared_laws(None, Sphere())["one product for all blocks"]
    expected = theory.sphere_variance(H[upper][:, upper], [H[upper][:, lower]], len(H))
    assert law(reference, "upper") == pytest.approx(float(expected), rel=1e-12)


def test_what_the_problems_are_meant_to_have():
    traces = {name: reference.traces for name, reference in references().items()}
    assert references()["ragged"].problem.batch_sizes == (32, 1)
    assert traces["negative"]["hill"] < 0 < traces["negative"]["valley"]
    assert sum(traces["negative"].values()) < 0
    assert list(map(len, references()["unequal"].problem.index.values())) == [1, 3, 40, 160]
    assert "first+second" in traces["tied"]
    assert traces["unreached"]["idle"] == traces["unreached"]["linear"] == 0
    assert references()["float32"].problem.dtype == torch.float32
    assert list(traces["frozen"]) == ["layer2"]
    layouts = references()["layouts"].problem
    assert {p.ndim for p in layouts.params.values()} == {0, 1, 2, 3}
    assert not all(p.is_contiguous() for p in layouts.params.values())
    assert any(len(index) <= int(index.max() - index.min()) for index in layouts.index.values()), (
        "interleaved"
    )


def test_the_grid_is_the_same_everywhere():
    assert (8 * grid([6], 7)).tolist() == [8 * x for x in grid([6], 7).tolist()]
    assert set((8 * grid([4000], 3)).tolist()) == set(range(-8, 9))
    assert not torch.equal(grid([16], 1), grid([16], 2))


def test_the_hessian_of_springs_is_asked_of_springs_alone():
    with pytest.raises(TypeError, match="pass a problem of Springs"):
        spring_hessian(references()["skewed"].problem)
