"""Claim T17: negative traces, negative estimates of positive traces, and the norms that tail bounds
need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, repeat

import numpy as np
import sympy
import torch
from scipy import integrate, special, stats
from torch import Tensor, nn

from hesstheory import theory, zoo
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import ggn, hessian
from hesstheory.estimators.enumerations import all_signs
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.evidence.symbolic import symbolic
from hesstheory.problem.risk import Problem
from hesstheory.run.streams import stream
from hesstheory.zoo.initial import blank
from hesstheory_validation.magnitudes import EPS, absolute_rows, roundings
from hesstheory_validation.signs import wrong
from hesstheory_validation.subjects import Formula, MatrixOf


# --- negative traces ------------------------------------------------------------------------------
class Squared(nn.Module):
    """x ↦ x²."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


def _bent_line() -> Problem:
    """f = w₂ (w₁ x)² at w = (0, 1) with x = y = 1 and loss ½(f − y)²: ∂²R/∂w₁² = (f − y)·2w₂ =
    −2."""
    model = nn.Sequential(*(blank(nn.Linear, 1, 1, bias=False) for _ in range(2))).double()
    model.insert(1, Squared())
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[2].weight)
    one = torch.ones(1, 1, dtype=torch.float64)
    return Problem(model, zoo.half_squared_error, [(one, one)])


def dense_hessian(problem: Problem) -> Tensor:
    """H."""
    return hessian(problem).to_dense()


def shipped_case(number: int) -> Case:
    """tiny_mlp drawn from a stream that no seed of a run moves."""
    return Case("tiny_mlp", f"point {number}", zoo.problem("tiny_mlp", stream(number, "signs")))


@claim(
    "T17",
    "Signs matter: diagonal blocks of smooth networks can have a negative trace. Those of "
    "piecewise linear networks cannot.",
    formula=r"\operatorname{tr}H_{ll}<0",
    reason="the residual f − y times the curvature of the activation has either sign; "
    "where the outputs are linear in "
    "each weight, tr H_ll = tr G_ll ≥ 0 (G1)",
    rests_on=["G1"],
    subject=dense_hessian,
    mutants=[wrong.gauss_newton_matrix, wrong.positive_part, wrong.absolute_curvature],
)
def traces_can_be_negative(matrix: MatrixOf, context: Context) -> Iterator[Check]:
    """Points with a negative trace, and networks that cannot have one."""
    yield exact(
        "w₂(w₁x)² at w = (0, 1), x = y = 1: tr H_11 = −2", matrix(_bent_line())[0, 0], -2.0, terms=4
    )
    yield _first_negative(matrix)
    names = [name for name, network in zoo.SMALL.items() if network.piecewise_linear]
    for case in context.cases(names if context.profile != "smoke" else ["tiny_relu"]):
        traces = {l: float(case.block(l, l).trace()) for l in case.problem.index}
        lowest = min(traces, key=traces.__getitem__)
        bound = roundings(case, 1) * EPS * float(absolute_rows(case).max())
        yield holds(
            f"{case}: no negative trace",
            traces[lowest] >= -bound,
            f"lowest {traces[lowest]:.3g} in {lowest}",
        )


NUM_POINTS = 40


def _first_negative(matrix: MatrixOf) -> Check:
    """The first of the shipped points of a tanh network at which a layer has a negative trace."""
    for number in range(NUM_POINTS):
        case = shipped_case(number)
        H = matrix(case.problem)
        for l, index in case.problem.index.items():
            trace = float(H[index, index].sum())
            size = float(H[index].abs().sum())
            if trace < -roundings(case, 1) * EPS * size:
                return holds(
                    f"a point of {NUM_POINTS} of a tanh network with a negative trace",
                    True,
                    f"tr H_ll = {trace:.6g} in {l} of "
                    f'zoo.problem("tiny_mlp", stream({number}, "signs"))',
                )
    return holds(f"a point of {NUM_POINTS} of a tanh network with a negative trace", False, "none")


