"""The right estimator as a row of steps, and the ways to replace one of them by a mistake."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hesstheory.curvature.matrix import hessian
from hesstheory.estimators.probes import Gaussian, Probe, Rademacher
from hesstheory.estimators.protocol import law_of_probe
from hesstheory.problem.partition import Partition
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

__all__ = ["WRONG"]

BlackBox = Callable[..., Any]

Report = Callable[[Problem, Tensor, Tensor, Tensor], Any]

WRONG: dict[str, BlackBox] = {}

# What some of them say of themselves: the law of these distributions.
_DECLARED: dict[str, Probe] = {
    "normals_for_signs": Rademacher(),
    "signs_for_normals": Gaussian(),
    "gradients_pile_up": Rademacher(),
}

# Those that also take the keyword `probes`.
_TAKE_PROBES = {
    "given_signed",
    "unweighted_batches",
    "summed_loss",
    "gauss_newton_instead",
    "weight_decay",
    "matrices_only",
    "alphabetical_order",
    "divided_twice",
    "stderr_too_large_by_root_two",
    "stderr_ten_times",
    "shifted_blocks",
    "freezes_the_model",
    "single_precision_inside",
    "half_precision_answer",
    "fails_for_one_probe",
}


# --- the right estimator, step by step: samples are K×blocks, one row per probe -------------------
def draw_signs(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Fair signs, P×K."""
    return Rademacher().sample(problem.num_params, num_probes, generator)


def quadratic_forms(problem: Problem, Z: Tensor) -> Tensor:
    """z_lᵀ(Hz)_l of every probe and block, K×blocks."""
    return hessian(problem).quadratic_forms(Z)


def mean_of(samples: Tensor) -> Tensor:
    """Mean over the probes."""
    return samples.mean(0)


def stderr_of(problem: Problem, samples: Tensor) -> Tensor:
    """s/√K, NaN for one probe."""
    K = len(samples)
    return ((samples - samples.mean(0)).square().sum(0) / (K - 1) / K).sqrt()


def as_pairs(problem: Problem, samples: Tensor, values: Tensor, errors: Tensor) -> Any:
    """{block: (trace, standard error)}."""
    return dict(zip(problem.index, zip(values.tolist(), errors.tolist(), strict=True), strict=True))


def as_values(problem: Problem, samples: Tensor, values: Tensor, errors: Tensor) -> Any:
    """{block: trace}."""
    return dict(zip(problem.index, values.tolist(), strict=True))


def as_total(problem: Problem, samples: Tensor, values: Tensor, errors: Tensor) -> Any:
    """The full trace."""
    return float(values.sum())


def as_estimate(problem: Problem, samples: Tensor, values: Tensor, errors: Tensor) -> Any:
    """An `Estimate` with its samples."""
    import pandas as pd

    return Estimate(
        pd.DataFrame(samples.numpy(), columns=list(problem.index)), num_matvecs=len(samples)
    )


@dataclass(frozen=True)
class _Steps:
    view: Callable[[Problem], Problem] = lambda problem: problem
    draw: Callable[[Problem, int, torch.Generator], Tensor] = draw_signs
    forms: Callable[[Problem, Tensor], Tensor] = quadratic_forms
    reduce: Callable[[Tensor], Tensor] = mean_of
    spread: Callable[[Problem, Tensor], Tensor] = stderr_of
    report: Report = as_pairs

    def estimate(
        self, problem: Problem, num_probes: int, generator: torch.Generator, probes: Tensor | None
    ) -> Any:
        seen = self.view(problem)
        Z = self.draw(seen, num_probes, generator) if probes is None else probes
        samples = self.forms(seen, Z.to(seen.dtype))
        return self.report(problem, samples, self.reduce(samples), self.spread(problem, samples))


