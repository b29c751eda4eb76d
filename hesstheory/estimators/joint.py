"""Statements that hold jointly at a level."""

from __future__ import annotations


def joint_quantile(level: float, num_statements: int, degrees: int) -> float:
    """Student's two-sided quantile for so many statements to hold jointly (Bonferroni)."""
    from scipy.stats import t

    return float(t.isf((1 - level) / (2 * num_statements), degrees))
