"""The sequential test: its looks, its level, its power, and what it refuses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from hesstheory.evidence.checks import Kind, Status
from hesstheory.evidence.sequential import SequentialTest, Tail, statistical

INF, NAN = math.inf, math.nan
EPS = float(np.finfo(np.float64).eps)
NUMPY_WARNS = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


DESIGNS = [
    SequentialTest(margin, alpha, tail, first)
    for margin, tail in (
        (0.1, Tail(1.0, 0.0)),
        (0.25, Tail.bounded(0.25, 0.5)),
        (np.array([0.3, 1.0]), Tail(np.array([1.0, 2.0]), np.array([0.5, 0.0]))),
        (10.0, Tail(1.0, 1.0)),
    )
    for alpha in (0.05, 1e-9)
    for first in (8, 1024)
]


def name_of(design):
    return f"margin {design.margin}, α {design.alpha:g}, first {design.first}"


@pytest.mark.parametrize("design", DESIGNS, ids=name_of)
class TestSequentialDesign:
    def test_looks_double_from_the_first(self, design):
        assert design.looks == tuple(design.first * 2**k for k in range(len(design.looks)))

    def test_last_look_is_the_first_that_is_wide_enough_to_decide(self, design):
        """Half the margin on each side, for α divided by the number of looks; one look fewer would
        not do."""
        *early, last = design.looks
        paid = design.tail.half_width(last, design.alpha / len(design.looks))
        assert np.array_equal(design.half_width(last), paid)
        assert (2 * paid <= design.margin).all()
        fewer = design.tail.half_width(early[-1], design.alpha / len(early)) if early else INF
        assert not (2 * np.asarray(fewer) <= design.margin).all()

    def test_decisions(self, design):
        """FAILED outside the interval, PASSED inside the margin with room for it, else on; the last
        look decides."""
        for n in design.looks:
            width = design.half_width(n)
            room = np.max(design.margin - width)
            assert design.decide(width * (1 + 1e-12), n) is Status.FAILED
            assert design.decide(0 * width, n) is (
                Status.PASSED if (np.asarray(design.margin) >= width).all() else None
            )
            between = design.decide(width * (1 - 1e-12), n)
            assert between is not Status.FAILED
            assert (between is Status.PASSED) == bool((width * (2 - 1e-12) <= design.margin).all())
            assert room >= 0 or between is None
        assert between is Status.PASSED

    @pytest.mark.parametrize("error", [NAN, INF])
    def test_an_error_that_is_not_finite_fails(self, design, error):
        for n in design.looks:
            assert design.decide(np.full(np.shape(design.margin), error), n) is Status.FAILED

    def test_detectable_is_what_the_looks_leave_undetected(self, design):
        """At d = detectable, Σ over looks of the one-sided bound on P(|mean − target| is accepted)
        is 1 − power."""
        d = np.asarray(design.detectable)
        width = {n: design.half_width(n) for n in design.looks}
        accepted = {n: np.minimum(design.margin - width[n], width[n]) for n in design.looks}
        missed = sum(
            np.exp(-n * (d - e) ** 2 / (2 * (design.tail.variance + design.tail.scale * (d - e))))
            for n, e in accepted.items()
            if np.all(e >= 0)
        )
        assert (d < 2 * np.asarray(design.margin)).all()
        assert (d > accepted[design.looks[-1]]).all()
        assert (missed <= (1 - design.power) * (1 + 1e-9)).all()
        assert np.max(missed) >= (1 - design.power) / len(design.looks) * (1 - 1e-9)


UNEQUAL = SequentialTest(np.array([0.3, 1.0]), 0.05, Tail(np.array([1.0, 2.0]), 0.0), 8)


def largest_accepted(design, entry, n):
    """The largest error of one entry, the others right, at which a look agrees, by trial; None
    where it cannot."""
    errors = np.zeros((10_001, 2))
    errors[:, entry] = np.linspace(0, design.margin[entry], len(errors))
    agrees = [error[entry] for error in errors if design.decide(error, n) is Status.PASSED]
    return max(agrees, default=None)


@pytest.mark.parametrize("entry", [0, 1])
def test_detectable_is_that_of_the_looks_that_can_agree(entry):
    """The narrow margin of one entry keeps early looks from agreeing, and the other entry gains
    from it."""
    reach = {n: largest_accepted(UNEQUAL, entry, n) for n in UNEQUAL.looks}
    reach = {n: error for n, error in reach.items() if error is not None}
    assert 1 < len(reach) < len(UNEQUAL.looks)
    share = 2 * (1 - UNEQUAL.power) / len(reach)
    expected = max(
        error + np.broadcast_to(UNEQUAL.tail.half_width(n, share), 2)[entry]
        for n, error in reach.items()
    )
    assert UNEQUAL.detectable[entry] == pytest.approx(expected, abs=1e-4)
    assert UNEQUAL.detectable[entry] < 1.2 * UNEQUAL.margin[entry]


@pytest.mark.parametrize("entry", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_one_detectable_entry_among_true_ones_is_found(entry, sign, generator):
    """Missed in at most one run of 1000: over 18 of 4000 has probability 1e-7."""
    deviation = torch.tensor(UNEQUAL.tail.variance) ** 0.5
    target = np.where(np.arange(2) == entry, sign * UNEQUAL.detectable, 0.0)
    runs = [
        UNEQUAL.run(normal_draws(torch.zeros(2), deviation), target, generator)[0]
        for _ in range(4000)
    ]
    assert runs.count(Status.PASSED) <= 18


def test_more_power_detects_less():
    designs = [
        SequentialTest(0.1, 1e-6, Tail(1.0, 0.2), 64, power) for power in (0.9, 0.999, 1 - 1e-9)
    ]
    assert sorted(designs, key=lambda design: design.detectable) == designs


@pytest.mark.parametrize("margin", [0.0, 1e-9, -1.0, NAN, np.array([1.0, 0.0])], ids=str)
def test_a_margin_out_of_reach_says_so(margin):
    with pytest.raises(
        ValueError, match=r"margin .* needs over .* draws: widen the margin or lower the variance"
    ):
        _ = SequentialTest(margin, 1e-6, Tail(1.0, 0.0), max_draws=10**6).looks


# --- draws and their verdict ---------------------------------------------------------------------


def normal_draws(mean, deviation=1.0):
    def draw(n, generator):
        return mean + deviation * torch.randn(n, *np.shape(mean), generator=generator)

    return draw


def bernoulli_draws(p):
    return lambda n, generator: (torch.rand(n, generator=generator) < p).double()


SUBJECTS = {
    "normal": (normal_draws(3.0), 3.0, Tail(1.0, 0.0), 0.2),
    "Bernoulli": (bernoulli_draws(0.2), 0.2, Tail.bounded(0.16, 0.8), 0.05),
    "three normals": (
        normal_draws(torch.tensor([1.0, -2.0, 0.0])),
        [1.0, -2.0, 0.0],
        Tail(1.0, 0.0),
        0.2,
    ),
    "margins of their own": (normal_draws(torch.zeros(2)), [0.0, 0.0], Tail(1.0, 0.0), [0.2, 0.4]),
    "constant": (lambda n, _: np.full(n, 2.0), 2.0, Tail(0.01, 0.0), 0.05),
}


@pytest.fixture(params=SUBJECTS.values(), ids=SUBJECTS.keys())
def subject(request, generator):
    """statistical() of a subject with a target off by so many detectable discrepancies in one
    entry."""
    draw, mean, tail, margin = request.param

    def decided(entry=0, off=0.0, margins=0.0):
        test = SequentialTest(np.asarray(margin), 1e-9 / np.size(mean), tail)
        shift = off * np.broadcast_to(test.detectable, np.shape(mean))
        shift = shift + margins * np.broadcast_to(margin, np.shape(mean))
        target = np.asarray(mean) + np.where(
            np.arange(np.size(mean)).reshape(np.shape(mean)) == entry, shift, 0
        )
        return statistical(
            "mean", draw, target, margin=margin, tail=tail, alpha=1e-9, generator=generator
        )

    return decided


def test_a_true_statement_passes_and_says_how_well_it_was_tested(subject):
    check = subject()
    assert (check.status, check.kind, check.alpha, check.power) == (
        Status.PASSED,
        Kind.STATISTICAL,
        1e-9,
        0.999,
    )
    assert check.discrepancy <= check.bound
    assert 0 < check.detectable < 2 * check.bound
    assert f"from {check.num_draws} draws" in check.detail


@pytest.mark.parametrize("off", [-1.3, 1.3, 4.0])
def test_a_false_statement_outside_the_margin_fails(subject, off):
    """Where 1.3 times the detectable discrepancy is missed with probability far below 1e-6."""
    check = subject(off=off)
    assert check.status is Status.FAILED
    assert check.discrepancy > check.bound - check.detectable


@pytest.mark.parametrize("margins", [-1.0, 1.0])
def test_a_false_statement_at_the_margin_does_not_pass(subject, margins):
    """It passes with probability at most α = 1e-9."""
    assert subject(margins=margins).status is Status.FAILED


def test_the_wrong_entry_is_the_one_reported(generator):
    check = statistical(
        "entries", normal_draws(torch.tensor([0.0, 0.0, 5.0])), [0.0, 0.0, 6.0],
        margin=[0.2, 0.2, 0.25], tail=Tail(1.0, 0.0), alpha=1e-9, generator=generator,
    )  # fmt: skip
    assert (check.status, check.bound) == (Status.FAILED, 0.25)
    assert check.detail.endswith("expected 6")
    assert abs(check.discrepancy - 1) < 0.3


@pytest.mark.parametrize("size", [1, 3, 100])
def test_targets_at_once_share_the_level(size, generator):
    tail = Tail(0.01, 0.0)
    check = statistical(
        "shared", lambda n, _: np.zeros((n, size)), np.zeros(size),
        margin=0.1, tail=tail, alpha=1e-9, generator=generator,
    )  # fmt: skip
    assert check.detectable == SequentialTest(0.1, 1e-9 / size, tail).detectable
    assert check.alpha == 1e-9


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_draws_that_are_not_finite_fail(value, generator):
    for where in (0, 500, 1023):
        check = statistical(
            "finite", lambda n, _, at=where: np.where(np.arange(n) == at, value, 0.0), 0.0,
            margin=0.1, tail=Tail(1.0, 0.0), alpha=1e-9, generator=generator,
        )  # fmt: skip
        assert (check.status, check.num_draws) == (Status.FAILED, 1024)


def test_the_mean_is_over_all_draws_of_all_looks(generator):
    """Draws 0, 1, 2, …: a look that forgot the earlier ones, or counted them twice, has another
    mean."""
    drawn = itertools.count()
    design = SequentialTest(1e6, 1e-9, Tail(1e12, 0.0), 4)
    asked = []

    def draw(n, _):
        asked.append(n)
        return np.array([next(drawn) for _ in range(n)], dtype=float)

    target = 0.5 * (design.looks[1] - 1)
    _, mean, n, _ = design.run(draw, target, generator)
    assert tuple(itertools.accumulate(asked)) == design.looks[: len(asked)]
    assert sum(asked) == n == next(drawn)
    assert mean == (n - 1) / 2


@pytest.mark.parametrize(
    ("shape", "target"),
    [((3,), 0.0), ((), [0.0, 0.0, 0.0]), ((1,), [0.0, 0.0])],
    ids=[
        "three means for one share of α",
        "one mean for three targets",
        "one mean for two targets",
    ],
)
def test_statistical_refuses_other_shapes(shape, target, generator):
    draw = normal_draws(torch.zeros(shape))
    with pytest.raises(ValueError, match="shape"):
        statistical(
            "shapes", draw, target, margin=0.2, tail=Tail(1.0, 0.0), alpha=1e-9, generator=generator
        )


@pytest.mark.parametrize("returned", [0, 1, 1023, 1025])
def test_statistical_refuses_another_number_of_draws(returned, generator):
    with pytest.raises(ValueError, match="draws"):
        statistical(
            "count", lambda n, _: np.zeros(returned), 0.0,
            margin=0.2, tail=Tail(1.0, 0.0), alpha=1e-9, generator=generator,
        )  # fmt: skip
