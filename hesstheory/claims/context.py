"""What a claim is given: networks with their Hessians, streams, profile and level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from hesstheory.run.streams import stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hesstheory.problem.risk import Problem


# Of 12 and 15 parameters: all sign vectors can be enumerated in the seconds of the smoke profile.
SMOKE_NETWORKS = ("tiny_mlp", "tiny_relu")

# By then the loss of most small networks is below 5 % of the untrained one.
TRAINED_STEPS = 300


@dataclass(frozen=True)
class Case:
    """A network of the zoo at a stage of training, with its exact Hessian."""

    network: str
    stage: str
    problem: Problem

    @cached_property
    def H(self) -> Tensor:
        """The dense Hessian, float64."""
        from hesstheory.curvature.matrix import hessian

        return hessian(self.problem).to_dense()

    @cached_property
    def per_sample(self) -> Tensor:
        """Dense Hessians of every sample, N×P×P, float64."""
        from hesstheory.curvature.matrix import per_sample_hessians

        return per_sample_hessians(self.problem)

    def block(self, l: str, m: str) -> Tensor:
        """H_lm cut from the dense Hessian."""
        index = self.problem.index
        return self.H[index[l]][:, index[m]]

    def cross_blocks(self, l: str) -> list[Tensor]:
        """H_lm for all m ≠ l."""
        return [self.block(l, m) for m in self.problem.index if m != l]

    def __str__(self) -> str:
        return f"{self.network}, {self.stage}"


@dataclass(frozen=True)
class Context:
    """What a claim may use.

    Attributes
    ----------
    profile
        `smoke`, `ci` or `full`: how much may be spent.
    seed
        Seed of all random streams.
    alpha
        Level of one statistical test.
    claim
        Id of the claim, which names its streams.
    """

    profile: str
    seed: int
    alpha: float
    claim: str = ""

    def generator(self, *names: str) -> torch.Generator:
        """The stream of this claim and these names; asking again starts it anew."""
        return stream(self.seed, self.claim, *names)

    def case(self, network: str, steps: int = 0) -> Case:
        """A network of the zoo after some training steps, built once and shared by all claims."""
        return _case(network, steps, self.seed)

    def cases(self, networks: Sequence[str] | None = None) -> list[Case]:
        """Small networks untrained and, beyond the smoke profile, trained on the digits."""
        from hesstheory import zoo

        if self.profile == "smoke":
            return [self.case(name) for name in networks or SMOKE_NETWORKS]
        names = networks or list(zoo.SMALL)
        return [self.case(name, steps) for name in names for steps in (0, TRAINED_STEPS)]

    @property
    def is_thorough(self) -> bool:
        """True in the full profile."""
        return self.profile == "full"


# Room for the 13 small networks at four stages each, so that claims share them.
@lru_cache(maxsize=64)
def _case(network: str, steps: int, seed: int) -> Case:
    """The case of this process for a network, a number of steps and a seed."""
    from hesstheory import zoo

    problem = zoo.problem(network, stream(seed, "network", network), steps=steps)
    return Case(network, f"trained {steps} steps" if steps else "untrained", problem)
