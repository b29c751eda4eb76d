"""All reference problems by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from hesstheory.conformance.problems import networks, springs
from hesstheory.conformance.problems.reference import Reference

# Name, mistakes that it shows, margin, builder. A margin is a relative bias: small where the
# problem's probes have little noise, larger where a smaller one would need minutes of runs.
_LISTED = (
    ("flat", "wrong factors of one per cent, wrong distributions", 0.01, springs.flat),
    ("ragged", "batches weighted wrongly, summed, dropped or taken for all", 0.05, springs.ragged),
    (
        "negative",
        "signs: clipped, folded or squared; stopping rules with a signed scale",
        0.05,
        springs.negative,
    ),
    (
        "unequal",
        "exchanged and shifted blocks, means for sums, a block of one parameter",
        0.20,
        springs.unequal,
    ),
    ("coupled", "probes shared by blocks, cross blocks left out of errors", 0.10, springs.coupled),
    (
        "smooth_mlp",
        "Gauss-Newton, Fisher and absolute curvature taken for the Hessian",
        0.25,
        networks.smooth_mlp,
    ),
    (
        "skewed",
        "medians, trimmed means and centred probes in place of means",
        0.20,
        networks.skewed,
    ),
    ("tied", "instances of a tied weight counted apart", 0.10, networks.tied),
    ("autoencoder", "a weight tied in series differentiated once", 0.25, networks.autoencoder),
    ("batch_norm", "batch norm in train mode, convolutions", 0.60, networks.batch_norm),
    (
        "unreached",
        "tensors that the loss does not reach, zero curvature",
        0.10,
        networks.unreached,
    ),
    ("regrouped", "layers taken for the blocks of the partition", 0.40, networks.regrouped),
    (
        "layouts",
        "ranks, memory layouts, interleaved blocks and later batches ignored",
        0.30,
        networks.layouts,
    ),
    ("frozen", "frozen parameters counted", 0.25, networks.frozen),
    ("float32", "dtypes mixed up", 0.02, springs.flat_in_single_precision),
)


@cache
def references() -> Mapping[str, Reference]:
    """All reference problems by name."""
    return {name: Reference(name, hunts, margin, build) for name, hunts, margin, build in _LISTED}
