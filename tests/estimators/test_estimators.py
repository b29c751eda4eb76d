"""How the trace is measured: probes have the moments that they declare, and estimators average what they should."""

import itertools
import math
from dataclasses import FrozenInstanceError, replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import hesstheory.curvature
import hesstheory.estimators
from hesstheory import (
    BlockSeparatedTrace,
    Estimate,
    Gaussian,
    HadamardColumns,
    HutchPP,
    LayerwiseTrace,
    Problem,
    Rademacher,
    SparseSigns,
    Sphere,
    Uniform,
    XTrace,
    ggn,
    hessian,
    zoo,
)
from hesstheory.estimators.enumerations import (
    all_signs,
    hadamard_columns,
    strength_four_signs,
    three_point_grid,
)
from hesstheory.estimators.probes import Probe
from hesstheory.results.estimate import as_mapping

PROBES = [
    Rademacher(),
    Gaussian(),
    Uniform(),
    Sphere(),
    SparseSigns(0.25),
    SparseSigns(1.0),
    HadamardColumns(),
]
ESTIMATORS = [LayerwiseTrace, BlockSeparatedTrace]
each_probe = pytest.mark.parametrize("probe", PROBES, ids=repr)
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.__name__)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@lru_cache
def problem_of(network, dtype=torch.float64):
    return zoo.problem(network, stream(), dtype=dtype)


@lru_cache
def dense(network, matrix=hessian):
    return matrix(problem_of(network)).to_dense()


def block_traces(network, matrix=hessian):
    H = dense(network, matrix)
    return np.array([float(H[i][:, i].trace()) for i in problem_of(network).index.values()])


# --- probes -----------------------------------------------------------------------------------------------------------

NUM_DRAWS = 40_000


@each_probe
def test_a_probe_has_the_moments_that_it_declares(probe):
    """Mean 0, E zzᵀ = I and E z⁴ = κ, six standard errors wide (the seed is fixed: a failure is no accident)."""
    P = 8
    repeats = NUM_DRAWS // P if isinstance(probe, HadamardColumns) else 1
    draw = stream()
    Z = torch.cat([probe.sample(P, NUM_DRAWS // repeats, draw) for _ in range(repeats)], dim=1)
    assert Z.shape == (P, NUM_DRAWS)
    assert Z.dtype is torch.float64
    moments = [(Z, torch.zeros(P, 1)), (Z**4, torch.full((P, 1), probe.kurtosis(P)))]
    moments.append((torch.einsum("ik,jk->ijk", Z, Z), torch.eye(P)[:, :, None]))
    for powers, expected in moments:
        error = (powers.mean(-1, keepdim=True) - expected).abs()
        stderr = powers.std(-1, keepdim=True) / NUM_DRAWS**0.5
        assert (error <= 6 * stderr + 1e-12).all()


SUPPORTS = {
    Rademacher(): lambda Z: (Z.abs() == 1).all(),
    HadamardColumns(): lambda Z: (Z.abs() == 1).all(),
    Uniform(): lambda Z: (Z.abs() <= 3**0.5).all(),
    Sphere(): lambda Z: (Z.square().sum(0) - len(Z)).abs().max() <= 1e-12 * len(Z),
    SparseSigns(0.25): lambda Z: ((Z == 0) | (Z.abs() == 2)).all(),
}


@pytest.mark.parametrize(("probe", "belongs"), SUPPORTS.items(), ids=map(repr, SUPPORTS))
def test_a_probe_keeps_to_its_support(probe, belongs):
    assert belongs(probe.sample(50, 64, stream()))


@each_probe
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (7, 3), (20, 8)])
def test_a_probe_follows_its_generator(probe, size):
    count = (
        min(size[1], 2 ** math.ceil(math.log2(size[0])))
        if isinstance(probe, HadamardColumns)
        else size[1]
    )
    first, again, later = stream(), stream(), stream(0)
    Z = probe.sample(size[0], count, first)
    assert Z.shape == (size[0], count)
    assert torch.equal(Z, probe.sample(size[0], count, again))
    probe.sample(size[0], count, later)
    many = [probe.sample(size[0], count, later) for _ in range(20)]
    assert any(not torch.equal(Z, other) for other in many)
    assert isinstance(probe, Probe)
    assert probe == replace(probe)


@pytest.mark.parametrize(
    "probe", [p for p in PROBES if not isinstance(p, HadamardColumns)], ids=repr
)
def test_more_probes_begin_with_fewer(probe):
    """Probe k does not depend on how many are asked for, so a longer run goes on where a shorter one stopped."""
    draws = stream()
    both = torch.cat([probe.sample(9, 4, draws), probe.sample(9, 4, draws)], dim=1)
    assert torch.equal(probe.sample(9, 4, stream()), both[:, :4])


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 31])
def test_all_hadamard_columns_average_to_the_identity(size):
    Z = hadamard_columns(size)
    assert torch.equal(Z @ Z.mT / Z.shape[1], torch.eye(size))
    drawn = HadamardColumns().sample(size, Z.shape[1], stream())
    assert torch.equal(drawn @ drawn.mT / Z.shape[1], torch.eye(size))
    with pytest.raises(ValueError, match=f"ask for at most {Z.shape[1]}"):
        HadamardColumns().sample(size, Z.shape[1] + 1, stream())


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_all_signs_are_all_signs(size):
    Z = all_signs(size)
    assert Z.shape == (size, 2**size)
    assert {tuple(z.tolist()) for z in Z.mT} == set(itertools.product((-1.0, 1.0), repeat=size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 12, 15, 16])
