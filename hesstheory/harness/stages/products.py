"""What a Hessian product must be whatever the network: symmetric, linear, a derivative."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hesstheory.curvature.matrix import hessian
from hesstheory.evidence.checks import Check
from hesstheory.harness.stages.checks import at_most
from hesstheory.harness.stages.stage import Found, Stage
from hesstheory.harness.stages.unit import flat_gradient
from hesstheory.harness.subject import Subject
from hesstheory.problem.risk import Problem

# ‖hv‖/‖θ‖ of central differences: the shorter, the fewer kinks lie between, and the more rounding
# counts. The best of them is taken.
_STEPS = (1e-8, 1e-9, 1e-10, 1e-11)
_ROUNDING_OF_PRODUCTS = 84  # eps: see `asymmetry_of_rounding`


def asymmetry_of_rounding(problem: Problem) -> float:
    """What |uᵀHv − vᵀHu|/‖H‖_F may be by rounding alone, for signs u and v.

    A product errs by c·eps of its dtype, relatively, and a sign vector meets the norm of that
    error. In the full-scale runs of `reports/harness` c is 22 at most; four times that is allowed.
    The inner products are sums of P float64 terms, Σ|u_i (Hv)_i| ≤ √P ‖Hv‖. Their own rounding
    adds √P·eps.
    """
    of_products = _ROUNDING_OF_PRODUCTS * torch.finfo(problem.dtype).eps
    of_sums = math.sqrt(problem.num_params) * torch.finfo(torch.float64).eps
    return of_products + of_sums


def products(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """Hessian products with two sign probes: symmetry, linearity, float64, central differences."""
    problem = subject.problem
    u, v = (subject.probes([k], "products")[:, 0].to(problem.dtype) for k in (0, 1))
    Hu = subject.product(hessian, u)
    Hv = subject.product(hessian, v)
    stage = Stage(checks=[_symmetry(problem, (u, v), (Hu, Hv)), _linearity(subject, u, v, Hu, Hv)])
    double = in_double(subject)
    Hv64 = Hv
    if problem.dtype != torch.float64:
        Hv64 = subject.product(hessian, v.double(), double)
        stage.checks.append(_beside_float64(Hv, Hv64, before["kinks"]["found"]))
    wrong = {}
    for step in _STEPS:
        difference = _central_difference(subject, double, v.double(), step)
        wrong[step] = float((difference - Hv64).norm() / Hv64.norm())
    stage.checks.append(_central_differences(wrong))
    stage.found["central_differences"] = {f"{step:g}": error for step, error in wrong.items()}
    return stage


def _symmetry(problem: Problem, pair: tuple[Tensor, Tensor], of: tuple[Tensor, Tensor]) -> Check:
    """uᵀHv beside vᵀHu."""
    u, v = pair
    Hu, Hv = of
    size = math.sqrt(float(Hu.norm() * Hv.norm()))  # E‖Hv‖² = ‖H‖_F², the variance of uᵀHv
    asymmetry = abs(float(u.double() @ Hv - v.double() @ Hu)) / size
    bound = asymmetry_of_rounding(problem)
    return at_most("symmetry", asymmetry, bound, "|uᵀHv − vᵀHu|/‖H‖_F")


def _linearity(subject: Subject, u: Tensor, v: Tensor, Hu: Tensor, Hv: Tensor) -> Check:
    """A product with u/2 + 2v, whose factors are no roundings; half the digits must agree."""
    mixed = subject.product(hessian, u / 2 + 2 * v)
    nonlinear = float((mixed - (Hu / 2 + 2 * Hv)).norm() / mixed.norm())
    half = torch.finfo(subject.problem.dtype).eps ** 0.5
    return at_most("linearity", nonlinear, half, "‖H(u/2 + 2v) − Hu/2 − 2Hv‖/‖·‖")


def _beside_float64(Hv: Tensor, Hv64: Tensor, kinks: Mapping[str, float]) -> Check:
    """A product of low precision, up to what switched units change (`kinks`)."""
    rounding = float((Hv - Hv64).norm() / Hv64.norm())
    what = f"‖Hv − H₆₄v‖/‖H₆₄v‖, {kinks['flipped']} units switched"
    return at_most("agreement with float64", rounding, kinks["tolerance"], what)


def _central_differences(wrong: Mapping[float, float]) -> Check:
    """The best step must agree to half the digits of float32.

    In float64 rounding and curvature leave errors near eps^(2/3) = 4e-11. Kinks between θ ± hv
    leave more: up to 7e-6 in the full-scale runs of `reports/harness`.
    """
    best = min(wrong, key=lambda step: wrong[step])
    what = f"‖(∇R(θ+hv) − ∇R(θ−hv))/2h − Hv‖/‖Hv‖ in float64, ‖hv‖ = {best:g} ‖θ‖"
    half = torch.finfo(torch.float32).eps ** 0.5
    return at_most("central differences", wrong[best], half, what)


def in_double(subject: Subject) -> Problem:
    """A float64 problem whose parameters may be moved."""
    problem = subject.problem
    if problem.dtype != torch.float64:
        return problem.double()
    return Problem(copy.deepcopy(problem.model), problem.loss_fn, problem.batches)


def _central_difference(subject: Subject, problem: Problem, v: Tensor, step: float) -> Tensor:
    """(∇R(θ+hv) − ∇R(θ−hv))/2h on a copy, ‖hv‖ = step ‖θ‖."""
    theta = torch.cat([p.detach().reshape(-1) for p in problem.params.values()])
    h = step * float(theta.norm() / v.norm())
    gradients = []
    for sign in (1, -1):
        _move(problem, theta, sign * h * v)
        gradients.append(subject.over_samples(flat_gradient, problem))
    _move(problem, theta, torch.zeros_like(theta))
    return (gradients[0] - gradients[1]) / (2 * h)


@torch.no_grad()
def _move(problem: Problem, theta: Tensor, by: Tensor) -> None:
    """Sets the parameters to θ plus a vector."""
    for p, (start, stop) in zip(problem.params.values(), problem.offsets.values(), strict=True):
        p.copy_((theta[start:stop] + by[start:stop]).reshape(p.shape))
