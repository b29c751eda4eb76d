"""What an estimator is given is validated once, with a message that holds the cure."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from builders import problem_of, stream

from hesstheory import (
    BlockSeparatedTrace,
    ControlVariateTrace,
    HutchPP,
    LayerwiseTrace,
    LogitProbeTrace,
    Problem,
    Rademacher,
    SparseSigns,
    Uniform,
    XTrace,
    zoo,
)
from hesstheory.curvature import limits
from hesstheory.estimators import inputs
from hesstheory.estimators.enumerations import all_signs, strength_four_signs, three_point_grid

ESTIMATORS = [LayerwiseTrace, BlockSeparatedTrace]


each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.__name__)


REFUSED = {
    "17 signs": (lambda: all_signs(17), "use strength_four_signs"),
    "1024 rows": (lambda: strength_four_signs(1024), "below 1024 parameters"),
    "11 levels": (lambda: three_point_grid(11, 3.0), "at most 10 parameters"),
    "kurtosis below 1": (lambda: three_point_grid(3, 0.9), "fourth moment below 1"),
    "density 0": (lambda: SparseSigns(0.0), r"in \(0, 1\]"),
    "density over 1": (lambda: SparseSigns(1.5), r"in \(0, 1\]"),
    "no probe": (lambda: LayerwiseTrace(0), "at least 1"),
    "negative": (lambda: BlockSeparatedTrace(-3), "at least 1"),
    "half a probe": (lambda: LayerwiseTrace(2.5), "pass a whole number of at least 1"),
    "True": (lambda: LayerwiseTrace(True), "num_probes is True: pass a whole number of at least 1"),
    "False": (lambda: BlockSeparatedTrace(False), "pass a whole number of at least 1"),
    "numpy's True": (lambda: BlockSeparatedTrace(np.True_), "pass a whole number of at least 1"),
    "a name": (lambda: LayerwiseTrace("10"), "pass a whole number of at least 1"),
}


@pytest.mark.parametrize(("ask", "cure"), REFUSED.values(), ids=REFUSED)
def test_impossible_requests_are_refused(ask, cure, unchecked):
    with pytest.raises(ValueError, match=cure):
        ask()


GIVEN = {
    "rows and columns swapped": (
        lambda P: torch.ones(3, P),
        ValueError,
        "pass a P×K tensor, P = 12 in the order",
    ),
    "one vector": (lambda P: torch.ones(P), ValueError, "pass a P×K tensor"),
    "no columns": (lambda P: torch.ones(P, 0), ValueError, "pass a P×K tensor"),
    "NaN": (lambda P: torch.full((P, 2), torch.nan), ValueError, "every entry must be finite"),
    "infinity": (lambda P: torch.full((P, 2), torch.inf), ValueError, "every entry must be finite"),
    "infinity in the dtype of the model": (
        lambda P: torch.full((P, 2), 1e300),
        ValueError,
        r"NaN or infinity as torch\.float32: every entry must be finite; draw them, Rademacher",
    ),
    "zeros": (
        lambda P: torch.zeros(P, 3),
        ValueError,
        r"is 0 throughout .*: draw them, Rademacher\(\)\.sample\(12, 3, generator\)",
    ),
    "no signs": (lambda P: torch.zeros(P, 2, dtype=torch.int8), ValueError, "is 0 throughout"),
    "zeros in the dtype of the model": (
        lambda P: torch.full((P, 1), 1e-300),
        ValueError,
        r"is 0 throughout as torch\.float32",
    ),
    "complex": (
        lambda P: torch.ones(P, 2, dtype=torch.complex128),
        TypeError,
        "torch.complex128: pass real numbers",
    ),
    "an array": (
        lambda P: np.ones((P, 2)),
        TypeError,
        r"is a ndarray: pass a tensor, torch\.as_tensor",
    ),
    "a list": (lambda P: [[1.0]] * P, TypeError, "is a list: pass a tensor"),
}


@each_estimator
@pytest.mark.parametrize(("probes", "error", "cure"), GIVEN.values(), ids=GIVEN)
def test_bad_probes_are_refused(probes, error, cure, estimator, unchecked):
    problem = problem_of("tiny_mlp")
    if "float32" in cure:
        model = copy.deepcopy(problem.model).float()
        batches = [(x.float(), y) for x, y in problem.batches]
        problem = Problem(model, problem.loss_fn, batches)
    with pytest.raises(error, match=cure):
        estimator()(problem, probes=probes(12))


@each_estimator
def test_a_column_of_zeros_is_a_legal_draw(estimator):
    """Sparse signs have them: the form is 0, and the mean counts it."""
    problem = problem_of("tiny_mlp")
    signs = Rademacher().sample(12, 1, stream())
    alone = estimator()(problem, probes=signs)
    both = estimator()(problem, probes=torch.cat([signs, torch.zeros_like(signs)], dim=1))
    assert both.samples.iloc[1].eq(0).all()
    assert both.value.equals(alone.value / 2)


ASKED = [
    LayerwiseTrace,
    BlockSeparatedTrace,
    HutchPP,
    LogitProbeTrace,
    ControlVariateTrace,
    lambda number=10: ControlVariateTrace(number, exact=False),
]


@pytest.mark.parametrize("estimator", ASKED)
def test_more_samples_than_memory_are_refused(estimator, generator):
    problem = zoo.problem("tiny_relu", generator)
    message = r"samples of 1,000,000,000,000 probes need [\d,]+,000 bytes .* [\d,]+ probes fit"
    with pytest.raises(MemoryError, match=message):
        estimator(10**12)(problem, generator)
    with pytest.raises(MemoryError, match=message):
        estimator()(problem, generator, num_probes=10**12)


@each_estimator
def test_samples_are_refused_from_the_byte_on_that_does_not_fit(estimator, generator, monkeypatch):
    problem = zoo.problem("tiny_relu", generator)
    table = estimator(7)(problem, generator).samples.to_numpy()
    monkeypatch.setattr(inputs, "free_memory", lambda device: 2 * table.nbytes)
    assert len(estimator(7)(problem, generator).samples) == 7
    monkeypatch.setattr(inputs, "free_memory", lambda device: 2 * table.nbytes - 1)
    with pytest.raises(MemoryError, match=rf"need {2 * table.nbytes} bytes.* 6 probes fit"):
        estimator(7)(problem, generator)
    # Given probes are held already: the number of the estimator plays no part.
    probes = Rademacher().sample(problem.num_params, 2, generator)
    assert len(estimator(10**12)(problem, probes=probes).samples) == 2


@each_estimator
@pytest.mark.parametrize(
    "generator", [None, 0, np.random.default_rng(0)], ids=["nothing", "a seed", "numpy"]
)
def test_a_missing_generator_is_refused(estimator, generator, unchecked):
    with pytest.raises(TypeError, match=r"pass a torch\.Generator.*no global randomness"):
        estimator()(problem_of("tiny_mlp"), generator)


def test_groups_of_probes_are_drawn_one_at_a_time(monkeypatch):
    problem = problem_of("tiny_mlp")
    monkeypatch.setattr(inputs, "_GROUP_ELEMENTS", 3 * problem.num_params)
    held = []

    class Counting(Rademacher):
        def sample(self, num_params, num_probes, generator):
            held.append(num_probes)
            return super().sample(num_params, num_probes, generator)

    groups = inputs.drawn_groups(Counting(), problem, stream(), 8)
    assert next(groups).shape == (12, 3)
    assert held == [3]
    estimate = LayerwiseTrace(8)(problem, stream())
    assert (len(estimate.samples), estimate.num_matvecs) == (8, 8)
    draw = stream()
    Z = torch.cat([Rademacher().sample(12, count, draw) for count in (3, 3, 2)], dim=1)
    assert estimate.samples.equals(LayerwiseTrace()(problem, probes=Z).samples)


@pytest.mark.parametrize("kind", [LayerwiseTrace, BlockSeparatedTrace, HutchPP, XTrace])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"probe": Rademacher}, r"probe is the class Rademacher: pass an instance, Rademacher\(\)"),
        ({"probe": "signs"}, "probe is a str: pass one with kurtosis and sample"),
        (
            {"matrix": "ggn"},
            "matrix is 'ggn': pass a function of a problem, hesstheory.hessian or hesstheory.ggn",
        ),
    ],
)
def test_a_probe_and_a_matrix_are_checked(kind, wrong, message, unchecked):
    with pytest.raises(TypeError, match=message):
        kind(**wrong)


@pytest.mark.parametrize("estimator", [HutchPP(2, 2), XTrace(3)])
def test_a_generator_is_asked_for(estimator, generator):
    with pytest.raises(TypeError, match=r"pass a torch\.Generator"):
        estimator(zoo.problem("tiny_relu", generator))


@pytest.mark.parametrize(
    ("estimator", "what"),
    [
        (HutchPP(4, 12), "12 of rank"),
        (XTrace(20), "20 of num_probes"),
        (LayerwiseTrace(200), "200 probes at a time"),
        (BlockSeparatedTrace(200, Uniform()), "200 probes at a time"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(estimator, what, generator, monkeypatch):
    problem = zoo.problem("tiny_relu", generator)
    monkeypatch.setattr(limits, "free_memory", lambda device: 200 * problem.num_params)
    with pytest.raises(
        MemoryError,
        match=rf"{what} need [0-9,]+ bytes with all copies and [0-9,]+ are free: \d+ fit",
    ):
        estimator(problem, generator)