def test_strength_four_signs_have_strength_four(size):
    """The mean of every product of one to four different rows is exactly 0: any four entries are independent."""
    Z = strength_four_signs(size)
    assert Z.shape == (size, 4 ** size.bit_length())
    assert (Z.abs() == 1).all()
    for order in (1, 2, 3, 4):
        subsets = torch.tensor(
            list(itertools.combinations(range(size), order)), dtype=torch.int64
        ).reshape(-1, order)
        for some in subsets.split(200):
            assert (Z[some].prod(1).mean(1) == 0).all()
    assert torch.equal(Z @ Z.mT / Z.shape[1], torch.eye(size))


@pytest.mark.parametrize("size", [31, 33, 63, 64, 100, 127])
def test_strength_four_of_larger_arrays_by_their_parity_checks(size):
    """A product of rows averages to 0 unless its linear functions add up to 0 over GF(2): no 1 to 4 of them may."""
    m = size.bit_length()
    rows = [(x << m) | hesstheory.estimators._cube(x, m) for x in range(1, size + 1)]
    sums = [a ^ b for a, b in itertools.combinations(rows, 2)]
    assert len({0, *rows, *sums}) == 1 + len(rows) + len(sums)


@pytest.mark.parametrize("degree", range(1, 9))
def test_cubing_is_that_of_a_field(degree):
    """x ↦ x³ over GF(2^m) has no zero but 0, and is one-to-one where 3 does not divide 2^m − 1."""
    cube = [hesstheory.estimators._cube(x, degree) for x in range(1, 2**degree)]
    assert all(0 < value < 2**degree for value in cube)
    if math.gcd(3, 2**degree - 1) == 1:
        assert len(set(cube)) == len(cube)


@pytest.mark.parametrize("kurtosis", [1.0, 9 / 5, 3.0, 7.5])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_three_point_grid_has_exact_moments(size, kurtosis):
    Z, weights = three_point_grid(size, kurtosis)
    assert Z.shape == (size, 3**size)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-14)
    assert (weights >= 0).all()
    expected = {
        (1,): 0,
        (2,): 1,
        (3,): 0,
        (4,): kurtosis,
        (5,): 0,
        (1, 1): 0,
        (2, 2): 1,
        (3, 1): 0,
        (2, 1, 1): 0,
    }
    expected |= {(1, 1, 1, 1): 0, (4, 1): 0, (3, 2): 0}
    for powers, moment in expected.items():
        for entries in itertools.permutations(range(size), len(powers)):
            product = math.prod(
                (Z[i] ** power for i, power in zip(entries, powers, strict=True)), start=weights
            )
            assert float(product.sum()) == pytest.approx(moment, abs=1e-12)


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


