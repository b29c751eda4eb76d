"""What should come out? The closed forms, each one short function in the symbols of its theorem.

Every function takes torch tensors, numpy arrays and sympy matrices alike. The formula that sympy
proves is therefore the one that the code uses. Nothing here draws, differentiates or estimates:
a prediction is never computed from what it predicts.

Notation
--------
H is symmetric, P×P, with blocks H_lm over the layers l = 1..L.
A probe z has independent entries of mean 0, variance 1 and fourth moment κ = E z⁴
(Rademacher 1, Gaussian 3), and q_l = z_lᵀ(Hz)_l estimates tr H_ll.
‖·‖ is the Frobenius norm, ‖·‖₂ the spectral one.
b of n samples make a mini-batch B, on which K probes are drawn.
G is the Gauss-Newton matrix, J_nl the Jacobian of the outputs of sample n in layer l, and
S_n S_nᵀ its loss Hessian in the outputs.
T1 to T20 and G5 to G7 are claims, listed in `validation/CLAIMS.md`.
"""

from hesstheory.theory.batches import (
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
from hesstheory.theory.components import Anova, anova, anova_inverse_bias
from hesstheory.theory.designs import (
    crossover_margin,
    full_vector_wins,
    orthogonal_probe_variance,
    per_sample_probe_variance,
    per_sample_probes_win,
)
from hesstheory.theory.matrices import Matrix, Scalar, squared_norm
from hesstheory.theory.outputs import (
    ggn_coupling,
    ggn_squared_norm,
    logit_probe_variance,
    summed_logit_probe_variance,
)
from hesstheory.theory.probes import (
    probe_covariance,
    probe_covariance_matrix,
    probe_variance,
    probe_variance_from_norms,
    quadratic_form,
    rademacher_advantage,
    sphere_variance,
    sphere_variance_from_norms,
)
from hesstheory.theory.symbols import expectation, symmetric_symbols
from hesstheory.theory.tails import (
    GAUSSIAN_TAIL,
    RADEMACHER_TAIL,
    SHARP_RADEMACHER_TAIL,
    TailConstants,
    num_probes_chebyshev,
    num_probes_normal,
    num_probes_subexponential,
    tail_bound,
)
from hesstheory.theory.ties import Bounds, tied_bias, tied_bias_bounds

__all__ = [
    "GAUSSIAN_TAIL",
    "RADEMACHER_TAIL",
    "SHARP_RADEMACHER_TAIL",
    "Anova",
    "Bounds",
    "Matrix",
    "Scalar",
    "TailConstants",
    "anova",
    "anova_inverse_bias",
    "batch_trace_variance",
    "budget_variance",
    "cost_optimal_num_probes",
    "critical_num_probes",
    "critical_num_probes_of_batch",
    "crossover_margin",
    "expectation",
    "finite_population_factor",
    "fresh_batch_variance",
    "full_vector_wins",
    "ggn_coupling",
    "ggn_squared_norm",
    "logit_probe_variance",
    "mean_batch_probe_variance",
    "num_probes_chebyshev",
    "num_probes_normal",
    "num_probes_subexponential",
    "orthogonal_probe_variance",
    "per_sample_probe_variance",
    "per_sample_probes_win",
    "probe_covariance",
    "probe_covariance_matrix",
    "probe_variance",
    "probe_variance_from_norms",
    "quadratic_form",
    "rademacher_advantage",
    "sphere_variance",
    "sphere_variance_from_norms",
    "squared_norm",
    "summed_logit_probe_variance",
    "symmetric_symbols",
    "tail_bound",
    "tied_bias",
    "tied_bias_bounds",
    "total_variance",
    "total_variance_curve",
]
