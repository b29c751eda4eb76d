"""Reference problems with certified traces, each built so that some kinds of mistakes show."""

from hesstheory.conformance.problems.certificate import certificate, certify, second_route
from hesstheory.conformance.problems.numbers import grid, set_parameters
from hesstheory.conformance.problems.reference import Reference, certified
from hesstheory.conformance.problems.registry import references

__all__ = [
    "Reference",
    "certificate",
    "certified",
    "certify",
    "grid",
    "references",
    "second_route",
    "set_parameters",
]
