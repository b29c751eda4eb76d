"""Types of what claims are about: formulas, estimators and matrices, right or wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from hesstheory import theory
from hesstheory.results.estimate import Estimate

# A closed form. It takes numbers, tensors or symbols, which no narrower type allows.
Formula: TypeAlias = Callable[..., theory.Scalar]

# A class of estimators, called with its settings; what it makes is called with a problem.
EstimatorClass: TypeAlias = Callable[..., Callable[..., Estimate]]

# A dense matrix of a problem, or one that is built from numbers of parameters and probes.
MatrixOf: TypeAlias = Callable[..., Tensor]

# Exact traces of a problem by block.
TracesOf: TypeAlias = Callable[..., Estimate]

# One row of the data behind a figure.
Row: TypeAlias = dict[str, object]
