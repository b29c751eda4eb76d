"""All mini-batches of a few samples, what the samples say of them, and what an estimator does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, combinations_with_replacement, product

import numpy as np
import torch
from torch import Tensor

from hesstheory import theory
from hesstheory.claims.context import SMOKE_NETWORKS, TRAINED_STEPS, Case, Context
from hesstheory.curvature.matrix import hessian
from hesstheory.estimators.enumerations import strength_four_signs
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.problem.risk import Problem
from hesstheory_validation.forms import full_forms, sign_variances, traces
from hesstheory_validation.magnitudes import roundings

Array = np.ndarray

# --- all mini-batches of a few samples ------------------------------------------------------------
NUM_SAMPLES = 5  # few enough that every mini-batch is drawn


@dataclass(frozen=True)
class Sampling:
    """Mini-batches of b of the first n samples, with or without replacement."""

    b: int
    n: int = NUM_SAMPLES
    replacement: bool = False

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """Every mini-batch, up to the order of its samples."""
        draw = combinations_with_replacement if self.replacement else combinations
        return list(draw(range(self.n), self.b))

    @property
    def probabilities(self) -> Array:
        """The probability of every mini-batch: its number of orders over that of all."""
        orders = [
            math.factorial(self.b) / math.prod(map(math.factorial, Counter(B).values()))
            for B in self.batches
        ]
        return np.array(orders) / sum(orders)

    @property
    def arguments(self) -> tuple[int, int, bool]:
        """b, n and replacement, as the formulas take them."""
        return self.b, self.n, self.replacement

    def __str__(self) -> str:
        return (
            f"{self.b} of {self.n} samples {'with' if self.replacement else 'without'} replacement"
        )


WITHOUT = (Sampling(2), Sampling(3))

SAMPLINGS = (*WITHOUT, Sampling(2, replacement=True))


def restricted(problem: Problem, rows: Iterable[int]) -> Problem:
    """The problem over one batch of the given samples."""
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    rows = list(rows)
    return problem.with_batches([(inputs[rows], targets[rows])])


@lru_cache(maxsize=128)
def batch_hessians(case: Case, sampling: Sampling) -> Tensor:
    """The Hessian of every mini-batch, each differentiated as one batch."""
    return torch.stack([hessian(restricted(case.problem, B)).to_dense() for B in sampling.batches])


def magnitudes(case: Case) -> Array:
    """A_l ≥ |q_l| of every mini-batch and sign probe: the largest Σ_{i∈l} Σ_j |H_ij| of a
    sample."""
    absolute = case.per_sample.abs().sum(2)
    return torch.stack(
        [absolute[:, rows].sum(1).max() for rows in case.problem.index.values()]
    ).numpy()


# --- what the samples say: the right-hand sides ---------------------------------------------------
@dataclass(frozen=True)
class Moments:
    """V_l(H̄), S_q = Σ_n V_l(H_n − H̄)/(n−1) and S_t² of every block of n per-sample Hessians.

    `scale` is Σ_n V_l(H_n)/(n−1), of which S_q is what is left.
    """

    V_of_mean: Array
    S_q: Array
    S_t2: Array
    scale: Array
    num_samples: int

    @classmethod
    def of(cls, stacks: Iterable[Tensor], index: Mapping[str, Tensor]) -> Moments:
        """From one pass over stacks of Hessians.

        V is a quadratic form, so that Σ V(H_n − H̄) = Σ V(H_n) − n V(H̄).
        """
        total = 0.0
        variances: list[Array] = []
        diagonals: list[Array] = []
        for stack in stacks:
            for H in stack:
                total = total + H
            variances.extend(sign_variances(stack, index).numpy())
            diagonals.extend(traces(stack, index))
        n = len(variances)
        V = sign_variances(total / n, index).numpy()
        scale = np.sum(variances, axis=0) / (n - 1)
        S_q = np.maximum(scale - n * V / (n - 1), 0.0)
        return cls(V, S_q, np.var(diagonals, axis=0, ddof=1), scale, n)

    def batch_variance(self, sampling: Sampling) -> Array:
        """Var_B[tr H_B,ll]: the floor."""
        return np.array([theory.batch_trace_variance(s, *sampling.arguments) for s in self.S_t2])

    def probe_variance(self, sampling: Sampling) -> Array:
        """E_B[V_l(H_B)]."""
        pairs = zip(self.V_of_mean, self.S_q, strict=True)
        return np.array(
            [theory.mean_batch_probe_variance(V, S, *sampling.arguments) for V, S in pairs]
        )


@lru_cache(maxsize=128)
def moments(case: Case, num_samples: int = NUM_SAMPLES) -> Moments:
    """Moments of the first samples of a network."""
    return Moments.of([case.per_sample[:num_samples]], case.problem.index)


# --- what the estimator does: the left-hand sides -------------------------------------------------
@dataclass(frozen=True)
class Enumerated:
    """Variance of the estimate of every block over all mini-batches and probes, and the magnitude
    of its rounding."""

    variance: Array
    magnitude: Array
    terms: int


@lru_cache(maxsize=128)
def enumerated(case: Case, sampling: Sampling, num_probes: int, fresh: bool = False) -> Enumerated:
    """The estimate from K probes on one mini-batch, or on a fresh one for every probe, over
    everything that can happen.

    The K probes are the rows of one strength-four array of K·P signs: any four signs of one probe
    or of several are independent, which is all that a variance of quadratic forms can see.
    """
    forms = _all_forms(case, sampling, num_probes)  # batches × probes × columns × blocks
    p = sampling.probabilities
    if fresh:
        choices = list(product(range(len(p)), repeat=num_probes))
        estimates = (
            np.stack([sum(forms[B, k] for k, B in enumerate(choice)) for choice in choices])
            / num_probes
        )
        weights = np.array([math.prod(p[B] for B in choice) for choice in choices])
    else:
        estimates = forms.mean(axis=1)
        weights = p
    mean = np.tensordot(weights, estimates.mean(axis=1), 1)
    deviation = estimates - mean
    variance = np.tensordot(weights, (deviation**2).mean(axis=1), 1)
    # q is off by at most ε·A, hence its variance by at most 2·E|q − E q|·2ε·A; the sum adds
    # ε·variance.
    spread = np.tensordot(weights, np.abs(deviation).mean(axis=1), 1)
    terms = roundings(case, estimates.shape[0] * estimates.shape[1]) + num_probes + sampling.b
    return Enumerated(variance, 4 * magnitudes(case) * spread + variance, terms)


def _all_forms(case: Case, sampling: Sampling, num_probes: int) -> Array:
    """q_l of every mini-batch, probe and column of the array: by the estimator where that is quick,
    else by H_B, the Hessian of the batch, with which T1 finds the estimator to agree."""
    P = case.problem.num_params
    columns = strength_four_signs(num_probes * P).reshape(num_probes, P, -1)
    Z = columns.permute(1, 0, 2).reshape(P, -1)
    if P <= 16 and num_probes == 1 and not sampling.replacement:
        forms = [
            LayerwiseTrace()(restricted(case.problem, B), probes=Z).samples.to_numpy()
            for B in sampling.batches
        ]
    else:
        forms = [full_forms(H, Z, case.problem.index) for H in batch_hessians(case, sampling)]
    return np.stack(forms).reshape(len(forms), num_probes, columns.shape[2], -1)


def tiny_cases(context: Context) -> list[Case]:
    """The networks whose mini-batches and probes are all enumerated."""
    return context.cases(SMOKE_NETWORKS)


def larger_cases(context: Context) -> list[Case]:
    """Networks of about a hundred parameters, for single probes on pairs of four samples."""
    if context.profile == "smoke":
        return []
    names = (
        ("tanh_mlp", "cnn", "residual", "attention")
        if context.is_thorough
        else ("tanh_mlp", "residual")
    )
    return [context.case(name, TRAINED_STEPS) for name in names]
