"""Statements that hold jointly at a level."""

from __future__ import annotations


def check_level(level: float) -> None:
    """Raises ValueError unless it is a probability strictly between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: pass a probability, such as 0.95")


def joint_quantile(level: float, num_statements: int, degrees: int) -> float:
    """Student's two-sided quantile for so many statements to hold jointly (Bonferroni)."""
    from scipy.stats import t

    return float(t.isf((1 - level) / (2 * num_statements), degrees))
