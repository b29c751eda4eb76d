"""Traps: ways to lose a tie in PyTorch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from inspect import unwrap

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from hesstheory.problem.risk import Problem


# Traps: ways to lose a tie in PyTorch. Each takes a problem whose modules `owners` hold one
# `weight` between them, and gives what a user would take for the Hessian of that weight.
def own_blocks(loss: Tensor, leaves: Iterable[Tensor], *, allow_unused: bool = False) -> Tensor:
    """Sum over the leaves, all of one shape, of each one's own Hessian block, in plain PyTorch row
    by row.

    A leaf that the loss does not reach counts as zero with `allow_unused`, and raises without.
    """
    leaves = list(leaves)
    total = leaves[0].new_zeros(leaves[0].numel(), leaves[0].numel())
    gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=allow_unused)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            rows = [
                torch.autograd.grad(entry, leaf, retain_graph=True)[0]
                for entry in gradient.flatten()
            ]
            total += torch.stack(rows).reshape(total.shape)
    return total


def plain_risk(problem: Problem, model: Callable[..., Tensor]) -> Tensor:
    """The risk of another model on the problem's data."""
    losses = [problem.loss_fn(model(inputs), targets) for inputs, targets in problem.batches]
    return torch.stack(
        [weight * loss for weight, loss in zip(problem.weights, losses, strict=True)]
    ).sum()


def every_alias_counted(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Lists the weight under all of its names with named_parameters(remove_duplicate=False)."""
    named = dict(problem.model.named_parameters(remove_duplicate=False))
    return own_blocks(
        plain_risk(problem, problem.model), [named[f"{owner}.weight"] for owner in owners]
    )


def untied_functional_call(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Hands a copy under every name to functional_call(tie_weights=False)."""
    named = {f"{owner}.weight": _fresh(weight_of(problem.model, owner)) for owner in owners}
    model = partial(functional_call, problem.model, named, tie_weights=False)
    return own_blocks(plain_risk(problem, model), named.values())


def one_alias_untied(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Hands the weight under its first name only to functional_call(tie_weights=False)."""
    weight = _fresh(weight_of(problem.model, owners[0]))
    model = partial(
        functional_call, problem.model, {f"{owners[0]}.weight": weight}, tie_weights=False
    )
    return own_blocks(plain_risk(problem, model), [weight])


def two_parameters_one_storage(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Wraps the storage of the weight in an nn.Parameter for every module."""
    model = copy.deepcopy(problem.model)
    for owner in owners:
        model.get_submodule(owner).weight = nn.Parameter(weight_of(model, owner).data)
    return own_blocks(plain_risk(problem, model), [weight_of(model, owner) for owner in owners])


def parametrised_tensors(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Differentiates in the modules' parametrised weights, held fast by parametrize.cached()."""
    model = with_parametrisation(problem.model, owners)
    with parametrize.cached():
        weights = [weight_of(model, owner) for owner in owners]
        return own_blocks(plain_risk(problem, model), weights)


def unused_parametrised_tensors(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Differentiates in the modules' parametrised weights and lets allow_unused=True hide that they
    are new ones."""
    model = with_parametrisation(problem.model, owners)
    weights = [weight_of(model, owner) for owner in owners]
    return own_blocks(plain_risk(problem, model), weights, allow_unused=True)


def reentrant_checkpoint(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Checkpoints the first module that uses the weight with use_reentrant=True."""
    model = with_checkpoint(problem.model, owners[0], use_reentrant=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        return own_blocks(plain_risk(problem, model), [weight_of(model, owners[1])])


def hessian_just_outside_rounding(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Is off by one part in 10⁹."""
    weight = weight_of(problem.model, owners[0])
    return own_blocks(plain_risk(problem, problem.model), [weight]) * (1 + 2**-30)


def with_parametrisation(model: nn.Module, owners: Iterable[str]) -> nn.Module:
    """A copy whose weights are what a parametrisation, here a plain copy, makes of their common
    original."""
    model = copy.deepcopy(model)
    for owner in owners:
        parametrize.register_parametrization(model.get_submodule(owner), "weight", _Copied())
    return model


def with_checkpoint(model: nn.Module, owner: str, *, use_reentrant: bool) -> nn.Module:
    """A copy with one module checkpointed."""
    model = copy.deepcopy(model)
    module = model.get_submodule(owner)
    # Unwrapped: what keeps torch.compile out of it imports the compiler first, which takes longer
    # than any claim.
    module.forward = partial(unwrap(checkpoint), module.forward, use_reentrant=use_reentrant)
    return model


class _Copied(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.clone()


def weight_of(model: nn.Module, owner: str) -> Tensor:
    """The weight of a submodule: its parameter, or what its parametrisation makes of it now."""
    weight = model.get_submodule(owner).weight
    assert isinstance(weight, Tensor)
    return weight


def _fresh(weight: Tensor) -> Tensor:
    return weight.detach().clone().requires_grad_()


def all_traps_alike(U: Tensor) -> dict[str, Tensor]:
    """Expects every trap to keep the blocks of each instance with itself."""
    own = torch.stack([U[r, :, r, :] for r in range(len(U))]).sum(0)
    return dict.fromkeys(("aliases", "one alias", "unused", "reentrant"), own)


def traps_harmless(U: Tensor) -> dict[str, Tensor]:
    """Expects every trap to give the Hessian of the tied weight."""
    return dict.fromkeys(("aliases", "one alias", "unused", "reentrant"), U.sum((0, 2)))


def traps_at_the_other_instance(U: Tensor) -> dict[str, Tensor]:
    """Exchanges the instance that a trap keeps with the one that it loses."""
    kept = {"one alias": U[1, :, 1, :], "reentrant": U[0, :, 0, :]}
    return {"aliases": 2 * U.sum((0, 2)), "unused": 0 * U[0, :, 0, :], **kept}
