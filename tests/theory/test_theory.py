"""The closed forms, proved by sympy for the functions that the code calls and enumerated on every sign vector."""

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sympy as sp
import torch

from hesstheory import theory
from hesstheory.theory.batches import (
    anova,
    anova_inverse_bias,
    batch_trace_variance,
    budget_variance,
    cost_optimal_num_probes,
    critical_num_probes,
    critical_num_probes_of_batch,
    finite_population_factor,
    fresh_batch_variance,
    mean_batch_probe_variance,
    total_variance,
    total_variance_curve,
)
from hesstheory.theory.matrices import squared_norm
from hesstheory.theory.outputs import (
    ggn_coupling,
    ggn_squared_norm,
    logit_probe_variance,
    summed_logit_probe_variance,
)
from hesstheory.theory.probes import (
    crossover_margin,
    full_vector_wins,
    orthogonal_probe_variance,
    per_sample_probe_variance,
    per_sample_probes_win,
    probe_covariance,
    probe_covariance_matrix,
    probe_variance,
    quadratic_form,
    rademacher_advantage,
    sphere_variance,
)
from hesstheory.theory.symbols import expectation, symmetric_symbols
from hesstheory.theory.tails import (
    GAUSSIAN_TAIL,
    RADEMACHER_TAIL,
    SHARP_RADEMACHER_TAIL,
    num_probes_chebyshev,
    num_probes_normal,
    num_probes_subexponential,
    tail_bound,
)
from hesstheory.theory.ties import tied_bias, tied_bias_bounds

MU3, KAPPA = sp.symbols("mu3 kappa", real=True)
ANY_PROBE = {1: 0, 2: 1, 3: MU3, 4: KAPPA}
NORMAL = {1: 0, 2: 1, 3: 0, 4: 3}
PARTITIONS = [(3, 2, 1), (2, 2), (1, 3), (4,), (1, 1, 1)]


def blocks_of(sizes):
    """Consecutive row numbers of each block."""
    ends = list(itertools.accumulate(sizes))
    return [list(range(e - s, e)) for s, e in zip(sizes, ends, strict=True)]


def cut(H, blocks, a):
    """The diagonal block of layer a and its cross blocks, of a sympy matrix or an array."""
    pick = (
        (lambda i, j: H.extract(i, j))
        if isinstance(H, sp.MatrixBase)
        else (lambda i, j: H[i][:, j])
    )
    return pick(blocks[a], blocks[a]), [pick(blocks[a], m) for b, m in enumerate(blocks) if b != a]


def single_estimates(H, z, blocks):
    return [sp.expand(sum(z[i] * (H.row(i) * z)[0] for i in block)) for block in blocks]


def variance(q, z, moments):
    return sp.expand(expectation(q**2, z, moments) - expectation(q, z, moments) ** 2)


def sphere_expectation(quartic, z):
    """E over the sphere of radius √P of a form of degree 4: that over normal z is E‖z‖⁴/P² = (P+2)/P times as large."""
    return expectation(quartic, z, NORMAL) * sp.Rational(len(z), len(z) + 2)


def is_zero(x):
    return sp.simplify(x) == 0


def signs(n):
    return np.array(list(itertools.product([-1.0, 1.0], repeat=n)))


def random_symmetric(n, seed, rank=None):
    A = np.random.default_rng(seed).normal(size=(n, n if rank is None else rank))
    return A + A.T if rank is None else A @ A.T


# --- proofs ---


