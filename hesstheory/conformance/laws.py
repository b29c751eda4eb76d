"""What an estimator declares of its spread, by itself or through the option `probe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, cast

from hesstheory.conformance.problems.reference import Reference
from hesstheory.estimators.probes import Probe
from hesstheory.estimators.protocol import VarianceLaw, law_of_probe, variance_law_of

# Variance of one probe on a block of a reference problem, for all batches together.
Predicted = Callable[[Reference, str], float]


class DependentProbe(Probe, Protocol):
    """A distribution whose entries depend on each other, with a law of its own."""

    def variance_from_norms(
        self, squared_norm: float, trace: float, cross_squares: float, num_params: int
    ) -> float:
        """Variance of one probe on block l from ‖H_ll‖², tr H_ll, Σ_{m≠l} ‖H_lm‖² and P."""
        ...


def declared_laws(estimator: object, probe: Probe | None) -> Mapping[str, Predicted]:
    """The laws that are possible by what is declared, by name; none where nothing is declared.

    A `variance_law` is the whole law. A distribution is declared by the option `probe`, or by that
    attribute of an estimator without a `variance_law`. It says nothing of the design: one product
    may serve all blocks (claims T2 and T5), or a probe each block (claim T6).
    """
    if probe is None and hasattr(estimator, "variance_law"):
        law = variance_law_of(estimator)
        return {} if law is None else {"its variance_law": partial(_at_norms, law=law)}
    declared = getattr(estimator, "probe", None) if probe is None else probe
    of_probe = None if declared is None else _of_probe(declared)
    if of_probe is None:
        return {}
    return {
        "one product for all blocks": of_probe,
        "one block at a time": partial(of_probe, is_separated=True),
    }


def _of_probe(probe: Probe) -> Callable[..., float] | None:
    """T2 for independent entries; else what the distribution says of itself, if it does."""
    law = law_of_probe(probe) if isinstance(probe, Probe) else None
    if law is not None:
        return partial(_at_norms, law=law)
    if not hasattr(probe, "variance_from_norms"):
        return None
    return partial(_of_dependent, probe=cast(DependentProbe, probe))


def _at_norms(
    reference: Reference, block: str, *, law: VarianceLaw, is_separated: bool = False
) -> float:
    """The law at the certified norms, without those of other blocks for separated probes."""
    own, diagonal, cross = reference.norms(block)
    return float(law(own, diagonal, 0.0 if is_separated else cross))


def _of_dependent(
    reference: Reference, block: str, *, probe: DependentProbe, is_separated: bool = False
) -> float:
    """The law of a distribution whose entries depend on each other."""
    own, _, cross = reference.norms(block)
    return probe.variance_from_norms(
        own,
        reference.traces[block],
        0.0 if is_separated else cross,
        reference.problem.num_params,
    )
