"""Named blocks of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn


@dataclass(frozen=True)
class Partition:
    """Named blocks of parameters: `blocks` maps a block's name to the names of its tensors.

    A tensor tied across blocks is listed once, in a block of its own named after its owners (`"up+down"`).
    """

    blocks: Mapping[str, tuple[str, ...]]

    @classmethod
    def by(cls, model: nn.Module, label: Callable[[str], str]) -> Partition:
        """Blocks by a function of the parameter's name; every alias of a tied tensor is asked for its label."""
        blocks: dict[str, list[str]] = {}
        for aliases in _trainable(model).values():
            owners = dict.fromkeys(label(alias) for alias in aliases)
            if bad := [owner for owner in owners if not isinstance(owner, str) or not owner]:
                raise ValueError(
                    f"label({aliases[0]!r}) is {bad[0]!r}: return a non-empty string for every parameter"
                )
            blocks.setdefault("+".join(owners), []).append(aliases[0])
        return cls(MappingProxyType({name: tuple(tensors) for name, tensors in blocks.items()}))

    @classmethod
    def by_layer(cls, model: nn.Module) -> Partition:
        """One block per module that owns parameters; a parameter of the root module is a block by itself."""
        return cls.by(model, lambda name: _owner(name) or name)

    @classmethod
    def by_tensor(cls, model: nn.Module) -> Partition:
        """One block per parameter tensor."""
        return cls.by(model, lambda name: name)

    @classmethod
    def by_module(cls, model: nn.Module, depth: int = 1) -> Partition:
        """One block per submodule at the given depth below the root: the stages of a network."""
        if depth < 1:
            raise ValueError(
                f"depth is {depth}: the root itself has depth 0, its children 1; pass depth >= 1"
            )
        return cls.by(model, lambda name: ".".join(_owner(name).split(".")[:depth]) or name)


def _owner(parameter: str) -> str:
    """Path of the module that owns a parameter, seen through `torch.nn.utils.parametrize`."""
    module, parametrized, _ = parameter.partition(".parametrizations.")
    return module if parametrized else parameter.rpartition(".")[0]


def _trainable(model: nn.Module) -> dict[int, list[str]]:
    """Names of every trainable tensor, all aliases of a tied one together, in the order of `named_parameters`."""
    aliases: dict[int, list[str]] = {}
    for name, parameter in uncompiled(model).named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            aliases.setdefault(id(parameter), []).append(name)
    return aliases


def uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile was given: the same function of the same parameters, which can be differentiated twice."""
    original = getattr(model, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else model
