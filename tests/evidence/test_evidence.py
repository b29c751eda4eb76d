"""What may pass, what must fail, and the probabilities of error, each computed where it can be."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import sympy as sp
import torch
from scipy import stats

from hesstheory.evidence.budget import Budget
from hesstheory.evidence.checks import Check, Kind, Status, Verdict, empirical, holds, verdict
from hesstheory.evidence.exact import exact
from hesstheory.evidence.intervals import clopper_pearson
from hesstheory.evidence.sequential import SequentialTest, Tail, statistical
from hesstheory.evidence.symbolic import symbolic

INF, NAN = math.inf, math.nan
EPS = float(np.finfo(np.float64).eps)
NUMPY_WARNS = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

# --- the verdict of checks ------------------------------------------------------------------------------------------

PASSED, FAILED, OPEN, REPORTED = (
    Check(status.value, Kind.EXACT, status)
    for status in (Status.PASSED, Status.FAILED, Status.INCONCLUSIVE, Status.REPORTED)
)
LIMITED = FAILED.unless("the draws are normal")
VERDICTS = [
    ((), Verdict.INCONCLUSIVE),
    ((REPORTED,), Verdict.INCONCLUSIVE),
    ((OPEN,), Verdict.INCONCLUSIVE),
    ((PASSED, OPEN), Verdict.INCONCLUSIVE),
    ((REPORTED, OPEN), Verdict.INCONCLUSIVE),
    ((PASSED,), Verdict.HOLDS),
    ((PASSED, REPORTED), Verdict.HOLDS),
    ((PASSED.unless("anywhere"),), Verdict.HOLDS),
    ((FAILED,), Verdict.REFUTED),
    ((PASSED, FAILED), Verdict.REFUTED),
    ((FAILED, OPEN), Verdict.REFUTED),
    ((PASSED, LIMITED, FAILED, OPEN), Verdict.REFUTED),
    ((PASSED, LIMITED, OPEN), Verdict.INCONCLUSIVE),
    ((PASSED, LIMITED, OPEN.unless("anywhere")), Verdict.INCONCLUSIVE),
    ((LIMITED, OPEN), Verdict.INCONCLUSIVE),
    ((PASSED, LIMITED, FAILED), Verdict.REFUTED),
    ((LIMITED,), Verdict.REFUTED),
    ((LIMITED, REPORTED), Verdict.REFUTED),
    ((PASSED, LIMITED), Verdict.CONDITIONAL),
    ((PASSED, LIMITED, REPORTED), Verdict.CONDITIONAL),
]


@pytest.mark.parametrize(("checks", "expected"), VERDICTS, ids=str)
def test_verdict_of_checks_in_any_order(checks, expected):
    assert {verdict(order) for order in itertools.permutations(checks)} == {expected}


def test_checks_are_changed_by_copies():
    shown = PASSED.showing("power", [{"effect": 1.0}])
    assert (shown.table, shown.rows) == ("power", ({"effect": 1.0},))
    assert (PASSED.table, PASSED.rows, PASSED.condition) == (None, (), "")


# --- symbolic, exact, holds, empirical ------------------------------------------------------------------------------

x, y = sp.symbols("x y", real=True)
IDENTITIES = {
    "square": ((x + y) ** 2, x**2 + 2 * x * y + y**2),
    "trigonometric": (sp.sin(x) ** 2 + sp.cos(x) ** 2, 1),
    "rational": (1 / x - 1 / y, (y - x) / (x * y)),
    "numbers": (3, sp.Integer(3)),
    "binary fractions": (0.5 * x + 0.25, (2 * x + 1) / 4),
    "arrays": (np.array([[x + x, 0]], dtype=object), np.array([[2 * x, 0]], dtype=object)),
    "matrices": (sp.Matrix([[x, y], [y, x]]).det(), x**2 - y**2),
}
MISTAKES = {
    "sign": ((x - y) ** 2, x**2 + 2 * x * y + y**2),
    "last entry": (sp.Matrix([x, x, x]), sp.Matrix([x, x, y])),
    "only at positive x": (sp.sqrt(x**2), x),
    "nan against itself": (sp.nan, sp.nan),
    "infinity against itself": (sp.oo, sp.oo),
    "rounding is no identity": (0.1 + 0.2, 0.3),
    "a decimal is no tenth": (0.1 * x, x / 10),
    "last bit": ((1 + 2**-52) * x, x),
}


@pytest.mark.parametrize(("left", "right"), IDENTITIES.values(), ids=IDENTITIES.keys())
def test_symbolic_proves_identities(left, right):
    check = symbolic("identity", left, right)
    assert (check.status, check.kind, check.name) == (Status.PASSED, Kind.SYMBOLIC, "identity")


@pytest.mark.parametrize(("left", "right"), MISTAKES.values(), ids=MISTAKES.keys())
def test_symbolic_names_the_difference(left, right):
    check = symbolic("mistake", left, right)
    assert check.status is Status.FAILED
    assert check.detail.startswith("the sides differ by ")


DIFFERENCES = {
    "at a point": (x * y, x + y, "by 806399 at x = 841, y = 961"),
    "of floats, exactly": ((1 + 2**-30) * x, x, "by 841/1073741824 at x = 841"),
    "of many digits": (0.1 * x, x / 10, "by 4.66849e-15 at x = 841"),
    "with roots": (sp.sqrt(sp.Abs(x)), 1, "by 28 at x = 841"),
    "zero at the point": (sp.sqrt(x**2), x, "by -x + Abs(x)"),
}


@pytest.mark.parametrize(("left", "right", "shown"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_symbolic_shows_where_the_sides_differ(left, right, shown):
    assert symbolic("mistake", left, right).detail == f"the sides differ {shown}"


SHAPES = {"longer": ([x, x], [x]), "shorter": ([x], [x, x])}
SYMBOLIC_MISUSE = [
    *SHAPES.values(),
    pytest.param(sp.Matrix(1, 4, [x] * 4), sp.Matrix(2, 2, [x] * 4)),
    pytest.param([], []),
]


@pytest.mark.parametrize(("left", "right"), SYMBOLIC_MISUSE, ids=str)
def test_symbolic_refuses_other_shapes(left, right):
    with pytest.raises(ValueError):  # noqa: PT011 (of zip)
        symbolic("shapes", left, right)


RIGHT = np.array([1.0, -1000.0, 0.0])


@pytest.mark.parametrize("terms", [1, 3, 100])
@pytest.mark.parametrize(
    "magnitude", [None, 1.0, np.array([1.0, 10.0, 1e-3])], ids=["default", "number", "entries"]
)
@pytest.mark.parametrize("entry", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_exact_passes_up_to_its_bound_and_no_further(terms, magnitude, entry, sign):
    """The bound of an entry is terms · eps · magnitude, the largest |right| by default; the worst entry is reported."""
    scale = np.broadcast_to(1000.0 if magnitude is None else magnitude, RIGHT.shape)
    bound = terms * EPS * scale[entry]
    for excess, status in ((0.5, Status.PASSED), (1.0, Status.PASSED), (2.0, Status.FAILED)):
        right = np.where(
            np.arange(3) == entry, 0.0, RIGHT
        )  # where every multiple of the bound is a number
        left = np.where(np.arange(3) == entry, sign * excess * bound, right)
        if magnitude is None and entry == 1:
            right[0] = left[0] = 1000.0
        check = exact("rounding", left, right, magnitude=magnitude, terms=terms)
        assert (check.status, check.kind) == (status, Kind.EXACT)
        if status is Status.FAILED:
            assert (check.discrepancy, check.bound) == (excess * bound, bound)


TWOS = [
    2.0,
    2,
    np.float32(2),
    [2.0],
    torch.tensor(2.0),
    torch.full((2, 2), 2.0, requires_grad=True),
]


@pytest.mark.parametrize("left", TWOS, ids=repr)
def test_exact_takes_numbers_arrays_and_tensors(left):
    shape = tuple(left.shape) if isinstance(left, torch.Tensor) else np.shape(left)
    assert exact("same", left, np.full(shape, 2.0)).status is Status.PASSED
    assert exact("other", left, np.full(shape, 2 + 1e-9)).status is Status.FAILED


NOT_FINITE = [
    (NAN, 1.0, None),
    (1.0, NAN, None),
    (NAN, NAN, None),
    (INF, 1.0, None),
    pytest.param(INF, INF, None, marks=NUMPY_WARNS),
    ([1.0, NAN], [1.0, 1.0], None),
    ([NAN, 5.0], [1.0, 1.0], None),
    (1.0, 1.0, NAN),
    ([1.0, 1.0], [1.0, 1.0], [1.0, NAN]),
    pytest.param(1.0, INF, None, marks=NUMPY_WARNS),
    pytest.param(-INF, INF, None, marks=NUMPY_WARNS),
    pytest.param([7.0, 1.0], [1.0, INF], None, marks=NUMPY_WARNS),
    pytest.param(7.0, 1.0, INF, marks=NUMPY_WARNS),
    pytest.param(INF, 1.0, INF, marks=NUMPY_WARNS),
]


@pytest.mark.parametrize(("left", "right", "magnitude"), NOT_FINITE, ids=str)
def test_what_is_not_finite_never_passes_as_exact(left, right, magnitude):
    assert exact("finite", left, right, magnitude=magnitude).status is Status.FAILED


def test_infinity_against_itself_fails_without_a_warning():
    assert exact("finite", INF, INF).status is Status.FAILED


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ([1.0, 1.0], [1.0], r"entry: the two routes have shapes \(2,\) and \(1,\)"),
        (1.0, [1.0], "shapes"),
        ([[1.0, 1.0]], [[1.0], [1.0]], "shapes"),
        ([], [], "entry: nothing to compare"),
    ],
)
def test_exact_refuses_other_shapes(left, right, message):
    with pytest.raises(ValueError, match=message):
        exact("entry", left, right)


@pytest.mark.parametrize("fact", [True, False, np.bool_(True), np.bool_(False)])
def test_facts(fact):
    expected = Status.PASSED if fact else Status.FAILED
    assert holds("sign", fact, "numbers") == Check("sign", Kind.EXACT, expected, "numbers")
    assert empirical("study", "effect", statement=fact) == Check(
        "study", Kind.EMPIRICAL, expected, "effect"
    )
    assert holds("sign", fact, "", kind=Kind.SYMBOLIC).kind is Kind.SYMBOLIC


def test_a_study_without_a_statement_only_reports():
    assert verdict([empirical("study", "effect")]) is Verdict.INCONCLUSIVE
    assert empirical("study", "effect").status is Status.REPORTED


@pytest.mark.parametrize(("a", "b"), [(NAN, 1.0), (1.0, NAN), (NAN, NAN), (INF, 1.0)])
def test_comparisons_with_nan_or_infinity_do_not_hold(a, b):
    assert holds("inequality", a <= b, "").status is Status.FAILED


# --- tails ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """Draws whose mean of n has a known distribution: `outside(n, w)` is P(|mean − E X| > w)."""

    name: str
    tail: Tail
    outside: object

    def __str__(self):
        return self.name


def of_binomial(p):
    def outside(n, width):
        low, high = math.ceil(n * (p - width)) - 1, math.floor(n * (p + width))
        return stats.binom.cdf(low, n, p) + stats.binom.sf(high, n, p)

    return Draws(f"Bernoulli, p = {p}", Tail.bounded(p * (1 - p), max(p, 1 - p)), outside)


def of_normal_form(eigenvalue, size):
    """zᵀAz of A = λI, λ times a χ² of as many degrees of freedom."""

    def outside(n, width):
        chi2, centre = stats.chi2(n * size), n * size
        return chi2.sf(centre + n * width / abs(eigenvalue)) + chi2.cdf(
            centre - n * width / abs(eigenvalue)
        )

    return Draws(
        f"{size} × {size} normal form",
        Tail.gaussian_form(abs(eigenvalue) * size**0.5, abs(eigenvalue)),
        outside,
    )


def of_sign_form(size):
    """zᵀBz = (Σz)² − m of B = 11ᵀ − I."""
    heads = np.arange(size + 1)
    values, weights = (2 * heads - size) ** 2 - size, stats.binom.pmf(heads, size, 0.5)
    one = np.zeros(size**2 + 1)
    np.add.at(one, values + size, weights)  # index = value + m, as many as n·m for n draws

    def outside(n, width):
        pmf = one
        for _ in range(n - 1):
            pmf = np.convolve(pmf, one)
        return pmf[np.abs(np.arange(len(pmf)) / n - size) > width].sum()

    B = np.ones((size, size)) - np.eye(size)
    return Draws(
        f"{size} × {size} sign form",
        Tail.sign_form(np.linalg.norm(B), np.linalg.norm(B, 2)),
        outside,
    )


NORMAL = Draws("normal", Tail(4.0, 0.0), lambda n, width: 2 * stats.norm.sf(width * n**0.5 / 2))
DRAWS = [
    NORMAL,
    *(of_binomial(p) for p in (0.5, 0.1, 0.9, 0.001)),
    *(of_normal_form(eigenvalue, size) for eigenvalue, size in ((1.0, 1), (-2.0, 3), (0.5, 100))),
    *(of_sign_form(size) for size in (2, 3, 8)),
]


@pytest.mark.parametrize("alpha", [0.3, 0.01, 1e-8])
@pytest.mark.parametrize("num_draws", [1, 2, 7, 40])
@pytest.mark.parametrize("draws", DRAWS, ids=str)
def test_tail_probability_is_below_the_level(draws, num_draws, alpha):
    """The exact probability that the mean leaves the interval is at most α, for every n."""
    assert draws.outside(num_draws, draws.tail.half_width(num_draws, alpha)) <= alpha * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [0.3, 1e-3, 1e-8])
@pytest.mark.parametrize("num_draws", [1, 10, 10**6])
@pytest.mark.parametrize(
    ("variance", "scale"), [(1.0, 0.0), (0.25, 3.0), (1e-12, 1.0), (np.ones(3), np.arange(3.0))]
)
def test_half_width_solves_bernstein(variance, scale, num_draws, alpha):
    """2 exp(−nε²/(2(v + cε))) = α at ε: no narrower interval is guaranteed and no wider one is needed."""
    width = Tail(variance, scale).half_width(num_draws, alpha)
    assert np.allclose(
        2 * np.exp(-num_draws * width**2 / (2 * (variance + scale * width))),
        alpha,
        rtol=1e-9,
        atol=0,
    )


def test_half_width_of_normal_draws_is_nearly_theirs():
    """Without it a constant too large by 2 would pass every guarantee."""
    for alpha in (1e-4, 1e-8, 1e-12):
        ratio = NORMAL.tail.half_width(9, alpha) / (stats.norm.isf(alpha / 2) * 2 / 3)
        assert 1 < ratio < 1.2


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [((10, 1e-3), (11, 1e-3)), ((10, 1e-4), (10, 1e-3)), ((1, 1e-8), (10**6, 1e-8))],
    ids=["more draws", "higher level", "many draws"],
)
def test_half_width_falls(wide, narrow):
    tail = Tail.bounded(np.array([1.0, 2.0]), 5.0)
    assert (tail.half_width(*wide) > tail.half_width(*narrow)).all()


# --- the sequential test --------------------------------------------------------------------------------------------

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
        """Half the margin on each side, for α divided by the number of looks; one look fewer would not do."""
        *early, last = design.looks
        paid = design.tail.half_width(last, design.alpha / len(design.looks))
        assert np.array_equal(design.half_width(last), paid)
        assert (2 * paid <= design.margin).all()
        fewer = design.tail.half_width(early[-1], design.alpha / len(early)) if early else INF
        assert not (2 * np.asarray(fewer) <= design.margin).all()

    def test_decisions(self, design):
        """FAILED outside the interval, PASSED inside the margin with room for it, else on; the last look decides."""
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
        """At d = detectable, Σ over looks of the one-sided bound on P(|mean − target| is accepted) is 1 − power."""
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
    """The largest error of one entry, the others right, at which a look agrees, by trial; None where it cannot."""
    errors = np.zeros((10_001, 2))
    errors[:, entry] = np.linspace(0, design.margin[entry], len(errors))
    agrees = [error[entry] for error in errors if design.decide(error, n) is Status.PASSED]
    return max(agrees, default=None)


@pytest.mark.parametrize("entry", [0, 1])
def test_detectable_is_that_of_the_looks_that_can_agree(entry):
    """The narrow margin of one entry keeps early looks from agreeing, and the other entry gains from it."""
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


# --- draws and their verdict ----------------------------------------------------------------------------------------


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
    """statistical() of a subject with a target off by so many detectable discrepancies in one entry."""
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
    """Draws 0, 1, 2, …: a look that forgot the earlier ones, or counted them twice, has another mean."""
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


# --- intervals and the budget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95, 1 - 1e-8])
@pytest.mark.parametrize("trials", [1, 2, 19, 1000])
def test_clopper_pearson_is_that_of_scipy(trials, level):
    for successes in sorted({0, 1, trials // 3, trials - 1, trials}):
        expected = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
        assert np.allclose(
            clopper_pearson(successes, trials, level), expected, rtol=1e-6, atol=1e-12
        )


@pytest.mark.parametrize("p", [0.0, 0.02, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_clopper_pearson_covers(p, level):
    """Summed over all outcomes of 30 trials, the interval contains p with at least its level."""
    covering = [
        k
        for k in range(31)
        if clopper_pearson(k, 30, level)[0] <= p <= clopper_pearson(k, 30, level)[1]
    ]
    assert stats.binom.pmf(covering, 30, p).sum() >= level - 1e-12


BUDGETS = [[], [(0, 4)], [(1, 0)], [(3, 2)], [(0, 7), (2, 4), (26, 3), (1, 0)], [(10, 9)] * 50]


@pytest.mark.parametrize("suite_alpha", [1e-6, 0.05])
@pytest.mark.parametrize(
    "tests_per_claim", BUDGETS, ids=[str(sum(map(sum, pairs))) for pairs in BUDGETS]
)
def test_budget_is_spent_once(tests_per_claim, suite_alpha):
    """The levels of all tests, of the subjects and of their mutants, add up to the budget of the suite."""
    budget = Budget.of(iter(tests_per_claim), suite_alpha)
    tests = [
        budget.alpha
        for statistical, mutants in tests_per_claim
        for _ in range(statistical * (1 + mutants))
    ]
    assert budget.num_tests == len(tests)
    assert math.isclose(sum(tests), suite_alpha) if tests else budget.alpha == suite_alpha
