"""Sizes and layout of a risk: samples, parameters, weights, positions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from hesstheory.problem.batches import Batch, Weight, terms_of_batches
from hesstheory.problem.partition import Partition, offsets_of, positions_of


class Sizes:
    """What follows from the parameters, their blocks and the batches."""

    params: Mapping[str, Tensor]
    partition: Partition
    batches: tuple[Batch, ...]
    weight: Weight | None
    samples_of_batch: tuple[int | None, ...]

    @property
    def num_samples(self) -> int:
        """N, over all batches."""
        return sum(self.batch_sizes)

    @cached_property
    def num_params(self) -> int:
        """P, the entries of all tensors of θ."""
        return sum(p.numel() for p in self.params.values())

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Number of samples of every batch; one where they cannot be told apart."""
        return tuple(1 if size is None else size for size in self.samples_of_batch)

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each batch in the risk: its number of terms over that of all."""
        terms: tuple[float, ...] = self.batch_sizes
        if self.weight is not None:
            terms = terms_of_batches(self.batches, self.weight)
        return tuple(n / sum(terms) for n in terms)

    @property
    def dtype(self) -> torch.dtype:
        """That of θ."""
        return next(iter(self.params.values())).dtype

    @property
    def device(self) -> torch.device:
        """That of θ."""
        return next(iter(self.params.values())).device

    @cached_property
    def offsets(self) -> Mapping[str, tuple[int, int]]:
        """First and past-the-last position of every tensor in θ as one vector."""
        return offsets_of(self.params)

    @cached_property
    def index(self) -> Mapping[str, Int[Tensor, " block_params"]]:
        """Positions of every block in θ as one vector; they need not be contiguous."""
        return positions_of(self.partition, self.offsets)

    def tensors_of(self, block: str) -> tuple[str, ...]:
        """Names of a block's tensors; raises KeyError with the known names."""
        return self.partition.tensors_of(block)
