"""Data types, families of matrices, bad input and imports."""

import ast
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import sympy as sp
import torch
from layered_matrices import (
    NORMAL,
    cut,
    random_symmetric,
)

from hesstheory import theory
from hesstheory.theory import (
    GAUSSIAN_TAIL,
    anova,
    anova_inverse_bias,
    budget_variance,
    cost_optimal_num_probes,
    critical_num_probes,
    critical_num_probes_of_batch,
    crossover_margin,
    expectation,
    finite_population_factor,
    ggn_coupling,
    ggn_squared_norm,
    logit_probe_variance,
    num_probes_chebyshev,
    num_probes_normal,
    num_probes_subexponential,
    orthogonal_probe_variance,
    per_sample_probe_variance,
    probe_covariance,
    probe_covariance_matrix,
    probe_variance,
    quadratic_form,
    rademacher_advantage,
    sphere_variance,
    summed_logit_probe_variance,
    symmetric_symbols,
    tied_bias,
    tied_bias_bounds,
    total_variance,
    total_variance_curve,
)

FILES = sorted(Path(theory.__file__).parent.glob("*.py"))


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


EYE = np.eye(2)
ONES = np.ones((2, 2))
NAN = np.array([[1.0, math.nan], [math.nan, 1.0]])
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


def imports_of(body):
    """Modules that these statements import."""
    names = {a.name for n in body if isinstance(n, ast.Import) for a in n.names}
    return names | {n.module for n in body if isinstance(n, ast.ImportFrom)}


def test_imports_stay_behind_the_wall():
    """A prediction is never computed from what it predicts; the formulas import numpy alone."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        ours = {name for name in imports_of(list(ast.walk(tree))) if name.startswith("hesstheory")}
        assert all(name.startswith("hesstheory.theory") for name in ours)
        standard = {"__future__", "collections.abc", "dataclasses", "math", "statistics", "typing"}
        assert imports_of(tree.body) - ours <= standard | {"numpy"}


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_a_stack_of_blocks_gives_the_variance_of_each(make):
    stack = make(np.stack([random_symmetric(4, seed) for seed in range(5)]))
    found = probe_variance(stack[:, :2, :2], [stack[:, :2, 2:3], stack[:, :2, 3:]], 1.5)
    each = [probe_variance(H[:2, :2], [H[:2, 2:3], H[:2, 3:]], 1.5) for H in stack]
    assert found.tolist() == [float(V) for V in each]


def test_one_asymmetric_matrix_of_a_stack_is_refused():
    stack = np.stack([EYE, EYE + 1e6, SKEW])
    with pytest.raises(ValueError, match="not symmetric"):
        probe_variance(stack, (), 1)
    with pytest.raises(ValueError, match="H_lm, not H_ml"):
        probe_variance(stack[:2], [np.ones((3, 2, 1))], 1)
    with pytest.raises(ValueError, match="square"):
        sphere_variance(stack[:2], (), 2)


def test_every_public_name_comes_through_the_door():
    assert all(hasattr(theory, name) for name in theory.__all__)
    files = [import_module(f"hesstheory.theory.{p.stem}") for p in FILES if p.stem != "__init__"]
    public = {
        name
        for file in files
        if file.__name__.rpartition(".")[2] != "matrices"  # its tools are for the wing itself
        for name, value in vars(file).items()
        if getattr(value, "__module__", None) == file.__name__ and not name.startswith("_")
    }
    assert public <= set(theory.__all__)