# --- estimators -------------------------------------------------------------------------------------------------------

NETWORKS = ["tiny_mlp", "cnn", "rnn", "autoencoder"]
each_network = pytest.mark.parametrize("network", NETWORKS)
each_matrix = pytest.mark.parametrize("matrix", [hessian, ggn], ids=lambda matrix: matrix.__name__)


@each_network
@each_matrix
def test_both_estimators_average_to_the_exact_traces_under_all_hadamard_columns(network, matrix):
    problem = problem_of(network)
    Z, exact = hadamard_columns(problem.num_params), block_traces(network, matrix)
    rounding = 1e-12 * float(dense(network, matrix).abs().sum())
    for estimator in (LayerwiseTrace(matrix=matrix), BlockSeparatedTrace(matrix=matrix)):
        estimate = estimator(problem, probes=Z)
        assert list(estimate.value.index) == list(problem.partition.blocks)
        assert np.abs(estimate.value.to_numpy() - exact).max() <= rounding
        assert estimate.samples.shape == (Z.shape[1], len(problem.partition.blocks))


@each_network
def test_samples_are_the_quadratic_forms_of_each_probe(network):
    problem, H = problem_of(network), dense(network)
    Z = Gaussian().sample(problem.num_params, 3, stream())
    together = torch.stack([(Z[i] * (H @ Z)[i]).sum(0) for i in problem.index.values()], dim=1)
    apart = torch.stack(
        [(Z[i] * (H[i][:, i] @ Z[i])).sum(0) for i in problem.index.values()], dim=1
    )
    for estimator, forms in ((LayerwiseTrace(), together), (BlockSeparatedTrace(), apart)):
        samples = torch.tensor(estimator(problem, probes=Z).samples.to_numpy())
        assert float((samples - forms).norm()) <= 1e-12 * float(H.norm() * Z.square().sum())


@each_estimator
@each_probe
def test_an_estimator_follows_its_generator(estimator, probe):
    problem, ask = problem_of("tiny_mlp"), estimator(5, probe)
    first, again, other = (ask(problem, stream(seed)) for seed in (3, 3, 4))
    assert first.samples.equals(again.samples)
    assert not first.samples.equals(other.samples)
    Z = probe.sample(problem.num_params, 5, stream(3))
    assert first.samples.equals(ask(problem, probes=Z).samples)
    running = stream(3)
    assert first.samples.equals(ask(problem, running).samples)
    assert not first.samples.equals(ask(problem, running).samples)


def test_groups_of_probes_are_drawn_one_at_a_time(monkeypatch):
    problem = problem_of("tiny_mlp")
    monkeypatch.setattr(hesstheory.estimators, "_GROUP_ELEMENTS", 3 * problem.num_params)
    held = []

    class Counting(Rademacher):
        def sample(self, num_params, num_probes, generator):
            held.append(num_probes)
            return super().sample(num_params, num_probes, generator)

    groups = hesstheory.estimators._probe_groups(
        LayerwiseTrace(8, Counting()), problem, stream(), None
    )
    assert next(groups).shape == (12, 3)
    assert held == [3]
    estimate = LayerwiseTrace(8)(problem, stream())
    assert (len(estimate.samples), estimate.num_matvecs) == (8, 8)
    draw = stream()
    Z = torch.cat([Rademacher().sample(12, count, draw) for count in (3, 3, 2)], dim=1)
    assert estimate.samples.equals(LayerwiseTrace()(problem, probes=Z).samples)


@each_network
def test_products_are_counted(network):
    problem = problem_of(network)
    assert LayerwiseTrace(4)(problem, stream()).num_matvecs == 4
    assert BlockSeparatedTrace(4)(problem, stream()).num_matvecs == 4 * len(
        problem.partition.blocks
    )
    Z = Rademacher().sample(problem.num_params, 6, stream())
    assert LayerwiseTrace(4)(problem, probes=Z).num_matvecs == 6


