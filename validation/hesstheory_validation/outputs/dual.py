"""Roots of the Gauss-Newton matrix from the outputs, and logit probes that are dealt in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.claims.context import Case, Context
from hesstheory.estimators.enumerations import (
    all_signs,
)
from hesstheory.outputs.loss_root import loss_root
from hesstheory.run.streams import stream
from hesstheory_validation.gauss_newton.wrong import output_jacobian
from hesstheory_validation.subjects import EstimatorClass


@dataclass(frozen=True)
class Dual:
    """A root of G = BᵀB from the outputs: rows S_nᵀJ_n/√N of B, samples × columns × params.

    `squares` holds ‖S_n‖² Σ_d J_ndi²/N, samples × params: what the squares of an entry of B are
    made of.
    """

    rows: Tensor
    squares: Tensor
    batch_sizes: tuple[int, ...]

    def batch_grams(self, index: Tensor) -> list[Tensor]:
        """M_b = B_lB_lᵀ of the rows of every batch."""
        parts = (
            part[:, :, index].flatten(0, 1) for part in torch.split(self.rows, self.batch_sizes)
        )
        return [B @ B.mT for B in parts]

    def gram(self, index: Tensor) -> Tensor:
        """M_l = B_lB_lᵀ."""
        B = self.rows[:, :, index].flatten(0, 1)
        return B @ B.mT

    def sample_grams(self, index: Tensor) -> list[Tensor]:
        """M_n = S_nᵀJ_nl J_nlᵀS_n with the root of the sample's own loss."""
        B = self.rows[:, :, index]
        return list(len(B) * B @ B.mT)


@lru_cache(maxsize=64)
def dual_of(case: Case) -> Dual:
    """The root of the Gauss-Newton matrix of a network, from its outputs."""
    problem = case.problem
    rows = list[Tensor]()
    squares = list[Tensor]()
    for weight, batch in zip(problem.weights, problem.batches, strict=True):
        outputs = problem.outputs(batch)
        S = weight**0.5 * loss_root(problem, outputs, batch)
        J = output_jacobian(problem, outputs)
        rows.append(S.mT @ J)
        squares.append(S.square().sum((1, 2))[:, None] * J.square().sum(1))
    columns = max(part.shape[1] for part in rows)  # a batch may have no use for one
    padded = [F.pad(part, (0, 0, 0, columns - part.shape[1])) for part in rows]
    return Dual(torch.cat(padded), torch.cat(squares), problem.batch_sizes)


@dataclass
class Dealt:
    """Deals the columns of a design, samples × columns of S × probes, in order and to each sample
    its own rows."""

    design: Tensor
    start: int = 0
    probe: int = 0

    def kurtosis(self, num_params: int) -> float:
        return float(self.design[0, 0].square().square().mean())

    def sample(self, num_params: int, num_probes: int, generator: torch.Generator) -> Tensor:
        """The signs of the next probe of a batch; batches follow one another when all probes are
        dealt."""
        dealt = self.design[self.start : self.start + num_probes, :num_params, self.probe]
        self.probe = (self.probe + 1) % self.design.shape[2]
        self.start += num_probes if self.probe == 0 else 0
        return dealt.mT


@lru_cache(maxsize=64)
def few(case: Case, sizes: tuple[int, ...]) -> Case:
    """The network on some samples of its first batches: the least sure, since M_n is 0 for a sure
    one."""
    chosen = []
    for (x, y), n in zip(case.problem.batches, sizes, strict=False):
        rows = case.problem.outputs((x, y)).softmax(1).amax(1).argsort()[:n]
        chosen.append((x[rows], y[rows]))
    return Case(
        case.network,
        f"{case.stage}, {'+'.join(map(str, sizes))} samples",
        case.problem.with_batches(chosen),
    )


def all_probes(
    estimator: EstimatorClass, case: Case, design: Tensor, *, per_sample: bool
) -> np.ndarray:
    """The estimates of every probe of a design, samples·columns × probes; probes × blocks."""
    count = design.shape[1]
    dealt = Dealt(design.reshape(case.problem.num_samples, -1, count))
    made = estimator(num_probes=count, per_sample=per_sample, probe=dealt)
    return made(case.problem, stream(0, "nothing is drawn")).samples.to_numpy()


def signs_of_all_samples(case: Case) -> Tensor:
    """All sign vectors for the columns of all samples together."""
    return all_signs(dual_of(case).rows[:, :, 0].numel())


def form_sizes(case: Case) -> np.ndarray:
    """What q_l is made of when the probes are signs, ‖J_nᵀS_nε_n‖² ≤ C ‖J_n‖²‖S_n‖², by block."""
    dual = dual_of(case)
    columns = dual.rows.shape[1]
    return np.array(
        [columns * float(dual.squares[:, index].sum()) for index in case.problem.index.values()]
    )


# Dense and convolutional layers, batch norm, and layer norm, which has no rule for the norms of
# single samples.
_CLASSIFIERS = ("tiny_mlp", "tiny_relu", "cnn", "attention")


def classifiers(context: Context, sizes: tuple[int, ...]) -> list[Case]:
    """Networks of two or three classes on few samples, whose signs can all be enumerated
    together."""
    if context.profile == "smoke":
        return [few(context.case("tiny_relu"), sizes)]
    classifiers = [name for name, network in zoo.SMALL.items() if network.loss is F.cross_entropy]
    return [
        few(case, sizes)
        for case in context.cases(classifiers if context.is_thorough else _CLASSIFIERS)
    ]
