"""What is differentiated: a risk over batches, and the named blocks of its parameters."""

from hesstheory.problem.batches import Batch, to_double
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem

__all__ = ["Batch", "Partition", "Problem", "to_double"]