@each_estimator
def test_standard_error_and_interval_are_those_of_a_mean(estimator):
    estimate = estimator(7)(problem_of("tanh_mlp"), stream())
    samples = estimate.samples.to_numpy()
    mean, stderr = samples.mean(0), samples.std(0, ddof=1) / math.sqrt(7)
    np.testing.assert_allclose(estimate.value, mean, rtol=1e-13)
    np.testing.assert_allclose(estimate.stderr, stderr, rtol=1e-13)
    for level in (0.5, 0.95, 0.999):
        interval = estimate.confidence_interval(level)
        assert list(interval.columns) == ["low", "high"]
        low, high = stats.t(6, mean, stderr).interval(level)
        np.testing.assert_allclose(interval.to_numpy(), np.stack([low, high], axis=1), rtol=1e-12)
    assert as_mapping(estimate) == {
        block: (pytest.approx(m, rel=1e-13), pytest.approx(s, rel=1e-13))
        for block, m, s in zip(estimate.value.index, mean, stderr, strict=True)
    }


def test_intervals_cover_as_often_as_they_say():
    """Normal samples, K = 5, 20,000 intervals: coverage within six standard errors of the level."""
    draws = torch.randn(5, 20_000, generator=stream()).numpy()
    interval = Estimate(pd.DataFrame(draws), num_matvecs=5).confidence_interval(0.9)
    covered = ((interval["low"] <= 0) & (interval["high"] >= 0)).mean()
    assert abs(covered - 0.9) <= 6 * math.sqrt(0.9 * 0.1 / 20_000)


@each_estimator
def test_one_probe_has_no_standard_error(estimator):
    estimate = estimator(1)(problem_of("tiny_mlp"), stream())
    assert estimate.value.notna().all()
    assert estimate.stderr.isna().all()
    with pytest.raises(ValueError, match="use at least two probes"):
        estimate.confidence_interval()


@pytest.mark.parametrize("level", [0, 1, 95, -0.1])
def test_impossible_levels_are_refused(level):
    with pytest.raises(ValueError, match=r"pass the coverage, such as 0\.95"):
        LayerwiseTrace(3)(problem_of("tiny_mlp"), stream()).confidence_interval(level)


@each_estimator
@each_matrix
def test_a_float32_model_is_estimated_in_float32_and_summed_in_float64(estimator, matrix):
    single, double = problem_of("tanh_mlp", torch.float32), problem_of("tanh_mlp")
    Z = Rademacher().sample(double.num_params, 8, stream())
    found, exact = (
        estimator(matrix=matrix)(problem, probes=Z).samples for problem in (single, double)
    )
    assert (found.dtypes == "float64").all()
    scale = float(dense("tanh_mlp", matrix).abs().sum())
    assert np.abs(found.to_numpy() - exact.to_numpy()).max() <= 1e-5 * scale
    assert estimator(3)(single, stream()).value.notna().all()


@each_estimator
def test_probes_may_be_of_another_dtype_and_layout(estimator, unchecked):
    problem = problem_of("tiny_mlp")
    Z = Rademacher().sample(problem.num_params, 4, stream())
    expected = estimator()(problem, probes=Z).samples
    for same in (
        Z.float(),
        Z.to(torch.int64),
        Z.clone().mT.contiguous().mT,
        Z.clone().requires_grad_(),
    ):
        assert estimator()(problem, probes=same).samples.equals(expected)


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
    with pytest.raises(error, match=cure):
        estimator()(problem_of("tiny_mlp"), probes=probes(12))


@each_estimator
@pytest.mark.parametrize(
    "generator", [None, 0, np.random.default_rng(0)], ids=["nothing", "a seed", "numpy"]
)
def test_a_missing_generator_is_refused(estimator, generator, unchecked):
    with pytest.raises(TypeError, match=r"pass a torch\.Generator.*no global randomness"):
        estimator()(problem_of("tiny_mlp"), generator)


