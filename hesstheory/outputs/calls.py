"""Calls of the modules that have a rule, recorded during one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hesstheory.outputs.rules import NORM_RULES, Norms


@dataclass
class Call:
    """A call of a module: its input, and the edge where the slope at its output is found."""

    module: nn.Module
    inputs: Tensor
    version: int
    edge: GradientEdge
    count: int = 1

    @property
    def is_as_recorded(self) -> bool:
        """Whether it is the only call, and its input still holds what it was given."""
        return self.count == 1 and self.inputs._version == self.version

    def norms(self, wanted: dict[str, str]) -> Norms | None:
        """The rule for the wanted tensors {attribute: name}; None where it does not fit."""
        return NORM_RULES[type(self.module)](self.module, self.inputs, wanted)


@contextmanager
def recorded_calls(model: nn.Module) -> Iterator[dict[str, Call]]:
    """Calls of the modules that have a rule, by name; further calls of a module are counted."""
    calls: dict[str, Call] = {}
    handles = []
    for name, module in model.named_modules():
        # A patched forward is another function than the rule's.
        if type(module) in NORM_RULES and "forward" not in vars(module):
            # Before what other hooks make of the output.
            hook = _recorder(calls, name)
            handles.append(module.register_forward_hook(hook, prepend=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _recorder(
    calls: dict[str, Call], name: str
) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    """A hook that notes the calls of one module."""

    def record(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if name in calls:
            calls[name].count += 1
            return
        if len(args) != 1 or not isinstance(output, Tensor) or not output.requires_grad:
            return
        (x,) = args
        if isinstance(x, Tensor):
            calls[name] = Call(module, x.detach(), x._version, get_gradient_edge(output))

    return record
