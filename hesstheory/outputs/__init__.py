"""What follows from the outputs without a probe?"""

from hesstheory.outputs.fit import fitted
from hesstheory.outputs.gram import DualGram, dual_gram
from hesstheory.outputs.loss_root import NotConvex, cheapest_root, loss_root
from hesstheory.outputs.per_sample import Linearised, linearised, rules_that_hold
from hesstheory.outputs.premise import NotPiecewiseLinear
from hesstheory.outputs.rules import Norms
from hesstheory.outputs.sketches import SketchedNorms, sketched_norms
from hesstheory.outputs.traces import exact_traces, sample_traces

__all__ = [
    "DualGram",
    "Linearised",
    "Norms",
    "NotConvex",
    "NotPiecewiseLinear",
    "SketchedNorms",
    "cheapest_root",
    "dual_gram",
    "exact_traces",
    "fitted",
    "linearised",
    "loss_root",
    "rules_that_hold",
    "sample_traces",
    "sketched_norms",
]
