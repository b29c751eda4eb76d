"""The closed forms, proved by sympy for the functions that the code calls."""

import itertools

import numpy as np
import pytest
import sympy as sp
from layered_matrices import (
    ANY_PROBE,
    KAPPA,
    PARTITIONS,
    blocks_of,
    cut,
    is_zero,
    random_symmetric,
    single_estimates,
    sphere_expectation,
    variance,
)

from hesstheory.theory import (
    batch_trace_variance,
    budget_variance,
    cost_optimal_num_probes,
    critical_num_probes,
    critical_num_probes_of_batch,
    expectation,
    fresh_batch_variance,
    mean_batch_probe_variance,
    orthogonal_probe_variance,
    probe_covariance_matrix,
    probe_variance,
    quadratic_form,
    rademacher_advantage,
    sphere_variance,
    squared_norm,
    symmetric_symbols,
    tied_bias,
    total_variance,
    total_variance_curve,
)


@pytest.mark.parametrize("sizes", PARTITIONS, ids=str)
class TestOneProbe:
    @pytest.fixture
    def algebra(self, sizes):
        P = sum(sizes)
        H = symmetric_symbols(P)
        z = sp.Matrix(sp.symbols(f"z:{P}", real=True))
        blocks = blocks_of(sizes)
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
    H = random_symmetric(4, 0)
    index = [0, 2]
    A = quadratic_form(H, index)
    assert np.isclose(np.mean([4 * A[i, i] for i in range(4)]), H[0, 0] + H[2, 2], rtol=1e-12)


def test_tied_bias_and_its_cure():
    """T7: independent probes per instance miss the cross blocks; one probe copied to all instances
    does not."""
    T = 2
    n = 2
    U = np.array(symmetric_symbols(T * n).tolist(), dtype=object).reshape(T, n, T, n)
    z = np.array(sp.symbols(f"z:{T * n}"), dtype=object).reshape(T, n)
    truth = sum(U[r, i, s, i] for r in range(T) for s in range(T) for i in range(n))

    def mean(probe):
        form = sum(probe[r, i] * U[r, i, s, j] * probe[s, j] for r, i, s, j in np.ndindex(U.shape))
        return expectation(form, list(z.ravel()), ANY_PROBE)

    assert is_zero(mean(z) - truth - tied_bias(U))
    assert is_zero(mean(np.stack([z[0], z[0]])) - truth)


def test_critical_count():
    """T11: total = floor·(1 + K*/K), twice the floor at K*; K* over the batch size."""
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
    """T20: given the first, E[vvᵀ] = (P·I − uuᵀ)/(P−1) for the second, which fixes their covariance
    at −V/(P−1)."""
    P = 3
    index = [0, 2]
    H = symmetric_symbols(P)
    u = sp.Matrix(sp.symbols("u:3"))
    A = quadratic_form(H, index)
    q = sp.expand((u.T * A * u)[0])
    trace = A.trace()
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