def _spoil(step: str, name: str, sin: str, wrong: BlackBox, report: Report = as_pairs) -> None:
    """Lists the right estimator with one step replaced."""
    steps = replace(_Steps(report=report), **{step: wrong})

    def blind(problem: Problem, *, num_probes: int, generator: torch.Generator) -> Any:
        return steps.estimate(problem, num_probes, generator, None)

    def told(
        problem: Problem,
        *,
        num_probes: int,
        generator: torch.Generator,
        probes: Tensor | None = None,
    ) -> Any:
        return steps.estimate(problem, num_probes, generator, probes)

    estimator: BlackBox = told if name in _TAKE_PROBES else blind
    estimator.__name__ = name
    estimator.__qualname__ = name
    estimator.__doc__ = sin
    if name in _DECLARED:
        vars(estimator)["variance_law"] = law_of_probe(_DECLARED[name])
    WRONG[name] = estimator


def listed(step: str, **rows: Any) -> None:
    """Mutants that spoil one step: name=(sin, wrong step) or (sin, wrong step, form of answer)."""
    for name, row in rows.items():
        _spoil(step, name, *row)


def spoils(step: str, report: Report = as_pairs) -> Callable[[BlackBox], BlackBox]:
    """Lists the decorated function as the wrong step of the mutant of its name."""

    def spoils(wrong: BlackBox) -> BlackBox:
        _spoil(step, wrong.__name__, wrong.__doc__ or "", wrong, report)
        return WRONG[wrong.__name__]

    return spoils


def whole(estimator: BlackBox) -> BlackBox:
    """Lists an estimator that is wrong as a whole."""
    WRONG[estimator.__name__] = estimator
    return estimator


def by_block(problem: Problem, entries: Tensor, kept: slice = slice(None)) -> Tensor:
    """Sums over the parameters of each block, P×K → K×blocks."""
    return torch.stack([entries[index[kept]].sum(0) for index in problem.index.values()], 1)


def entries(problem: Problem, Z: Tensor) -> Tensor:
    """z_i (Hz)_i of every parameter and probe."""
    return Z * (hessian(problem) @ Z)


def of_batches(problem: Problem, Z: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ_b weight_b q(batch b)."""
    each = (quadratic_forms(problem.with_batches([batch]), Z) for batch in problem.batches)
    return torch.stack([weight * forms for weight, forms in zip(weights, each, strict=True)]).sum(0)


def with_model(problem: Problem, model: nn.Module, partition: Partition | None = None) -> Problem:
    """The same risk of another model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = problem.partition if partition is None else partition
        return Problem(model, problem.loss_fn, problem.batches, parts, allow_train_mode=True)


def changed(problem: Problem, **attributes: Any) -> Problem:
    """A copy of the problem with other attributes."""
    other = copy.copy(problem)
    vars(other).update(attributes)
    return other


def gradient(problem: Problem) -> Tensor:
    """∇R as one vector."""
    risk = torch.stack(
        [w * problem.loss(b) for w, b in zip(problem.weights, problem.batches, strict=True)]
    ).sum()
    rows = torch.autograd.grad(risk, list(problem.params.values()), materialize_grads=True)
    return torch.cat([row.reshape(-1) for row in rows])


_DENSE: MutableMapping[Problem, Tensor] = WeakKeyDictionary()


def dense_of(problem: Problem) -> Tensor:
    """The dense Hessian, computed once for every problem."""
    if problem not in _DENSE:
        _DENSE[problem] = hessian(problem).to_dense()
    return _DENSE[problem]


def sizes_of(problem: Problem) -> Tensor:
    """Numbers of parameters of the blocks."""
    return torch.tensor([len(index) for index in problem.index.values()])


def forms_of(problem: Problem, Z: Tensor, names: set[str], most: int = 2**40) -> Tensor:
    """Quadratic forms of the probes in these tensors, in the first so many entries of each."""
    mask = [
        (torch.arange(p.numel()) < most) & (name in names) for name, p in problem.params.items()
    ]
    return quadratic_forms(problem, Z * torch.cat(mask)[:, None])


def outer(problem: Problem, G: Tensor, Z: Tensor) -> Tensor:
    """Quadratic forms of the mean of g gᵀ over the rows g."""
    return by_block(problem, Z * (G.mT @ (G @ Z)) / len(G))
