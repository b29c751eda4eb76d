"""How is it measured? Estimators of block traces, probes, and advice on both."""

from hesstheory.estimators.deflated import HutchPP, XTrace
from hesstheory.estimators.enumerations import (
    all_signs,
    hadamard_columns,
    strength_four_signs,
    three_point_grid,
)
from hesstheory.estimators.from_outputs import ControlVariateTrace, LogitProbeTrace
from hesstheory.estimators.inputs import check_choices
from hesstheory.estimators.probes import (
    Gaussian,
    HadamardColumns,
    Probe,
    Rademacher,
    SparseSigns,
    Sphere,
    Uniform,
)
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.estimators.protocol import Estimator, TakesProbes, VarianceLaw
from hesstheory.estimators.ranks import rank_layers
from hesstheory.estimators.recommendation import recommend
from hesstheory.estimators.without_probes import dense_traces

__all__ = [
    "BlockSeparatedTrace",
    "ControlVariateTrace",
    "Estimator",
    "Gaussian",
    "HadamardColumns",
    "HutchPP",
    "LayerwiseTrace",
    "LogitProbeTrace",
    "Probe",
    "Rademacher",
    "SparseSigns",
    "Sphere",
    "TakesProbes",
    "Uniform",
    "VarianceLaw",
    "XTrace",
    "all_signs",
    "check_choices",
    "dense_traces",
    "hadamard_columns",
    "rank_layers",
    "recommend",
    "strength_four_signs",
    "three_point_grid",
]
