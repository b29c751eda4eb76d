"""What came out? Named, frozen results."""

from hesstheory.results.estimate import Estimate, as_mapping
from hesstheory.results.plans import Plan, Recommendation
from hesstheory.results.ranking import Ranking

__all__ = ["Estimate", "Plan", "Ranking", "Recommendation", "as_mapping"]