def undefined_hessian():
    class AtZero(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x * self.w.norm()

    return Problem(AtZero(), torch.nn.functional.mse_loss, [(torch.ones(4), torch.zeros(4))])


@each_estimator
def test_a_hessian_that_is_not_finite_is_refused(estimator):
    with pytest.raises(ValueError, match=r"not finite although the loss is.*use a smooth variant"):
        estimator(2)(undefined_hessian(), stream())


REPRS = {
    LayerwiseTrace(): "LayerwiseTrace(num_probes=10, probe=Rademacher(), matrix=<function hessian",
    LayerwiseTrace(
        8, SparseSigns(0.5)
    ): "LayerwiseTrace(num_probes=8, probe=SparseSigns(density=0.5), matrix=",
    BlockSeparatedTrace(
        3, Gaussian(), ggn
    ): "BlockSeparatedTrace(num_probes=3, probe=Gaussian(), matrix=<function ggn",
}


@pytest.mark.parametrize(("estimator", "text"), REPRS.items(), ids=REPRS.values())
def test_the_repr_says_everything(estimator, text):
    assert repr(estimator).startswith(text)
    assert estimator == replace(estimator)
    assert hash(estimator) == hash(replace(estimator))
    with pytest.raises(FrozenInstanceError):
        estimator.num_probes = 3


def test_an_estimate_shows_its_values():
    estimate = LayerwiseTrace(3)(problem_of("tiny_mlp"), stream())
    shown = repr(estimate)
    assert shown.startswith("Estimate(3 products)")
    assert all(block in shown for block in estimate.value.index)
    with pytest.raises(FrozenInstanceError):
        estimate.num_matvecs = 0


# --- deflation --------------------------------------------------------------------------------------------------------


def named(estimator):
    return repr(estimator).partition(", matrix=")[0]


DEFLATING = [
    HutchPP(num_probes=3, rank=4),
    HutchPP(5, 2, Gaussian()),
    XTrace(6),
    XTrace(4, Rademacher()),
]


def by_hand_hutchpp(H, index, estimator, generator):
    """Samples from dense matrices: block traces of H − B plus forms of B, B = (I − QQᵀ)H(I − QQᵀ)."""
    S = estimator.probe.sample(len(H), estimator.rank, generator)
    Q = torch.linalg.qr(H @ S)[0]
    outside = torch.eye(len(H)) - Q @ Q.mT
    B, rows = outside @ H @ outside, []
    for start in range(0, estimator.num_probes, estimator.rank):
        Z = estimator.probe.sample(
            len(H), min(estimator.rank, estimator.num_probes - start), generator
        )
        rows += [[float((H - B)[i][:, i].trace() + z[i] @ (B @ z)[i]) for i in index] for z in Z.mT]
    return np.array(rows)


def by_hand_xtrace(H, index, estimator, generator):
    """The same with the basis of all other probes for each."""
    Z = estimator.probe.sample(len(H), estimator.num_probes, generator)
    rows = []
    for k in range(estimator.num_probes):
        others = [j for j in range(estimator.num_probes) if j != k]
        Q = torch.linalg.qr(H @ Z[:, others])[0]
        outside = torch.eye(len(H)) - Q @ Q.mT
        B, z = outside @ H @ outside, Z[:, k]
        rows.append([float((H - B)[i][:, i].trace() + z[i] @ (B @ z)[i]) for i in index])
    return np.mean(rows, axis=0, keepdims=True)


@pytest.mark.parametrize("estimator", DEFLATING, ids=named)
@pytest.mark.parametrize("network", ["tanh_mlp", "rnn", "cnn"])
def test_deflated_samples_by_block_are_those_of_dense_matrices(estimator, network):
    problem, H = problem_of(network), dense(network)
    by_hand = by_hand_xtrace if isinstance(estimator, XTrace) else by_hand_hutchpp
    expected = by_hand(H, list(problem.index.values()), estimator, stream(7))
    found = estimator(problem, stream(7))
    assert list(found.samples) == list(problem.partition.blocks)
    assert np.abs(found.samples.to_numpy() - expected).max() <= 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize(
    "estimator", [HutchPP(2, 12), HutchPP(1, 50), XTrace(14), XTrace(30)], ids=named
)
def test_a_basis_of_everything_gives_the_exact_traces(estimator):
    problem = problem_of("tiny_mlp")
    assert problem.num_params == 12
    samples = estimator(problem, stream(3)).samples
    assert (samples - block_traces("tiny_mlp")).abs().max().max() < 1e-12


@pytest.mark.parametrize("estimator", [HutchPP(2, 3), XTrace(4)], ids=named)
def test_a_matrix_of_zeros_and_one_of_rank_one(estimator):
    """A basis of dependent products is no error."""
    generator = stream(1)
    problem = zoo.prescribed(torch.zeros(1, 5, 5), (2, 3), generator)
    assert not estimator(problem, stream()).samples.to_numpy().any()
    v = torch.randn(5, generator=generator)
    problem = zoo.prescribed(torch.outer(v, v)[None], (2, 3), generator)
    expected = [float(v[:2] @ v[:2]), float(v[2:] @ v[2:])]
    assert np.allclose(estimator(problem, stream()).samples, expected, rtol=1e-12)


def test_deflated_estimates_count_their_products():
    problem = problem_of("tanh_mlp")
    assert HutchPP(num_probes=7, rank=3)(problem, stream()).num_matvecs == 13
    assert XTrace(5)(problem, stream()).num_matvecs == 10
    assert HutchPP(1, 10)(problem_of("tiny_mlp"), stream()).num_matvecs == 21


@pytest.mark.parametrize("estimator", [HutchPP(60, 5), XTrace(8)], ids=named)
def test_deflated_estimates_are_unbiased_within_their_spread(estimator):
    """Fifty runs; at five standard errors of their mean a right one fails once in 10⁵ times."""
    problem, exact = problem_of("gelu_mlp"), block_traces("gelu_mlp")
    runs = np.array([estimator(problem, stream(seed)).value for seed in range(50)])
    assert (np.abs(runs.mean(0) - exact) < 5 * runs.std(0, ddof=1) / 50**0.5).all()


@pytest.mark.parametrize("bad", [0, -1, True])
def test_an_impossible_rank_is_refused(bad):
    with pytest.raises(ValueError, match=r"rank is .*: pass a whole number of at least 1"):
        HutchPP(rank=bad)


# --- changes ----------------------------------------------------------------------------------------------------------


def test_the_change_between_two_states_with_common_probes():
    """After a small step the change is known far better than either trace."""
    before = problem_of("tanh_mlp")
    model = zoo.trained("tanh_mlp", stream(), 0)
    model.load_state_dict(before.model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.001)
    after = Problem(model, before.loss_fn, before.batches)
    common = LayerwiseTrace(40)(after, stream(2)) - LayerwiseTrace(40)(before, stream(2))
    apart = LayerwiseTrace(40)(after, stream(3)) - LayerwiseTrace(40)(before, stream(2))
    exact = hessian(after).trace_by_block() - hessian(before).trace_by_block()
    assert ((common.value - exact).abs() < 6 * common.stderr).all()
    assert (common.stderr < 0.05 * apart.stderr).all()
    assert common.num_matvecs == 80


def test_estimates_of_different_networks_have_no_difference():
    one, other = (LayerwiseTrace(2)(problem_of(name), stream()) for name in ("tanh_mlp", "cnn"))
    with pytest.raises(ValueError, match="subtract estimates of one network by one estimator"):
        one - other
    with pytest.raises(ValueError, match=r"3 probes of .* minus 2 probes"):
        LayerwiseTrace(3)(problem_of("cnn"), stream()) - other


# --- bad input, and what does not fit ---------------------------------------------------------------------------------


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


def test_a_number_is_no_estimate(generator, unchecked):
    estimate = LayerwiseTrace(2)(zoo.problem("tiny_relu", generator), generator)
    with pytest.raises(
        TypeError, match=r"an Estimate minus a float: subtract an Estimate, or use \.value"
    ):
        _ = estimate - 1.0


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
    monkeypatch.setattr(
        hesstheory.curvature, "free_memory", lambda device: 200 * problem.num_params
    )
    with pytest.raises(
        MemoryError,
        match=rf"{what} need [0-9,]+ bytes with all copies and [0-9,]+ are free: \d+ fit",
    ):
        estimator(problem, generator)