# --- negative estimates ---------------------------------------------------------------------------
@claim(
    "T17.a",
    "q_l is the quadratic form of A_l = (E_l H + H E_l)/2. A_l is indefinite whenever a cross "
    "block is not zero, even for H ⪰ 0. A single estimate can therefore be negative where the "
    "trace is positive.",
    formula=r"q_l=z^{\top}A_lz,\quad A_l=\tfrac12(E_lH+HE_l),\quad "
    r"\lVert A_l\rVert^2=\lVert H_{ll}\rVert^2+\tfrac12\sum_{m\neq l}\lVert H_{lm}\rVert^2",
    reason="A_l has a zero block on the other layers. A symmetric matrix with a zero on its "
    "diagonal "
    "and anything beside it is indefinite.",
    subject=theory.quadratic_form,
    mutants=[
        wrong.form_of_the_block,
        wrong.form_not_symmetrised,
        wrong.form_with_whole_cross_blocks,
    ],
    seconds=3,
)
def estimates_can_be_negative(form: Formula, context: Context) -> Iterator[Check]:
    """Symbols, a matrix of two rows, and the lowest eigenvector of every form."""
    H = theory.symmetric_symbols(4)
    z = sympy.Matrix(sympy.symbols("z:4"))
    A = sympy.Matrix(form(H, [0, 1]))
    q = (z[:2, :].T * (H * z)[:2, :])[0]
    yield symbolic("q_l = zᵀA_l z", (z.T * A * z)[0], q)
    norm = theory.squared_norm(H[:2, :2]) + theory.squared_norm(H[:2, 2:]) / 2
    yield symbolic("‖A_l‖² = ‖H_ll‖² + ½ Σ ‖H_lm‖²", theory.squared_norm(A), norm)
    a, c = sympy.symbols("a c", positive=True)
    corner = sympy.Matrix(form(sympy.Matrix([[a, c], [c, c**2 / a]]), [0]))
    yield symbolic("H = [[a, c], [c, c²/a]] ⪰ 0: det A_l = −c²/4 < 0", corner.det(), -(c**2) / 4)
    yield from _two_by_two()
    for case in (shipped_case(0), *context.cases()):
        yield from _gauss_newton_estimates(form, case)


def _two_by_two() -> Iterator[Check]:
    """H = [[1, 2], [2, 4]]: q_0 = 1 + 2 z₀z₁ is −1 for half of the signs, its mean 1."""
    H = torch.tensor([[[1.0, 2.0], [2.0, 4.0]]], dtype=torch.float64)
    problem = zoo.prescribed(H, [1, 1], stream(0, "signs"))
    samples = LayerwiseTrace()(problem, probes=all_signs(2)).samples["block0"]
    yield exact(
        "H = [[1, 2], [2, 4]], all signs: the estimates", np.sort(samples), [-1, -1, 3, 3], terms=16
    )


def _gauss_newton_estimates(form: Formula, case: Case) -> Iterator[Check]:
    """The Gauss-Newton matrix is PSD; the lowest eigenvector of A_l makes a negative estimate of a
    positive trace."""
    G = ggn(case.problem).to_dense()
    for l, index in case.problem.index.items():
        A = form(G, index)
        eigenvalues, vectors = torch.linalg.eigh(A)  # reads one triangle only
        probe = vectors[:, :1] * case.problem.num_params**0.5
        q = float(LayerwiseTrace(matrix=ggn)(case.problem, probes=probe).value[l])
        size = float(G[index].abs().sum()) * float(probe.abs().max()) ** 2
        expected = float(eigenvalues[0]) * case.problem.num_params
        yield exact(
            f"{case}, Gauss-Newton, {l}: q_l of the lowest eigenvector",
            q,
            expected,
            magnitude=size,
            terms=8 * roundings(case, 1),
        )
        bound = 8 * roundings(case, 1) * EPS * size
        trace = float(G[index, index].sum())
        yield holds(
            f"{case}, Gauss-Newton, {l}: negative estimate of a positive trace",
            q < -bound < bound < trace,
            f"q_l = {q:.3g}, trace {trace:.3g}",
        )


