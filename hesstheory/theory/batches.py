"""Probe noise and batch noise, K* and what a budget buys."""

from __future__ import annotations

from hesstheory.theory.matrices import (
    Scalar,
    check_num_probes,
    require,
    require_nonnegative,
    sqrt_of,
)


def finite_population_factor(
    batch_size: Scalar, num_samples: Scalar, replacement: bool = False
) -> Scalar:
    """The factor f with Var(mean of b of n values) = S² f/b, where S² = Σ (x − x̄)²/(n−1).

    f = 1 − b/n without replacement, f = 1 − 1/n with replacement

    The two agree at b = 1. With σ² = S²(n−1)/n the second is the usual σ²/b.

    Parameters
    ----------
    batch_size
        b.
    num_samples
        n; ∞ for a stream of fresh data, where f = 1.
    replacement
        Whether a sample may be drawn twice.

    Returns
    -------
    Scalar
        f, without a unit.

    Raises
    ------
    ValueError
        n < 2, b < 1, or b > n without replacement.

    Notes
    -----
    Cochran 1977, Theorem 2.2.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.finite_population_factor(4, 8), theory.finite_population_factor(4, 8, True)
    (0.5, 0.875)
    """
    b = batch_size
    n = num_samples
    require(
        n >= 2, "num_samples must be >= 2, got {}; one sample has no variance between batches", n
    )
    require(b >= 1, "batch_size must be >= 1, got {}; draw at least one sample", b)
    require(
        replacement or b <= n,
        "batch_size {} exceeds num_samples {}; draw fewer or set replacement=True",
        b,
        n,
    )
    return 1 - 1 / n if replacement else 1 - b / n


def batch_trace_variance(S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False) -> Scalar:
    """Variance of the exact trace of a random mini-batch, the floor of any number of probes.

    Var_B[tr H_B,ll] = S_t² f/b with f = `finite_population_factor(b, n, replacement)`

    Parameters
    ----------
    S_t2
        S_t² = Σ_n (t_n − t̄)²/(n−1) over the per-sample traces t_n.
    b, n
        Samples of a batch, and of the data set.
    replacement
        Whether a sample may be drawn twice.

    Returns
    -------
    Scalar
        In the units of S_t².

    Raises
    ------
    ValueError
        S_t² < 0, or sizes that `finite_population_factor` refuses.

    Notes
    -----
    Claim T10.a.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.batch_trace_variance(8.0, 4, 8)
    1.0
    """
    require_nonnegative(S_t2=S_t2)
    return S_t2 * finite_population_factor(b, n, replacement) / b