@pytest.mark.parametrize("sizes", PARTITIONS, ids=str)
class TestOneProbe:
    @pytest.fixture
    def algebra(self, sizes):
        P = sum(sizes)
        H, z, blocks = (
            symmetric_symbols(P),
            sp.Matrix(sp.symbols(f"z:{P}", real=True)),
            blocks_of(sizes),
        )
        return H, z, blocks, single_estimates(H, z, blocks)

    def test_mean_needs_only_the_second_moment(self, algebra):
        """T1: E q_l is linear in E zzᵀ and, at the identity, tr H_ll, whatever else z does."""
        H, z, blocks, q = algebra
        for block, q_l in zip(blocks, q, strict=True):
            assert all(sum(powers) == 2 for powers, _ in sp.Poly(q_l, *z).terms())
            assert is_zero(expectation(q_l, z, {1: 0, 2: 1}) - sum(H[i, i] for i in block))

    def test_variance_for_any_kurtosis(self, algebra):
        """T2, the third moment drops out."""
        H, z, blocks, q = algebra
        for a, q_l in enumerate(q):
            assert is_zero(variance(q_l, z, ANY_PROBE) - probe_variance(*cut(H, blocks, a), KAPPA))

    def test_variance_reads_like_the_theorem(self, algebra):
        H, _, blocks, _ = algebra
        H_ll, cross = cut(H, blocks, 0)
        stated = (
            2 * squared_norm(H_ll)
            + (KAPPA - 3) * squared_norm(H_ll.diagonal())
            + sum(map(squared_norm, cross))
        )
        assert is_zero(stated - probe_variance(H_ll, cross, KAPPA))

    def test_covariance_and_sum_rule(self, algebra):
        """T3, and the sum over all pairs of layers is Var zᵀHz."""
        H, z, blocks, q = algebra
        C = probe_covariance_matrix(H, {str(b): b for b in blocks}, KAPPA)
        assert isinstance(C, sp.MatrixBase)
        for a, b in itertools.combinations(range(len(q)), 2):
            means = expectation(q[a], z, ANY_PROBE) * expectation(q[b], z, ANY_PROBE)
            assert is_zero(expectation(q[a] * q[b], z, ANY_PROBE) - means - C[a, b])
        assert is_zero(sum(C) - probe_variance(H, (), KAPPA))

    def test_rademacher_advantage(self, algebra):
        """T4."""
        H, _, blocks, _ = algebra
        for a in range(len(blocks)):
            H_ll, cross = cut(H, blocks, a)
            assert is_zero(
                probe_variance(H_ll, cross, 3)
                - probe_variance(H_ll, cross, 1)
                - rademacher_advantage(H_ll)
            )

    def test_sphere(self, algebra):
        """T5."""
        H, z, blocks, q = algebra
        for a, q_l in enumerate(q):
            H_ll, cross = cut(H, blocks, a)
            exact = sphere_expectation(q_l**2, z) - H_ll.trace() ** 2
            assert is_zero(exact - sphere_variance(H_ll, cross, len(z)))

    def test_quadratic_form(self, algebra):
        """T17: q_l = zᵀA_l z, and the variance of any of these is the classical one of A_l."""
        H, z, blocks, q = algebra
        for a, q_l in enumerate(q):
            A = quadratic_form(H, blocks[a])
            assert is_zero((z.T * A * z)[0] - q_l)
            assert is_zero(probe_variance(A, (), KAPPA) - probe_variance(*cut(H, blocks, a), KAPPA))


def test_sphere_moments():
    z = sp.symbols("z:4")
    assert sphere_expectation(z[0] ** 4, z) == sp.Rational(3 * 4, 6)
    assert sphere_expectation(z[0] ** 2 * z[1] ** 2, z) == sp.Rational(4, 6)


def test_coordinate_probes_are_unbiased_though_their_mean_is_not_zero():
    """T1 for z = √P e_i with i uniform: E zzᵀ = I, E z ≠ 0."""
    H, index = random_symmetric(4, 0), [0, 2]
    A = quadratic_form(H, index)
    assert np.isclose(np.mean([4 * A[i, i] for i in range(4)]), H[0, 0] + H[2, 2], rtol=1e-12)


def test_tied_bias_and_its_cure():
    """T7: independent probes per instance miss the cross blocks; one probe copied to all instances does not."""
    T, n = 2, 2
    U = np.array(symmetric_symbols(T * n).tolist(), dtype=object).reshape(T, n, T, n)
    z = np.array(sp.symbols(f"z:{T * n}"), dtype=object).reshape(T, n)
    truth = sum(U[r, i, s, i] for r in range(T) for s in range(T) for i in range(n))

    def mean(probe):
        form = sum(probe[r, i] * U[r, i, s, j] * probe[s, j] for r, i, s, j in np.ndindex(U.shape))
        return expectation(form, list(z.ravel()), ANY_PROBE)

    assert is_zero(mean(z) - truth - tied_bias(U))
    assert is_zero(mean(np.stack([z[0], z[0]])) - truth)


def test_critical_count():
    """T11: total = floor·(1 + K*/K), twice the floor at K*, and K* as a function of the batch size."""
    V, S_q, S_t2, K = sp.symbols("V S_q S_t2 K", positive=True)
    b, n = sp.symbols("b n", positive=True)
    for replacement in (False, True):
        probe_noise = mean_batch_probe_variance(V, S_q, b, n, replacement)
        floor = batch_trace_variance(S_t2, b, n, replacement)
        critical = critical_num_probes(probe_noise, floor)
        assert is_zero(critical - critical_num_probes_of_batch(V, S_q, S_t2, b, n, replacement))
        assert is_zero(
            total_variance(probe_noise, floor, K) - total_variance_curve(floor, critical, K)
        )
        assert is_zero(total_variance(probe_noise, floor, critical) - 2 * floor)
    growth = sp.diff(critical_num_probes_of_batch(V, S_q, S_t2, b, n), b)
    assert is_zero(growth - V * n**2 / (S_t2 * (n - b) ** 2))


