"""The measurements of a full-scale run, in the order in which they need each other.

A stage is a function from the subject, and what was found before, to plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from hesstheory.harness.stages.estimates import estimates
from hesstheory.harness.stages.exact import exact
from hesstheory.harness.stages.kinks import kinks
from hesstheory.harness.stages.logit_probes import logit_probes
from hesstheory.harness.stages.precision import precision
from hesstheory.harness.stages.products import products
from hesstheory.harness.stages.rows import dual
from hesstheory.harness.stages.stage import Measurement
from hesstheory.harness.stages.unit import gradient
from hesstheory.harness.stages.variance import variance
from hesstheory.harness.stages.variants import tied_head, train_mode

__all__ = ["STAGES"]

STAGES: Mapping[str, Measurement] = {
    "gradient": gradient,
    "kinks": kinks,
    "exact": exact,
    "estimates": estimates,
    "dual": dual,
    "variance": variance,
    "logit_probes": logit_probes,
    "products": products,
    "train_mode": train_mode,
    "tied_head": tied_head,
    "precision": precision,
}
