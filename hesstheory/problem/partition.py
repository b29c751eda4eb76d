"""Named blocks of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType

import torch
from jaxtyping import Int
from torch import Tensor, nn

from hesstheory.run.names import no_such


@dataclass(frozen=True)
class Partition:
    """Named blocks of parameters.

    A tensor tied across blocks is listed once, in a block of its own that is named after its
    owners (`"up+down"`).

    Parameters
    ----------
    blocks
        The names of the tensors of every block, by the name of the block.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from hesstheory import Partition
    >>> with torch.random.fork_rng():  # a fresh layer draws its weights
    ...     model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    >>> dict(Partition.by_layer(model).blocks)
    {'0': ('0.weight', '0.bias'), '2': ('2.weight', '2.bias')}
    >>> list(Partition.by_tensor(model).blocks)
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> list(Partition.by(model, lambda name: name.rpartition(".")[2]).blocks)
    ['weight', 'bias']
    """

    blocks: Mapping[str, tuple[str, ...]]

    def tensors_of(self, block: str) -> tuple[str, ...]:
        """Names of a block's tensors.

        Raises
        ------
        KeyError
            There is no such block; the message lists them and names the closest.
        """
        if block not in self.blocks:
            raise KeyError(no_such("block", block, self.blocks))
        return self.blocks[block]

    @classmethod
    def by(cls, model: nn.Module, label: Callable[[str], str]) -> Partition:
        """Blocks by a function of the parameter's name.

        Parameters
        ----------
        model
            Its trainable parameters are cut into blocks.
        label
            Maps the name of a parameter to that of its block. It is asked for every alias of a
            tied tensor.

        Raises
        ------
        ValueError
            A label is no string, or empty.
        """
        blocks: dict[str, list[str]] = {}
        for aliases in _trainable(model).values():
            # A dict keeps the order of the owners, a set would not.
            owners = dict.fromkeys(label(alias) for alias in aliases)
            if bad := [owner for owner in owners if not isinstance(owner, str) or not owner]:
                raise ValueError(
                    f"label({aliases[0]!r}) is {bad[0]!r}: return a non-empty string for every "
                    "parameter"
                )
            blocks.setdefault("+".join(owners), []).append(aliases[0])
        return cls(MappingProxyType({name: tuple(tensors) for name, tensors in blocks.items()}))

    @classmethod
    def by_layer(cls, model: nn.Module) -> Partition:
        """One block per module that owns parameters; one per parameter of the root module."""
        return cls.by(model, lambda name: _owner(name) or name)

    @classmethod
    def by_tensor(cls, model: nn.Module) -> Partition:
        """One block per parameter tensor."""
        return cls.by(model, lambda name: name)

    @classmethod
    def by_module(cls, model: nn.Module, depth: int = 1) -> Partition:
        """One block per submodule at the given depth below the root: the stages of a network.

        Raises
        ------
        ValueError
            The depth is less than 1.
        """
        if depth < 1:
            raise ValueError(
                f"depth is {depth}: the root itself has depth 0, its children 1; pass depth >= 1"
            )
        return cls.by(model, lambda name: ".".join(_owner(name).split(".")[:depth]) or name)


def offsets_of(params: Mapping[str, Tensor]) -> Mapping[str, tuple[int, int]]:
    """First and past-the-last position of every tensor, all laid end to end."""
    stops = list(accumulate(p.numel() for p in params.values()))
    return MappingProxyType(dict(zip(params, pairwise([0, *stops]), strict=True)))


def positions_of(
    partition: Partition, offsets: Mapping[str, tuple[int, int]]
) -> Mapping[str, Int[Tensor, " block_params"]]:
    """Positions of the parameters of every block, all tensors laid end to end."""
    return MappingProxyType(
        {
            block: torch.cat([torch.arange(*offsets[name]) for name in names])
            for block, names in partition.blocks.items()
        }
    )


def _owner(parameter: str) -> str:
    """Path of the module that owns a parameter, seen through `torch.nn.utils.parametrize`."""
    # A parametrized weight is called LAYER.parametrizations.weight.original.
    module, parametrized, _ = parameter.partition(".parametrizations.")
    return module if parametrized else parameter.rpartition(".")[0]


def _trainable(model: nn.Module) -> dict[int, list[str]]:
    """Names of every trainable tensor, all aliases of a tied one together, by its identity."""
    aliases: dict[int, list[str]] = {}
    # Partition and Problem must agree on names, and a compiled model calls its own _orig_mod.NAME.
    for name, parameter in uncompiled(model).named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            aliases.setdefault(id(parameter), []).append(name)
    return aliases


def uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile was given, which can be differentiated twice."""
    original = getattr(model, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else model