def test_cost_optimum():
    """T13: the budget variance is convex in K and stationary at √(c0/c1·K*)."""
    floor, critical, K, c0, c1, budget = sp.symbols("floor critical K c0 c1 C", positive=True)
    curve = budget_variance(floor, critical, K, c0, c1, budget)
    assert is_zero(sp.diff(curve, K).subs(K, cost_optimal_num_probes(c0, c1, critical)))
    assert sp.simplify(sp.diff(curve, K, 2)).is_positive


def test_fresh_batches_have_no_floor():
    """T15: K batches with one probe each are the mean of K independent copies of T10 at K = 1."""
    w, v, K = sp.symbols("w v K", positive=True)
    assert is_zero(fresh_batch_variance(w, v, K) - total_variance(w, v, 1) / K)
    assert sp.limit(fresh_batch_variance(w, v, K), K, sp.oo) == 0
    assert sp.limit(total_variance(w, v, K), K, sp.oo) == v


def test_orthogonal_probes_on_the_sphere():
    """T20: given the first, E[vvᵀ] = (P·I − uuᵀ)/(P−1) for the second, which fixes their covariance at −V/(P−1)."""
    P, index = 3, [0, 2]
    H, u = symmetric_symbols(P), sp.Matrix(sp.symbols("u:3"))
    A = quadratic_form(H, index)
    q, trace = sp.expand((u.T * A * u)[0]), A.trace()
    squared_length = sum(x**2 for x in u)  # is P; keeps the product a form of degree 4
    product = sp.expand(q * (trace * squared_length - q) / (P - 1))
    V = sphere_variance(*cut(H, [index, [1]], 0), P)
    assert is_zero(sphere_expectation(product, list(u)) - trace**2 + V / (P - 1))


def test_orthogonal_factor_follows_from_the_exact_total():
    V, cov = sp.symbols("V cov")
    K, P = sp.symbols("K P", positive=True, integer=True)
    pair = sp.solve(P * V + P * (P - 1) * cov, cov)[0]
    mean_of_K = (K * V + K * (K - 1) * pair) / K**2
    assert is_zero(mean_of_K - orthogonal_probe_variance(V, K, P))


# --- every sign vector, every batch ---


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("sizes", PARTITIONS, ids=str)
def test_rademacher_moments_by_enumeration(sizes, make):
    P, blocks = sum(sizes), blocks_of(sizes)
    shuffle = np.random.default_rng(3).permutation(P)
    blocks = [shuffle[b] for b in blocks]  # a partition in any order
    H, z = random_symmetric(P, 1), signs(P)
    q = np.stack([(z[:, b] * (z @ H)[:, b]).sum(1) for b in blocks])
    C = probe_covariance_matrix(make(H), {str(i): make(b) for i, b in enumerate(blocks)}, 1)
    np.testing.assert_allclose(
        np.asarray(C), np.cov(q, bias=True).reshape(len(blocks), -1), rtol=1e-12, atol=1e-12
    )
    for a in range(len(blocks)):
        forms = np.einsum("ki,ij,kj->k", z, np.asarray(quadratic_form(make(H), make(blocks[a]))), z)
        np.testing.assert_allclose(forms, q[a], rtol=1e-12, atol=1e-12)


def test_a_diagonal_hessian_has_no_rademacher_noise_at_all():
    H = np.diag(np.random.default_rng(0).normal(size=50) ** 5)
    assert probe_variance(H, (), 1) == 0.0
    assert sphere_variance(np.eye(7) * 0.1, (), 7) <= 1e-30


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("b", [1, 2, 3])
def test_two_sources_of_variance_by_enumeration(b, replacement):
    """T10 and T11 on all batches of 3 samples and all pairs of probes."""
    n, l, K = 3, [0, 1], 2
    H = np.stack([random_symmetric(3, s) for s in range(n)])
    draws = (
        itertools.product(range(n), repeat=b)
        if replacement
        else itertools.combinations(range(n), b)
    )
    batches = [H[list(d)].mean(0) for d in draws]
    z = signs(3)
    q = np.array([(z[:, l] * (z @ B)[:, l]).sum(1) for B in batches])
    estimates = np.stack(
        [(q[:, list(p)]).mean(1) for p in itertools.product(range(len(z)), repeat=K)]
    )

    def V(M):
        return probe_variance(*cut(M, [l, [2]], 0), 1)

    H_bar, t = H.mean(0), np.trace(H[:, :2, :2], axis1=1, axis2=2)
    S_q = sum(V(M - H_bar) for M in H) / (n - 1)
    probe_noise = mean_batch_probe_variance(V(H_bar), S_q, b, n, replacement)
    floor = batch_trace_variance(t.var(ddof=1), b, n, replacement)
    assert np.isclose(probe_noise, np.mean([V(B) for B in batches]), rtol=1e-12)
    assert np.isclose(floor, q.mean(1).var(), rtol=1e-12, atol=1e-14)
    assert np.isclose(total_variance(probe_noise, floor, K), estimates.var(), rtol=1e-12)


