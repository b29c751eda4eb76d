"""What do we believe, and why? Claims, the run that decides them, and the ledger."""

from hesstheory.claims.context import SMOKE_NETWORKS, TRAINED_STEPS, Case, Context
from hesstheory.claims.course import Run, validate
from hesstheory.claims.decide import MutantOutcome, Outcome, decide
from hesstheory.claims.ledger import Ledger
from hesstheory.claims.registry import (
    REGISTRY,
    Claim,
    Decide,
    catalogue,
    claim,
    select,
)
from hesstheory.claims.status import Standing, standings
from hesstheory.evidence.budget import PROFILES

__all__ = [
    "PROFILES",
    "REGISTRY",
    "SMOKE_NETWORKS",
    "TRAINED_STEPS",
    "Case",
    "Claim",
    "Context",
    "Decide",
    "Ledger",
    "MutantOutcome",
    "Outcome",
    "Run",
    "Standing",
    "catalogue",
    "claim",
    "decide",
    "select",
    "standings",
    "validate",
]
