"""The closed forms on every sign vector and every batch."""

import itertools
import math

import numpy as np
import pytest
import sympy as sp
import torch
from layered_matrices import (
    PARTITIONS,
    blocks_of,
    cut,
    random_symmetric,
    signs,
)

from hesstheory.theory import (
    batch_trace_variance,
    crossover_margin,
    finite_population_factor,
    full_vector_wins,
    ggn_coupling,
    ggn_squared_norm,
    logit_probe_variance,
    mean_batch_probe_variance,
    orthogonal_probe_variance,
    per_sample_probe_variance,
    per_sample_probes_win,
    probe_covariance_matrix,
    probe_variance,
    quadratic_form,
    sphere_variance,
    squared_norm,
    summed_logit_probe_variance,
    tied_bias,
    tied_bias_bounds,
    total_variance,
)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("sizes", PARTITIONS, ids=str)
def test_rademacher_moments_by_enumeration(sizes, make):
    P = sum(sizes)
    blocks = blocks_of(sizes)
    shuffle = np.random.default_rng(3).permutation(P)
    blocks = [shuffle[b] for b in blocks]  # a partition in any order
    H = random_symmetric(P, 1)
    z = signs(P)
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
    n = 3
    l = [0, 1]
    K = 2
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

    H_bar = H.mean(0)
    t = np.trace(H[:, :2, :2], axis1=1, axis2=2)
    S_q = sum(V(M - H_bar) for M in H) / (n - 1)
    probe_noise = mean_batch_probe_variance(V(H_bar), S_q, b, n, replacement)
    floor = batch_trace_variance(t.var(ddof=1), b, n, replacement)
    assert np.isclose(probe_noise, np.mean([V(B) for B in batches]), rtol=1e-12)
    assert np.isclose(floor, q.mean(1).var(), rtol=1e-12, atol=1e-14)
    assert np.isclose(total_variance(probe_noise, floor, K), estimates.var(), rtol=1e-12)


def test_replacement_factor_is_the_population_variance_in_disguise():
    S2 = 7.0
    n = 5
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
    """T20, on all signs and all ordered pairs of columns; the first two columns may gain nothing at
    all."""
    P = 4
    H = random_symmetric(4, 2)
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
    H = random_symmetric(4, 5)
    blocks = [[0, 1], [2, 3]]
    flips = np.array([[1, 1], [1, -1]])
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
    B = rng.normal(size=(5, 3))
    C = rng.normal(size=(5, 4))
    norms = [np.linalg.norm(X) for X in (B.T @ C, B.T @ B, C.T @ C)]
    for family in (np.asarray, torch.from_numpy):
        M_l = family(B @ B.T)
        M_m = family(C @ C.T)
        assert np.isclose(float(ggn_squared_norm(M_l, M_m)), norms[0] ** 2, rtol=1e-12)
        assert np.isclose(
            float(ggn_coupling(M_l, M_m)), norms[0] ** 2 / (norms[1] * norms[2]), rtol=1e-12
        )
        assert np.isclose(float(ggn_coupling(M_l, M_l)), 1, rtol=1e-12)
    assert ggn_coupling(sp.eye(2), 3 * sp.eye(2)) == 1
    assert ggn_coupling(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == 0