def test_replacement_factor_is_the_population_variance_in_disguise():
    S2, n = 7.0, 5
    sigma2 = S2 * (n - 1) / n
    assert np.isclose(
        S2 * finite_population_factor(3, n, replacement=True) / 3, sigma2 / 3, rtol=1e-15
    )
    assert finite_population_factor(1, n) == finite_population_factor(1, n, replacement=True)
    assert (
        finite_population_factor(64, math.inf) == finite_population_factor(64, math.inf, True) == 1
    )
    assert finite_population_factor(n, n) == 0


@pytest.mark.parametrize(
    "case", ["similar", "unequal", "cancelling", "positive semi-definite", "equal"]
)
def test_probe_per_sample_by_enumeration(case):
    """T19 is not always true: the table holds both signs, a PSD pair among the refutations."""
    X = np.array([[0.0, 1.0], [1.0, 0.0]])
    samples = {
        "similar": [X, 3 * X],
        "unequal": [X, 10 * X],
        "cancelling": [X, -X],
        "positive semi-definite": [np.eye(2) + X, np.eye(2) - X],
        "equal": [X, X],
    }[case]
    V = [probe_variance(M, (), 1) for M in samples]
    H_bar = sum(samples) / 2
    S_q = sum(probe_variance(M - H_bar, (), 1) for M in samples)
    z = signs(2)
    q = [np.einsum("ki,ij,kj->k", z, M, z) for M in samples]
    own = np.array([(q[0][i] + q[1][j]) / 2 for i in range(4) for j in range(4)]).var()
    shared = ((q[0] + q[1]) / 2).var()
    assert np.isclose(per_sample_probe_variance(V), own, rtol=1e-12)
    assert np.isclose(own, (probe_variance(H_bar, (), 1) + S_q / 2) / 2, rtol=1e-12)
    assert per_sample_probes_win(shared, S_q, 2) == (own < shared)
    assert (own > shared) == (case in ("cancelling", "positive semi-definite"))


def test_hadamard_columns_gain_the_orthogonal_factor_only_if_drawn_at_random():
    """T20, on all signs and all ordered pairs of columns; the first two columns may gain nothing at all."""
    P, H = 4, random_symmetric(4, 2)
    A = quadratic_form(H, [0, 1])
    columns = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=float)

    def mean_variance(form, pairs):
        z = signs(P)
        q = [np.einsum("ki,ij,kj->k", z * c, form, z * c) for c in columns]
        return np.concatenate([(q[i] + q[j]) / 2 for i, j in pairs]).var()

    expected = orthogonal_probe_variance(probe_variance(A, (), 1), 2, P)
    assert np.isclose(mean_variance(A, itertools.permutations(range(P), 2)), expected, rtol=1e-12)
    assert np.isclose(orthogonal_probe_variance(3.0, P, P), 0.0)
    pair = np.zeros((P, P))
    pair[0, 2] = pair[2, 0] = (
        1.0  # both entries share the sign of column 1, so column 1 repeats column 0
    )
    assert np.isclose(mean_variance(pair, [(0, 1)]), probe_variance(pair, (), 1), rtol=1e-12)


def test_hadamard_across_layers_is_one_separated_probe():
    """T20: signs flipped by layer along the rows of a Hadamard matrix, averaged over L products."""
    H, blocks, flips = random_symmetric(4, 5), [[0, 1], [2, 3]], np.array([[1, 1], [1, -1]])
    z = signs(4)
    q = np.mean(
        [((z * f.repeat(2)) @ H * (z * f.repeat(2)))[:, blocks[0]].sum(1) for f in flips], axis=0
    )
    assert np.isclose(q.var(), probe_variance(cut(H, blocks, 0)[0], (), 1), rtol=1e-12)


# --- crossover, signs, tied weights ---


@pytest.mark.parametrize(("coupling", "wins"), [(0.9, True), (1.1, False)])
def test_crossover_is_where_equal_products_tie(coupling, wins):
    """T6: L = 2, separated variance 4, so the tie is at a cross term of 4."""
    H_ll = np.array([[5.0, 1.0], [1.0, -3.0]])
    cross = [np.array([[2.0], [0.0]]) * coupling**0.5]
    margin = crossover_margin(H_ll, iter(cross), 2, 1)
    equal_products = probe_variance(H_ll, (), 1) - probe_variance(H_ll, cross, 1) / 2
    assert full_vector_wins(H_ll, iter(cross), 2, 1) is wins
    assert np.isclose(margin, 2 * equal_products, rtol=1e-12)