# --- tail bounds ----------------------------------------------------------------------------------
def layer_tail_bound(
    H: Tensor, index_l: Tensor, num_probes: int, error: float, constants: theory.TailConstants
) -> float:
    """Bound on P(|mean of K of q_l − tr H_ll| ≥ ε) from the norms of A_l."""
    A = theory.quadratic_form(H, index_l)
    A = A - torch.diag(A.diagonal()) if constants.off_diagonal else A
    frobenius, spectral = (float(torch.linalg.matrix_norm(A, order)) for order in ("fro", 2))
    return theory.tail_bound(num_probes, frobenius, spectral, error, constants)


SIGN_TAILS = {"published": theory.RADEMACHER_TAIL, "sharp": theory.SHARP_RADEMACHER_TAIL}


@claim(
    "T17.b",
    "Tail bounds for one-product estimates need the norms of A_l: with those of H_ll they are "
    "violated.",
    formula=r"\Pr\bigl(|\bar q_l-\operatorname{tr}H_{ll}|\ge\varepsilon\bigr)\le"
    r"2\exp\frac{-K\varepsilon^2}{c_F\lVert A_l\rVert^2+c_2\varepsilon\lVert A_l\rVert_2}",
    source="bound: Cortinovis & Kressner 2021; for layers ours",
    reason="the bounds hold for quadratic forms, and the form is that of A_l",
    rests_on=["T1", "T17.a"],
    subject=layer_tail_bound,
    mutants=[wrong.tail_of_the_block, wrong.tail_of_twice_the_probes, wrong.tail_of_a_normal],
)
def tail_bounds_need_the_whole_form(bound: Formula, context: Context) -> Iterator[Check]:
    """All signs, normal pairs and χ², each against the bound."""
    yield from _integer_form(bound)
    for c in (2.0, 10.0):
        yield _normal_pair(bound, c)
    for K in (1, 4):
        yield _chi_square(bound, 100, K)
    for case in context.cases(["tiny_mlp"]):
        q = LayerwiseTrace()(case.problem, probes=all_signs(case.problem.num_params)).samples
        for l, rows in case.problem.index.items():
            errors = q[l].to_numpy() - float(case.block(l, l).trace())
            weights = np.full(len(errors), 1 / len(errors))
            for name, constants in SIGN_TAILS.items():
                full = f"{case}, {l}, all signs, {name}"
                yield _bounded(full, bound, case.H, rows, 1, errors, weights, constants)


def _integer_form(bound: Formula) -> Iterator[Check]:
    """Means of one to four estimates on a matrix of whole numbers, for all signs."""
    H = _integer_hessian()
    index = torch.arange(2)
    trace = int(H[0, 0] + H[1, 1])
    for K, (values, chances) in enumerate(_means_of_signs(H, index, most=4), 1):
        errors = values - trace
        for name, constants in SIGN_TAILS.items():
            full = f"integer H, all signs, K = {K}, {name}"
            yield _bounded(full, bound, H, index, K, errors, chances, constants)
        full = f"integer H, all signs, K = {K}: norms of H_ll"
        yield _violated(full, H, index, K, errors, chances)


def _integer_hessian() -> Tensor:
    """PSD, B Bᵀ of whole numbers, with weak blocks of two and four and strong cross blocks."""
    B = torch.tensor([[1.0, 0], [0, 1], [3, 1], [-2, 3], [1, -3], [2, 2]], dtype=torch.float64)
    return B @ B.mT