def total_variance(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Variance of the mean of K probes that share one mini-batch.

    Var = E_B[V_l(H_B)]/K + Var_B[tr H_B,ll]

    Parameters
    ----------
    mean_batch_probe_variance
        E_B[V_l(H_B)], the variance of one probe in the mean over batches.
    batch_variance
        Var_B[tr H_B,ll].
    num_probes
        K.

    Returns
    -------
    Scalar
        Variance, in the units of H squared.

    Raises
    ------
    ValueError
        A variance is negative, or K < 1.

    Notes
    -----
    Claim T10.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.total_variance(8.0, 1.0, num_probes=4)
    3.0
    """
    check_num_probes(num_probes)
    require_nonnegative(
        mean_batch_probe_variance=mean_batch_probe_variance, batch_variance=batch_variance
    )
    return mean_batch_probe_variance / num_probes + batch_variance


def fresh_batch_variance(
    mean_batch_probe_variance: Scalar, batch_variance: Scalar, num_probes: Scalar
) -> Scalar:
    """Variance of the mean of K probes, each on an independent mini-batch of its own.

    Var = (E_B[V_l(H_B)] + Var_B[tr H_B,ll])/K, without a floor

    Takes the arguments of `total_variance`, and raises as it does.

    Returns
    -------
    Scalar
        Variance, in the units of H squared.

    Notes
    -----
    Claim T15.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.fresh_batch_variance(8.0, 1.0, num_probes=4)
    2.25
    """
    check_num_probes(num_probes)
    require_nonnegative(
        mean_batch_probe_variance=mean_batch_probe_variance, batch_variance=batch_variance
    )
    return (mean_batch_probe_variance + batch_variance) / num_probes


def mean_batch_probe_variance(
    V_of_mean: Scalar, S_q: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """Variance of one probe in the mean over random mini-batches.

    E_B[V(H_B)] = V(H̄) + S_q f/b, S_q = Σ_n V(H_n − H̄)/(n−1)

    It is exact because V is a quadratic form in the matrix. It is never below V(H̄), the
    variance on the full batch.

    Parameters
    ----------
    V_of_mean
        V(H̄).
    S_q
        The spread of the per-sample Hessians.
    b, n
        Samples of a batch, and of the data set.
    replacement
        Whether a sample may be drawn twice.

    Returns
    -------
    Scalar
        Variance, in the units of H squared.

    Raises
    ------
    ValueError
        V or S_q is negative, or sizes that `finite_population_factor` refuses.

    Notes
    -----
    Claim T11.a.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.mean_batch_probe_variance(2.0, 8.0, 4, 8)
    3.0
    """
    require_nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    return V_of_mean + S_q * finite_population_factor(b, n, replacement) / b


def critical_num_probes(probe_variance: Scalar, batch_variance: Scalar) -> Scalar:
    """The number of probes K* at which probe noise equals batch noise.

    K* = E_B[V_l(H_B)]/Var_B[tr H_B,ll]

    Parameters
    ----------
    probe_variance
        The MEAN over batches. V of the full-batch Hessian makes K* too small.
    batch_variance
        Var_B[tr H_B,ll].

    Returns
    -------
    Scalar
        K*, not rounded.

    Raises
    ------
    ValueError
        The batch variance is 0, as on the full batch: there is no floor and K* = ∞.

    Notes
    -----
    Claim T11.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.critical_num_probes(8.0, 2.0)
    4.0
    """
    require_nonnegative(probe_variance=probe_variance)
    require(
        batch_variance > 0,
        "batch_variance must be > 0, got {}; on the full batch K* is infinite",
        batch_variance,
    )
    return probe_variance / batch_variance


def critical_num_probes_of_batch(
    V_of_mean: Scalar, S_q: Scalar, S_t2: Scalar, b: Scalar, n: Scalar, replacement: bool = False
) -> Scalar:
    """K* over the batch size, which it grows with.

    K* = (b·V(H̄)/f + S_q)/S_t²

    Parameters
    ----------
    V_of_mean
        V(H̄), the variance of one probe on the full batch.
    S_q
        Σ_n V(H_n − H̄)/(n−1).
    S_t2
        Σ_n (t_n − t̄)²/(n−1) over the per-sample traces.
    b, n
        Samples of a batch, and of the data set.
    replacement
        Whether a sample may be drawn twice.

    Returns
    -------
    Scalar
        K*, not rounded.

    Raises
    ------
    ValueError
        K* is infinite: the batch is the whole data set, or all samples have one trace.

    Notes
    -----
    Claim T11.b.

    Examples
    --------
    >>> from hesstheory import theory
    >>> [theory.critical_num_probes_of_batch(1.0, 4.0, 2.0, b, 8) for b in (1, 4)]
    [2.571428571428571, 6.0]
    """
    f = finite_population_factor(b, n, replacement)
    require_nonnegative(V_of_mean=V_of_mean, S_q=S_q)
    require(f > 0, "a batch of {} is the whole data set and K* is infinite; ask for b < n", b)
    require(
        S_t2 > 0, "S_t2 must be > 0, got {}; where all samples have one trace K* is infinite", S_t2
    )
    return (b * V_of_mean / f + S_q) / S_t2


def total_variance_curve(floor: Scalar, critical: Scalar, num_probes: Scalar) -> Scalar:
    """The total variance over the number of probes K.

    Var = floor·(1 + K*/K), twice the floor at K = K*

    Parameters
    ----------
    floor
        Var_B[tr H_B,ll].
    critical
        K*.
    num_probes
        K.

    Returns
    -------
    Scalar
        Variance, in the units of the floor.

    Raises
    ------
    ValueError
        The floor or K* is negative, or K < 1.

    Notes
    -----
    Claim T11.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.total_variance_curve(1.0, critical=8.0, num_probes=8)
    2.0
    """
    check_num_probes(num_probes)
    require_nonnegative(floor=floor, critical=critical)
    return floor * (1 + critical / num_probes)


def budget_variance(
    floor: Scalar,
    critical: Scalar,
    num_probes: Scalar,
    overhead: Scalar,
    cost_per_probe: Scalar,
    budget: Scalar,
) -> Scalar:
    """Variance of the mean over the C/(c0 + c1·K) independent mini-batches that C buys.

    Var = floor·(1 + K*/K)·(c0 + c1·K)/C

    Parameters
    ----------
    floor, critical, num_probes
        As in `total_variance_curve`.
    overhead, cost_per_probe
        c0 of a batch and c1 of a probe, in the units of C.
    budget
        C.

    Returns
    -------
    Scalar
        Variance, in the units of the floor.

    Raises
    ------
    ValueError
        C ≤ 0, or a cost is negative.

    Notes
    -----
    Claim T13.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.budget_variance(1.0, 4.0, 4, overhead=4.0, cost_per_probe=1.0, budget=16.0)
    1.0
    """
    require(budget > 0, "budget must be > 0, got {}; give it in the units of the costs", budget)
    require_nonnegative(overhead=overhead, cost_per_probe=cost_per_probe)
    return (
        total_variance_curve(floor, critical, num_probes)
        * (overhead + cost_per_probe * num_probes)
        / budget
    )


def cost_optimal_num_probes(overhead: Scalar, cost_per_probe: Scalar, critical: Scalar) -> Scalar:
    """The K that minimises `budget_variance`.

    K_opt = √(c0/c1 · K*)

    The variance is convex in K. The best count is therefore a neighbouring whole number, or 1.

    Parameters
    ----------
    overhead, cost_per_probe
        c0 of a batch and c1 > 0 of a probe, in one unit.
    critical
        K*.

    Returns
    -------
    Scalar
        K_opt, not rounded.

    Raises
    ------
    ValueError
        Probes are free, or c0 or K* is negative.

    Notes
    -----
    Claim T13.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.cost_optimal_num_probes(overhead=4.0, cost_per_probe=1.0, critical=9.0)
    6.0
    """
    require_nonnegative(overhead=overhead, critical=critical)
    require(
        cost_per_probe > 0,
        "cost_per_probe must be > 0, got {}; free probes have no optimum",
        cost_per_probe,
    )
    return sqrt_of(overhead / cost_per_probe * critical)