def test_a_positive_matrix_gives_negative_estimates():
    """T17: H ⪰ 0 with tr H_ll > 0, yet A_l is indefinite and a sign vector gives q_l < 0."""
    H = np.array([[1.0, 3.0], [3.0, 9.0]])
    A = quadratic_form(H, [0])
    assert np.linalg.eigvalsh(A)[0] < 0 <= np.linalg.eigvalsh(H)[0] + 1e-12
    assert min(z @ A @ z for z in signs(2)) == -2.0
    assert np.isclose(squared_norm(A), squared_norm(H[:1, :1]) + squared_norm(H[:1, 1:]) / 2)


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_tied_bias_has_either_sign_within_its_bounds(sign):
    """T7, T8 for two instances of two weights; the extreme biases are attained, at U_12 = ∓U_11."""
    coupled = np.kron([[1.0, -sign], [-sign, 1.0]], np.diag([1.0, 2.0]))
    U = torch.from_numpy(coupled).reshape(2, 2, 2, 2)
    bounds = tied_bias_bounds(U)
    assert tied_bias(U) == 6.0 * sign
    assert (bounds.low, bounds.high) == (-6.0, 6.0)
    assert bounds.low <= tied_bias(U) <= bounds.high


def test_tied_bounds_hold_and_tighten_nothing():
    for seed in range(20):
        U = random_symmetric(6, seed, rank=1 + seed % 4).reshape(3, 2, 3, 2)
        assert tied_bias_bounds(U).low <= tied_bias(U) <= tied_bias_bounds(U).high


# --- analysis of variance ---


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_anova_is_the_textbook_one(make):
    q = np.random.default_rng(5).normal(size=(4, 6)) + np.arange(4)[:, None]
    result, F = anova(make(q)), scipy.stats.f_oneway(*q).statistic
    assert np.isclose(float(result.inverse_critical), (F - 1) / 6, rtol=1e-12)
    assert np.isclose(float(result.within), q.var(axis=1, ddof=1).mean(), rtol=1e-12)
    assert np.isclose(
        float(result.between),
        (6 * q.mean(1).var(ddof=1) - q.var(axis=1, ddof=1).mean()) / 6,
        rtol=1e-12,
    )
    assert np.isclose(float(result.critical_num_probes * result.inverse_critical), 1, rtol=1e-12)
    corrected = result.inverse_critical - result.inverse_critical_bias
    assert np.isclose(float(result.corrected_inverse), float(corrected), rtol=1e-12)


def test_anova_components_are_unbiased_for_any_distribution():
    """A quadratic form has mean Σ form(column) over any root of the covariance; rotated, so that none is degenerate."""
    M, K, within, between = 3, 4, 2.0, 0.7
    covariance = within * np.eye(M * K) + between * np.kron(np.eye(M), np.ones((K, K)))
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(M * K, M * K)))[0]
    roots = (np.linalg.cholesky(covariance) @ rotation).T
    results = [anova(column.reshape(M, K)) for column in roots]
    assert np.isclose(sum(r.within for r in results), within, rtol=1e-10)
    assert np.isclose(sum(r.between for r in results), between, rtol=1e-10)


@pytest.mark.parametrize("rho", [0.0, 0.3, 5.0])
def test_anova_bias_of_the_inverse(rho):
    """T14: F/(1 + Kρ) is F-distributed for normal data; the correction removes the bias exactly."""
    M, K = 5, 3
    nu2 = M * (K - 1)
    mean_F = (1 + K * rho) * scipy.stats.f(M - 1, nu2).mean()
    assert np.isclose((mean_F - 1) / K - rho, anova_inverse_bias(rho, M, K), rtol=1e-10)
    assert np.isclose(((nu2 - 2) / nu2 * mean_F - 1) / K, rho, rtol=1e-10, atol=1e-12)
    q = np.random.default_rng(1).normal(size=(M, K))
    F = 1 + K * anova(q).inverse_critical
    assert np.isclose(anova(q).corrected_inverse, ((nu2 - 2) / nu2 * F - 1) / K, rtol=1e-12)


def test_anova_without_visible_batch_noise_says_infinity():
    q = np.array([[1.0, -1.0], [1.0, -1.0], [2.0, -2.0]])
    assert anova(q).between < 0
    assert anova(q).critical_num_probes == math.inf


# --- logit space ---


def test_logit_probes_of_every_sample_by_enumeration():
    """G5: signs of three samples and two columns, all 64 of them; and normal moments by T2."""
    grams = [random_symmetric(2, seed, rank=2) for seed in range(3)]
    q = [sum(e @ M @ e for e, M in zip(z.reshape(3, 2), grams, strict=True)) / 3 for z in signs(6)]
    assert np.isclose(np.var(q), logit_probe_variance(grams, 1), rtol=1e-12)
    assert np.isclose(
        logit_probe_variance(grams, 3), 2 * sum(squared_norm(M) for M in grams) / 9, rtol=1e-12
    )
    assert logit_probe_variance([np.array([[2.0]])], 1) == 0


