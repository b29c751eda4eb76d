"""The estimate of K* by analysis of variance."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from hesstheory.theory import (
    anova,
    anova_inverse_bias,
)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_anova_is_the_textbook_one(make):
    q = np.random.default_rng(5).normal(size=(4, 6)) + np.arange(4)[:, None]
    result = anova(make(q))
    F = scipy.stats.f_oneway(*q).statistic
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
    """A quadratic form has mean Σ form(column) over any root of the covariance; rotated, so that
    none is degenerate."""
    M = 3
    K = 4
    within = 2.0
    between = 0.7
    covariance = within * np.eye(M * K) + between * np.kron(np.eye(M), np.ones((K, K)))
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(M * K, M * K)))[0]
    roots = (np.linalg.cholesky(covariance) @ rotation).T
    results = [anova(column.reshape(M, K)) for column in roots]
    assert np.isclose(sum(r.within for r in results), within, rtol=1e-10)
    assert np.isclose(sum(r.between for r in results), between, rtol=1e-10)


@pytest.mark.parametrize("rho", [0.0, 0.3, 5.0])
def test_anova_bias_of_the_inverse(rho):
    """T14: F/(1 + Kρ) is F-distributed for normal data; the correction removes the bias exactly."""
    M = 5
    K = 3
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
