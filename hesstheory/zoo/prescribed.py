"""Problems with a prescribed Hessian for every sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hesstheory.problem.risk import Problem
from hesstheory.zoo.problems import cut_into_batches


class Block(nn.Module):
    """A named vector of parameters."""

    def __init__(self, theta: Float[Tensor, " size"]) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())


class QuadraticForms(nn.Module):
    """½ θᵀ H_n θ for a batch of matrices H_n, with θ cut into named blocks."""

    def __init__(self, blocks: Mapping[str, Float[Tensor, " size"]]) -> None:
        super().__init__()
        for name, theta in blocks.items():
            self.add_module(name, Block(theta))

    def forward(
        self, hessians: Float[Tensor, "samples params params"]
    ) -> Float[Tensor, " samples"]:
        theta = torch.cat(list(self.parameters()))
        return 0.5 * torch.einsum("i,nij,j->n", theta, hessians, theta)


def mean_output(outputs: Float[Tensor, " samples"], targets: Tensor) -> Float[Tensor, ""]:
    """The mean of the outputs, whatever the targets.

    Examples
    --------
    >>> float(mean_output(torch.tensor([1.0, 3.0]), torch.zeros(2)))
    2.0
    """
    return outputs.mean()


def prescribed(
    hessians: Float[Tensor, "samples params params"],
    sizes: Sequence[int] | Mapping[str, int],
    generator: torch.Generator,
    *,
    theta: Float[Tensor, " params"] | None = None,
    batch_sizes: Sequence[int] | None = None,
) -> Problem:
    """A problem whose sample n has the Hessian `hessians[n]` at any θ.

    The loss is linear in the outputs, so all of the curvature is residual: G = 0.

    Parameters
    ----------
    hessians
        N symmetric matrices.
    sizes
        Parameters of every block. Blocks are named by the mapping's keys, or block0, block1, ...
    generator
        Draws θ.
    theta
        Where the problem is; standard normal by default.
    batch_sizes
        As in `zoo.batches`.

    Returns
    -------
    Problem
        The mean of ½ θᵀ H_n θ over n, whose Hessian is the mean of the matrices.

    Raises
    ------
    ValueError
        Shapes do not fit, or a matrix is not symmetric.

    Examples
    --------
    >>> from hesstheory import hessian
    >>> H = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> problem = prescribed(H[None], {"a": 2, "b": 1}, torch.Generator().manual_seed(0))
    >>> hessian(problem).block("a", "a").diagonal().tolist()
    [1.0, 2.0]
    """
    if isinstance(sizes, Mapping):
        named = dict(sizes)
    else:
        named = {f"block{i}": size for i, size in enumerate(sizes)}
    if theta is None:
        theta = torch.randn(sum(named.values()), generator=generator, dtype=torch.float64).to(
            hessians
        )
    _check_prescription(hessians, named, theta)
    blocks = dict(zip(named, torch.split(theta, list(named.values())), strict=True))
    samples = cut_into_batches(hessians, hessians.new_zeros(len(hessians)), batch_sizes)
    return Problem(QuadraticForms(blocks), mean_output, samples)


def _check_prescription(hessians: Tensor, sizes: Mapping[str, int], theta: Tensor) -> None:
    """Refuses what is no Hessian, or not cut into blocks."""
    if hessians.ndim != 3 or hessians.shape[1] != hessians.shape[2] or not len(hessians):
        raise ValueError(
            f"hessians has shape {tuple(hessians.shape)}: pass N×P×P, one matrix per sample"
        )
    if not torch.equal(hessians, hessians.mT):
        raise ValueError("hessians are not symmetric: pass (H + H.mT) / 2")
    if sum(sizes.values()) != hessians.shape[1] or min(sizes.values()) < 1:
        raise ValueError(
            f"sizes {dict(sizes)} must be positive and add up to {hessians.shape[1]} parameters"
        )
    if theta.shape != hessians.shape[2:]:
        raise ValueError(
            f"theta has shape {tuple(theta.shape)}: pass one entry for each of "
            f"{hessians.shape[1]} parameters"
        )