def test_logit_probes_added_up_by_enumeration():
    """G7: two batches, of two samples and of one, two columns each."""
    B = np.random.default_rng(0).normal(size=(6, 3))
    parts = [B[:4] @ B[:4].T, B[4:] @ B[4:].T]
    q = [((z[:4] @ B[:4]) ** 2).sum() + ((z[4:] @ B[4:]) ** 2).sum() for z in signs(6)]
    assert np.isclose(np.var(q), summed_logit_probe_variance(parts, 1), rtol=1e-12)
    assert np.isclose(
        summed_logit_probe_variance([B @ B.T], 3), 2 * squared_norm(B.T @ B), rtol=1e-12
    )
    assert summed_logit_probe_variance(parts, 3) < summed_logit_probe_variance([B @ B.T], 3)


def test_gram_matrices_give_blocks_and_couplings():
    """G6, for numpy arrays and tensors; symbols are proved in the claim."""
    rng = np.random.default_rng(0)
    B, C = rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    norms = [np.linalg.norm(X) for X in (B.T @ C, B.T @ B, C.T @ C)]
    for family in (np.asarray, torch.from_numpy):
        M_l, M_m = family(B @ B.T), family(C @ C.T)
        assert np.isclose(float(ggn_squared_norm(M_l, M_m)), norms[0] ** 2, rtol=1e-12)
        assert np.isclose(
            float(ggn_coupling(M_l, M_m)), norms[0] ** 2 / (norms[1] * norms[2]), rtol=1e-12
        )
        assert np.isclose(float(ggn_coupling(M_l, M_l)), 1, rtol=1e-12)
    assert ggn_coupling(sp.eye(2), 3 * sp.eye(2)) == 1
    assert ggn_coupling(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == 0


# --- sample sizes ---


def test_normal_probes_obey_their_exponential_bound():
    """−½log(1−2s) − s ≤ s²/(1−2s) for 0 ≤ s < ½ (and smaller for s < 0) is what the Gaussian constants rest on."""
    s = np.linspace(-3, 0.4999, 4000)
    mgf = -0.5 * np.log1p(-2 * s) - s
    assert (mgf <= s**2 / (1 - 2 * np.maximum(s, 0)) + 1e-15).all()


CHAOS = {
    "all ones": np.ones((10, 10)),
    "rank one": np.outer(np.arange(10), np.arange(10)) / 10.0,
    "single pair": np.eye(10)[[1, 0, *range(2, 10)]] - np.diag([0, 0, *[1.0] * 8]),
    "random": random_symmetric(10, 0),
    "minus ones": -np.ones((10, 10)),
}


@pytest.mark.parametrize("name", CHAOS)
def test_sign_probes_obey_their_exponential_bound(name):
    """log E exp(λ zᵀAz) ≤ 2λ²‖A‖²/(1 − 2λ‖A‖₂) on all sign vectors, and its tail lies above the exact one."""
    A = CHAOS[name] - np.diag(np.diag(CHAOS[name]))
    q = np.einsum("ki,ij,kj->k", signs(10), A, signs(10))
    F, s = np.linalg.norm(A), np.linalg.norm(A, 2)
    lam = np.linspace(1e-3, 0.499, 200) / s
    psi = scipy.special.logsumexp(lam[:, None] * q, axis=1) - math.log(len(q))
    assert (psi <= 2 * lam**2 * F**2 / (1 - 2 * lam * s)).all()
    for error in np.linspace(0.2, 1, 9) * abs(q).max():
        exact = np.mean(abs(q) >= error)
        sharp, published = (
            tail_bound(1, F, s, error, c) for c in (SHARP_RADEMACHER_TAIL, RADEMACHER_TAIL)
        )
        assert exact <= sharp <= published


@pytest.mark.parametrize(
    ("constants", "a", "c"), [(GAUSSIAN_TAIL, 1, 2), (SHARP_RADEMACHER_TAIL, 2, 2)]
)
def test_tail_is_what_the_exponential_bound_gives(constants, a, c):
    """log E e^{λ(q − tr)} ≤ aλ²‖A‖²/(1 − cλ‖A‖₂) and Markov's inequality at λ = ε/(2a‖A‖² + cε‖A‖₂)."""
    F, s = 2.0, 0.7
    for error in (3.0, 10.0, 30.0):
        lam = error / (2 * a * F**2 + c * error * s)
        markov = 2 * math.exp(a * lam**2 * F**2 / (1 - c * lam * s) - lam * error)
        assert np.isclose(tail_bound(1, F, s, error, constants), min(1, markov), rtol=1e-12)
    assert tail_bound(1, F, s, 10.0, constants) < 1


@pytest.mark.parametrize(
    "constants", [GAUSSIAN_TAIL, RADEMACHER_TAIL, SHARP_RADEMACHER_TAIL], ids=repr
)
@pytest.mark.parametrize(("error", "level"), [(0.1, 0.05), (3.0, 1e-6)])
def test_guaranteed_count_is_the_smallest_whose_bound_is_the_level(constants, error, level):
    K = num_probes_subexponential(2.0, 0.7, error, level, constants)
    assert tail_bound(K, 2.0, 0.7, error, constants) <= level
    assert K == 1 or tail_bound(K - 1, 2.0, 0.7, error, constants) > level


def test_counts_from_the_variance():
    assert num_probes_chebyshev(4.0, 0.5, 0.25) == 64
    assert num_probes_normal(4.0, 0.1, 0.05) == math.ceil(scipy.stats.norm.isf(0.025) ** 2 * 400)
    assert num_probes_chebyshev(0.0, 1.0, 0.05) == num_probes_normal(0.0, 1.0, 0.05) == 1
    assert num_probes_subexponential(0.0, 0.0, 1.0, 0.05, RADEMACHER_TAIL) == 1
    assert num_probes_normal(1.0, 0.1, 0.01) < num_probes_subexponential(
        0.5**0.5, 0.5**0.5, 0.1, 0.01, GAUSSIAN_TAIL
    )


# --- the house: data types, input, walls ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_tensor(dtype):
    H = torch.from_numpy(random_symmetric(5, 0)).to(dtype)
    H_ll, cross = cut(H, [[0, 1], [2, 3, 4]], 0)
    U = (H[:4, :4] @ H[:4, :4].T).reshape(2, 2, 2, 2)
    results = {
        "probe_variance": probe_variance(H_ll, cross, 1),
        "probe_covariance": probe_covariance(cross[0]),
        "probe_covariance_matrix": probe_covariance_matrix(H, {"a": [0, 1], "b": range(2, 5)}, 3),
        "rademacher_advantage": rademacher_advantage(H_ll),
        "sphere_variance": sphere_variance(H_ll, cross, 5),
        "crossover_margin": crossover_margin(H_ll, cross, 2, 1),
        "quadratic_form": quadratic_form(H, torch.tensor([0, 1])),
        "tied_bias": tied_bias(U),
        "tied_bias_bounds": tied_bias_bounds(U).high,
        "total_variance": total_variance(H_ll.abs().sum(), cross[0].abs().sum(), 3),
        "anova": anova(H).corrected_inverse,
        "per_sample": per_sample_probe_variance(H[0].abs()),
        "logit_probes": logit_probe_variance([H_ll, H_ll], 1),
        "summed_logit_probes": summed_logit_probe_variance([H_ll, H_ll], 1),
        "ggn_squared_norm": ggn_squared_norm(H_ll, H_ll),
        "ggn_coupling": ggn_coupling(H_ll, H_ll),
        "cost_optimal": cost_optimal_num_probes(2.0, 1.0, H[0, 0].abs()),
    }
    assert {name: r.dtype for name, r in results.items()} == dict.fromkeys(results, dtype)
    assert {name: r.device for name, r in results.items()} == dict.fromkeys(results, H.device)


def test_no_input_is_changed_and_gradients_flow():
    H = torch.from_numpy(random_symmetric(4, 0)).requires_grad_()
    before = H.detach().clone()
    probe_covariance_matrix(H, {"a": [0, 1], "b": [2, 3]}, 1)
    quadratic_form(H, [1]).sum().backward()
    assert torch.equal(H.detach(), before)
    assert H.grad is not None


def test_families_agree():
    entries = [[1, 2, 0], [2, -1, 3], [0, 3, 5]]
    families = [entries, np.array(entries), torch.tensor(entries), sp.Matrix(entries)]
    assert [float(probe_variance(H, (), 1)) for H in families] == [52.0] * 4
    assert [float(sphere_variance(H, (), 3)) for H in families] == pytest.approx(
        [0.6 * 2 * (53 - 25 / 3)] * 4
    )
    curve = total_variance_curve(1.0, 8.0, np.array([1, 8]))
    assert curve.tolist() == [9.0, 2.0]


EYE, ONES, NAN = np.eye(2), np.ones((2, 2)), np.array([[1.0, math.nan], [math.nan, 1.0]])
SKEW = np.array([[0.0, 1.0], [-1.0, 0.0]])
BAD_INPUT = {
    "not square": (lambda: probe_variance(np.ones((2, 3)), (), 1), "square"),
    "not symmetric": (lambda: probe_variance(SKEW, (), 1), "not symmetric"),
    "not symmetric symbols": (
        lambda: probe_variance(sp.Matrix(2, 2, sp.symbols("a b c d")), (), 1),
        "not symmetric",
    ),
    "NaN block": (lambda: probe_variance(NAN, (), 1), "not finite"),
    "infinite tensor": (lambda: probe_variance(torch.full((2, 2), math.inf), (), 1), "not finite"),
    "infinite diagonal": (lambda: rademacher_advantage(np.diag([1.0, math.inf])), "not finite"),
    "NaN cross block": (lambda: probe_variance(EYE, [NAN], 1), "NaN"),
    "transposed cross block": (lambda: probe_variance(EYE, [np.ones((3, 2))], 1), "H_lm, not H_ml"),
    "excess kurtosis": (lambda: probe_variance(EYE, (), 0), "E z⁴"),
    "rows left over": (lambda: probe_covariance_matrix(EYE, {"a": [0]}, 1), "exactly once"),
    "rows owned twice": (
        lambda: probe_covariance_matrix(EYE, {"a": [0, 1], "b": [1]}, 1),
        "exactly once",
    ),
    "empty block": (
        lambda: probe_covariance_matrix(EYE, {"a": [0, 1], "b": []}, 1),
        "empty blocks",
    ),
    "mask": (lambda: quadratic_form(EYE, np.array([True, False])), "turn a mask"),
    "row out of range": (lambda: quadratic_form(EYE, [2]), "0 to 1"),
    "sphere of the block": (lambda: sphere_variance(EYE, (), 1), "ALL parameters"),
    "no layers": (lambda: crossover_margin(EYE, (), 0, 1), "num_layers"),
    "flat U": (lambda: tied_bias(np.eye(4)), "T, n, T, n"),
    "indefinite U": (lambda: tied_bias_bounds(np.diag([1.0, -1.0]).reshape(2, 1, 2, 1)), "U ⪰ 0"),
    "one sample": (lambda: finite_population_factor(1, 1), "num_samples"),
    "no sample": (lambda: finite_population_factor(0, 5), "batch_size"),
    "batch above n": (lambda: finite_population_factor(6, 5), "replacement=True"),
    "no probe": (lambda: total_variance(1.0, 1.0, 0), "num_probes"),
    "negative variance": (lambda: total_variance(1.0, -1.0, 2), "batch_variance"),
    "NaN variance": (lambda: total_variance(math.nan, 1.0, 2), "mean_batch_probe_variance"),
    "no batch noise": (lambda: critical_num_probes(1.0, 0.0), "full batch"),
    "full batch": (lambda: critical_num_probes_of_batch(1.0, 1.0, 1.0, 5, 5), "b < n"),
    "free probes": (lambda: cost_optimal_num_probes(1.0, 0.0, 3.0), "cost_per_probe"),
    "no budget": (lambda: budget_variance(1.0, 1.0, 1, 1.0, 1.0, 0.0), "budget"),
    "one batch": (lambda: anova(np.ones((1, 5))), "batches × probes"),
    "few numbers": (lambda: anova(np.eye(2)), "draw more"),
    "no probe noise": (lambda: anova(np.ones((3, 3))), "K\\* = 0"),
    "bias without mean": (lambda: anova_inverse_bias(1.0, 2, 2), "no mean"),
    "no samples": (lambda: per_sample_probe_variance([]), "one per sample"),
    "no Gram matrix": (lambda: logit_probe_variance([], 1), "every sample"),
    "no Gram matrix of a batch": (lambda: summed_logit_probe_variance([], 1), "every batch"),
    "Gram matrices of other samples": (lambda: ggn_squared_norm(EYE, np.eye(3)), "same samples"),
    "dead layer": (lambda: ggn_coupling(EYE, 0 * EYE), "dead layers"),
    "more probes than parameters": (lambda: orthogonal_probe_variance(1.0, 4, 3), "at most P"),
    "level": (lambda: num_probes_chebyshev(1.0, 0.1, 1.0), "level must lie in"),
    "level in per cent": (lambda: num_probes_normal(1.0, 0.1, 5), "chance of failure"),
    "error": (lambda: num_probes_normal(1.0, 0.0, 0.05), "absolute"),
    "swapped norms": (
        lambda: num_probes_subexponential(1.0, 2.0, 0.1, 0.05, GAUSSIAN_TAIL),
        "swapped",
    ),
    "missing moment": (
        lambda: expectation(sp.Symbol("z") ** 6, [sp.Symbol("z")], NORMAL),
        "add them to moments",
    ),
    "no symbols": (lambda: symmetric_symbols(0), "at least one row"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_names_its_cure(case):
    call, message = BAD_INPUT[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_rounding_is_not_asymmetry():
    H = torch.from_numpy(random_symmetric(50, 0)).float()
    H[0, 1] *= 1 + 1e-5
    assert probe_variance(H, (), 1) > 0


def test_imports_stay_behind_the_wall():
    """A prediction is never computed from what it predicts, and importing the formulas costs numpy alone."""
    tree = ast.parse(Path(theory.__file__).read_text())
    everywhere = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    everywhere |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    on_import = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    assert not any(name.startswith("hesstheory") for name in everywhere)
    assert on_import == {"math", "numpy"}
