"""Variance and covariance of the estimates from one product."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hesstheory.theory.matrices import (
    Matrix,
    Scalar,
    block_rows,
    checked_symmetric,
    constant_like,
    cross_term,
    diagonals,
    off_diagonal,
    require,
    squared_norm,
    sum_of_squares,
)


def probe_variance(H_ll: Matrix, cross_blocks: Iterable[Matrix], kurtosis: Scalar) -> Scalar:
    """Variance of the estimate q_l = z_lᵀ(Hz)_l of tr H_ll from one full-vector probe.

    Var q_l = 2‖H_ll‖² + (κ−3) Σ_i H_ii² + Σ_{m≠l} ‖H_lm‖²

    It is computed as 2‖off-diagonal‖² + (κ−1) Σ H_ii² + …, in which no terms cancel.

    Parameters
    ----------
    H_ll
        Diagonal block, p×p and symmetric. A stack …×p×p gives the variance of each.
    cross_blocks
        H_lm for every other layer m, p×p_m. None of them for a probe that is zero outside
        layer l, and for the classical Var zᵀHz of the whole matrix.
    kurtosis
        κ = E z⁴ of the probe's entries: 1 for signs, 3 for normal ones.

    Returns
    -------
    Scalar
        Variance, in the units of H squared.

    Raises
    ------
    ValueError
        H_ll is not symmetric, a block has other rows, or κ < 1.

    Notes
    -----
    Claim T2.

    Examples
    --------
    >>> from hesstheory import theory
    >>> float(theory.probe_variance([[1.0, 2.0], [2.0, 4.0]], [[[3.0], [0.0]]], kurtosis=1))
    25.0
    """
    H_ll = checked_symmetric(H_ll, stack=True)
    require(
        kurtosis >= 1,
        "kurtosis is E z⁴ (Rademacher 1, Gaussian 3), never below 1: got {}, an excess?",
        kurtosis,
    )
    off = 2 * sum_of_squares(off_diagonal(H_ll), 2)
    own = off + (kurtosis - 1) * sum_of_squares(diagonals(H_ll), 1)
    return own + cross_term(H_ll, cross_blocks)


def probe_variance_from_norms(
    squared_norm: Scalar, diagonal_squares: Scalar, cross_squares: Scalar, kurtosis: Scalar
) -> Scalar:
    """Variance of one full-vector probe from three norms of the layer's rows.

    Var q_l = 2‖H_ll‖² + (κ−3) Σ_i H_ii² + Σ_{m≠l} ‖H_lm‖²

    Parameters
    ----------
    squared_norm
        ‖H_ll‖².
    diagonal_squares
        Σ_i H_ii² over the layer's parameters.
    cross_squares
        Σ_{m≠l} ‖H_lm‖²; 0 for a probe that is zero outside layer l.
    kurtosis
        κ = E z⁴ of the probe's entries.

    Returns
    -------
    Scalar
        Variance, in the units of H squared. Arrays of norms give an array.

    Notes
    -----
    Claim T2.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.probe_variance_from_norms(25.0, 17.0, 9.0, kurtosis=1)
    25.0
    """
    off_diagonal_squares = squared_norm - diagonal_squares
    return 2 * off_diagonal_squares + (kurtosis - 1) * diagonal_squares + cross_squares


def probe_covariance(H_lm: Matrix) -> Scalar:
    """Covariance of the estimates of two layers from one probe.

    Cov(q_l, q_m) = ‖H_lm‖² for l ≠ m, whatever κ

    Parameters
    ----------
    H_lm
        Block of rows of layer l and columns of layer m.

    Returns
    -------
    Scalar
        Covariance, in the units of H squared.

    Notes
    -----
    Claim T3.

    Examples
    --------
    >>> from hesstheory import theory
    >>> float(theory.probe_covariance([[3.0], [4.0]]))
    25.0
    """
    return squared_norm(H_lm)


def probe_covariance_matrix(H: Matrix, index: Mapping[str, Matrix], kurtosis: Scalar) -> Matrix:
    """Covariance matrix of the estimates (q_1, …, q_L) of all layers from one probe.

    C_ll = Var q_l (T2), C_lm = ‖H_lm‖² (T3); the entries sum to Var zᵀHz

    Parameters
    ----------
    H
        The whole matrix, P×P and symmetric.
    index
        The rows that each block owns, in any order.
    kurtosis
        κ = E z⁴ of the probe's entries.

    Returns
    -------
    Matrix
        L×L, in the order of `index`.

    Raises
    ------
    ValueError
        A row has no block, or more than one.

    Notes
    -----
    Claims T2 and T3.

    Examples
    --------
    >>> from hesstheory import theory
    >>> H = [[1.0, 2.0, 3.0], [2.0, 4.0, 0.0], [3.0, 0.0, 5.0]]
    >>> theory.probe_covariance_matrix(H, {"a": [0, 1], "b": [2]}, kurtosis=1).tolist()
    [[25.0, 9.0], [9.0, 9.0]]
    """
    A = checked_symmetric(H)
    rows = [block_rows(i) for i in index.values()]
    if sorted(i for r in rows for i in r.tolist()) != list(range(len(A))):
        raise ValueError(
            f"index must own each of the {len(A)} rows of H exactly once; complete the partition"
        )
    C = A[: len(rows), : len(rows)] * 0
    for a, own in enumerate(rows):
        row = [A[own][:, other] for other in rows]
        for b, H_ab in enumerate(row):
            others = row[:a] + row[a + 1 :]
            C[a, b] = probe_variance(H_ab, others, kurtosis) if a == b else probe_covariance(H_ab)
    return constant_like(C, H)


def rademacher_advantage(H_ll: Matrix) -> Scalar:
    """Variance that sign probes save against normal probes.

    Var_Gauss q_l − Var_Rademacher q_l = 2 Σ_{i∈l} H_ii² ≥ 0

    Parameters
    ----------
    H_ll
        Diagonal block, p×p and symmetric.

    Returns
    -------
    Scalar
        Difference of variances, in the units of H squared.

    Notes
    -----
    Claim T4.

    Examples
    --------
    >>> from hesstheory import theory
    >>> float(theory.rademacher_advantage([[1.0, 2.0], [2.0, 4.0]]))
    34.0
    """
    return 2 * squared_norm(checked_symmetric(H_ll).diagonal())


def sphere_variance(H_ll: Matrix, cross_blocks: Iterable[Matrix], num_params: Scalar) -> Scalar:
    """Variance of q_l for z uniform on the sphere of radius √P in all P parameters.

    Var q_l = P/(P+2)·(2‖H_ll‖² + Σ_{m≠l} ‖H_lm‖²) − 2/(P+2)·(tr H_ll)²

    It is computed with ‖H_ll‖² = ‖H_ll − (t/p)I‖² + t²/p, t the trace, so that nothing cancels.

    Parameters
    ----------
    H_ll
        Diagonal block, p×p and symmetric.
    cross_blocks
        H_lm for every other layer m.
    num_params
        P, the parameters of all layers together.

    Returns
    -------
    Scalar
        Variance, in the units of H squared.

    Raises
    ------
    ValueError
        P < p.

    Notes
    -----
    Claim T5.

    Examples
    --------
    >>> from hesstheory import theory
    >>> float(theory.sphere_variance([[1.0, 0.0], [0.0, 3.0]], [], num_params=2))
    2.0
    """
    H_ll = checked_symmetric(H_ll)
    P = num_params
    p = len(H_ll)
    require(
        p <= P,
        "num_params counts ALL parameters of the probe: got {}, fewer than the {} of this block",
        P,
        p,
    )
    t = H_ll.diagonal().sum()
    spread = (
        squared_norm(off_diagonal(H_ll))
        + squared_norm(H_ll.diagonal() - t / p)
        + (t * t / p - t * t / P)
    )
    return (2 * spread + cross_term(H_ll, cross_blocks)) * P / (P + 2)


def sphere_variance_from_norms(
    squared_norm: Scalar, trace: Scalar, cross_squares: Scalar, num_params: Scalar
) -> Scalar:
    """`sphere_variance` from norms of the layer's rows.

    Var q_l = P/(P+2)·(2‖H_ll‖² + Σ_{m≠l} ‖H_lm‖²) − 2/(P+2)·(tr H_ll)²

    Parameters
    ----------
    squared_norm
        ‖H_ll‖².
    trace
        tr H_ll.
    cross_squares
        Σ_{m≠l} ‖H_lm‖².
    num_params
        P, the parameters of all layers together.

    Returns
    -------
    Scalar
        Variance, in the units of H squared. Where H_ll is close to a multiple of the identity the
        two terms cancel, and `sphere_variance` is the accurate one.

    Notes
    -----
    Claim T5.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.sphere_variance_from_norms(10.0, 4.0, 0.0, num_params=2)
    2.0
    """
    P = num_params
    return (P * (2 * squared_norm + cross_squares) - 2 * trace**2) / (P + 2)


def quadratic_form(H: Matrix, index_l: Matrix) -> Matrix:
    """The matrix A_l of the estimate from one product, q_l = zᵀA_l z.

    A_l = (E_l H + H E_l)/2 with E_l the projector on layer l,
    ‖A_l‖² = ‖H_ll‖² + ½ Σ_{m≠l} ‖H_lm‖²

    A_l is indefinite whenever a cross block is not zero, even for H ⪰ 0. Tail bounds of q_l
    therefore need the norms of A_l. The norms of H_ll are not enough.

    Parameters
    ----------
    H
        The whole matrix, P×P and symmetric.
    index_l
        Distinct rows of layer l.

    Returns
    -------
    Matrix
        A_l, P×P.

    Raises
    ------
    ValueError
        A row number is out of range, or occurs twice.

    Notes
    -----
    Claim T17.

    Examples
    --------
    >>> from hesstheory import theory
    >>> theory.quadratic_form([[1.0, 2.0], [2.0, 4.0]], [0]).tolist()
    [[1.0, 1.0], [1.0, 0.0]]
    """
    A = checked_symmetric(H)
    index = block_rows(index_l)
    if not set(index.tolist()) <= set(range(len(A))) or len(set(index.tolist())) < len(index):
        raise ValueError(
            f"index_l must hold distinct rows of H, 0 to {len(A) - 1}, got {index.tolist()}"
        )
    e = A.diagonal() * 0
    e[index] = 1
    return constant_like(A * (e[:, None] + e[None, :]) / 2, H)
