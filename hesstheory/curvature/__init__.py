"""What is the matrix? Hessian, Gauss-Newton matrix and residual, known through their products."""

from hesstheory.curvature.limits import check_fits
from hesstheory.curvature.linearised import Linearise, Pull, Push
from hesstheory.curvature.matrix import Curvature, ggn, hessian, per_sample_hessians, residual
from hesstheory.curvature.uses import unrolled_hessian

__all__ = [
    "Curvature",
    "Linearise",
    "Pull",
    "Push",
    "check_fits",
    "ggn",
    "hessian",
    "per_sample_hessians",
    "residual",
    "unrolled_hessian",
]