def _means_of_signs(H: Tensor, index: Tensor, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values and probabilities of the mean of K = 1, 2, ... estimates; q_l is a whole number, so
    sums lie on a grid."""
    Z = all_signs(len(H))
    q = (Z[index] * (H @ Z)[index]).sum(0).to(torch.int64).numpy()
    lowest = q.min()
    one = np.bincount(q - q.min()) / len(q)
    for K, total in enumerate(accumulate(repeat(one, most), np.convolve), 1):
        seen = np.flatnonzero(total)
        yield (seen + K * lowest) / K, total[seen]


def _exceedance(errors: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes ε > 0 of the errors that occur, and P(|error| ≥ ε)."""
    sizes = np.abs(errors)
    order = np.argsort(-sizes)
    chance = np.cumsum(probabilities[order])
    sizes = sizes[order]
    # Of equal sizes the last one counts all; sizes that differ by rounding alone are equal.
    last = np.append(sizes[:-1] - sizes[1:] > 1e-9 * sizes[0], True) & (sizes > 1e-9 * sizes[0])
    return sizes[last], chance[last]


def _bounded(
    name: str,
    bound: Formula,
    H: Tensor,
    index: Tensor,
    K: int,
    errors: np.ndarray,
    probabilities: np.ndarray,
    constants: theory.TailConstants,
) -> Check:
    """The bound holds at every error that occurs, and so at every ε, since it falls with ε."""
    sizes, chance = _exceedance(errors, probabilities)
    some = np.unique(np.linspace(0, len(sizes) - 1, 64).astype(int))
    bounds = np.array([bound(H, index, K, float(sizes[i]), constants) for i in some])
    worst = int(np.argmax(chance[some] - bounds))
    return holds(
        name,
        bool((chance[some] <= bounds).all()),
        f"closest: P = {chance[some[worst]]:.3g} ≤ {bounds[worst]:.3g}",
    )


def _violated(
    name: str, H: Tensor, index: Tensor, K: int, errors: np.ndarray, probabilities: np.ndarray
) -> Check:
    """Somewhere the probability exceeds the bound that the norms of H_ll would give."""
    sizes, chance = _exceedance(errors, probabilities)
    claimed = [
        wrong.tail_of_the_block(H, index, K, float(size), theory.RADEMACHER_TAIL) for size in sizes
    ]
    worst = int(np.argmax(chance - claimed))
    return holds(
        f"{name} promise too much",
        chance[worst] > claimed[worst],
        f"P(error ≥ {sizes[worst]:.3g}) = {chance[worst]:.3g}, promised {claimed[worst]:.3g}",
    )


def _normal_pair(bound: Formula, c: float) -> Check:
    """H = [[1, c], [c, c²]] and normal z: q = z₀² + c z₀z₁ is normal given z₀, so its tail is one
    integral."""
    H = torch.tensor([[1.0, c], [c, c * c]], dtype=torch.float64)
    errors = c * np.array([0.1, 0.5, 1, 2, 4, 8, 16])
    chance = [_chance_of_normal_pair(c, float(error)) for error in errors]
    return _below(
        f"H = [[1, {c:g}], [{c:g}, {c * c:g}]], normal probes",
        bound,
        H,
        torch.tensor([0]),
        1,
        errors,
        chance,
    )


def _chi_square(bound: Formula, n: int, K: int) -> Check:
    """H = I of size n and normal z: K times the mean is χ² of nK degrees of freedom, near its
    normal limit, where the constant of the Frobenius norm cannot be improved."""
    errors = np.array([1, 2, 4, 6, 8]) * (2 * n / K) ** 0.5
    total = stats.chi2(n * K)
    chance = [float(total.sf(K * (n + error)) + total.cdf(K * (n - error))) for error in errors]
    H = torch.eye(n, dtype=torch.float64)
    return _below(
        f"H = I of size {n}, normal probes, K = {K}", bound, H, torch.arange(n), K, errors, chance
    )


def _below(
    name: str,
    bound: Formula,
    H: Tensor,
    index: Tensor,
    K: int,
    errors: np.ndarray,
    chance: Sequence[float],
) -> Check:
    """P(|error| ≥ ε) of normal probes against the bound at some ε."""
    bounds = [bound(H, index, K, float(error), theory.GAUSSIAN_TAIL) for error in errors]
    pairs = list(zip(chance, bounds, strict=True))
    return holds(
        name, all(p <= b for p, b in pairs), "; ".join(f"{p:.3g} ≤ {b:.3g}" for p, b in pairs)
    )


def _chance_of_normal_pair(c: float, error: float) -> float:
    """P(|z₀² + c z₀z₁ − 1| ≥ ε) by Simpson's rule on [0, 12]; beyond 12 lies less than 1e-32."""
    x = np.linspace(1e-9, 12, 20_001)
    above = (1 + error - x**2) / (c * x)
    below = (1 - error - x**2) / (c * x)
    density = np.exp(-(x**2) / 2) * (2 / np.pi) ** 0.5
    return float(integrate.simpson(density * (special.ndtr(-above) + special.ndtr(below)), x=x))
