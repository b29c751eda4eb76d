"""Does every row of the outputs depend on its own row alone of the values on the way to it?

Per-sample gradients by the inputs of a module and the slopes at its output rest on that.
Slope and input of row n are then those of sample n.
A graph may prove it. Where it does not, a cotangent with other proportions in each row tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node

from hesstheory.autograd.graph import (
    is_in_train_mode,
    leaf_of,
    operation,
    parents_first,
    shape_of,
    user_function,
)


def generic(like: Tensor) -> Tensor:
    """Numbers between −1 and 1 that no structure of a network has: the cosines of 1, 2, 3, …"""
    return torch.arange(1, like.numel() + 1, device=like.device).to(like).cos().reshape(like.shape)


# --- proved by the graph ------------------------------------------------------------------------

_CONSTANT = "constant"
_PARAMETERS = "parameters"
_ROWS = "rows"

_OF_PARAMETERS = frozenset({"T", "Transpose", "View", "Permute"})

_ELEMENTWISE = frozenset(
    """Relu LeakyRelu Threshold Hardtanh Elu Celu Gelu Silu Mish Tanh Sigmoid Softplus Hardswish
    Hardsigmoid LogSigmoid""".split()  # noqa: SIM905
)

_POOLS = frozenset(
    {"MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D"}
)

_VIEWS = frozenset({"View", "UnsafeView", "ReshapeAlias"})

# Which operand of a map holds the values; the others may depend on parameters alone.
_VALUES_OF_MAP = {
    "Addmm": 1,  # bias, values, weight
    "Mm": 0,
    "Convolution": 0,
    "MkldnnConvolution": 0,
    "NativeBatchNorm": 0,
    "CudnnBatchNorm": 0,
}


def apart_by_graph(outputs: Tensor) -> bool:
    """Whether the graph shows that every row of the outputs goes by itself.

    True needs operations that are known to go row by row, all of them on values with one row for
    each output. False says nothing. Transposes, sums over rows, attention and operations that are
    not known are left to a `Trial`.
    """
    kinds: dict[Node | None, str] = {None: _CONSTANT}
    for node in parents_first(outputs.grad_fn):
        operands = [kinds[parent] for parent, _ in node.next_functions]
        kind = _kind(node, operands, len(outputs))
        if kind is None:
            return False
        kinds[node] = kind
    return kinds[outputs.grad_fn] == _ROWS


def _kind(node: Node, operands: Sequence[str], num_rows: int) -> str | None:
    """What a node makes: a function of parameters alone, or rows of rows; None: not known."""
    if leaf_of(node) is not None:
        return _PARAMETERS
    if operation(node) in _OF_PARAMETERS and list(operands) == [_PARAMETERS]:
        return _PARAMETERS
    shape = shape_of(node)
    if len(shape) == 0 or shape[0] != num_rows or user_function(node) is not None:
        return None
    return _ROWS if _goes_by_rows(node, operands, num_rows) else None


def _goes_by_rows(node: Node, operands: Sequence[str], num_rows: int) -> bool:
    """Whether an operation is known to make every row of its own rows and of parameters."""
    name = operation(node)
    if name in _VALUES_OF_MAP:
        others = list(operands)
        values = others.pop(_VALUES_OF_MAP[name])
        return values != _PARAMETERS and _ROWS not in others and not is_in_train_mode(node)
    if name in ("Add", "Sub", "Mul", "Div"):
        return _is_aligned(node, operands)
    if list(operands) != [_ROWS]:
        return False
    if name in ("Sum", "Mean"):
        return _keeps_rows(node)
    if name in _VIEWS:
        return shape_of(*node.next_functions[0])[0] == num_rows
    return name in _ELEMENTWISE or name in _POOLS


def _is_aligned(node: Node, operands: Sequence[str]) -> bool:
    """Whether the rows of the operands are those of the result."""
    of_rows = [n for n, kind in enumerate(operands) if kind == _ROWS]
    # A value of fewer axes would be spread over the rows of the result.
    num_axes = len(shape_of(node))
    return bool(of_rows) and all(
        len(shape_of(*node.next_functions[n])) == num_axes for n in of_rows
    )


def _keeps_rows(node: Node) -> bool:
    """Whether a sum or a mean goes over some axes, and the rows are not among them."""
    over: Sequence[int] = getattr(node, "_saved_dim", None) or ()
    num_axes = len(shape_of(*node.next_functions[0]))
    return bool(over) and 0 not in {_signed(axis) % num_axes for axis in over}


def _signed(axis: int) -> int:
    """An axis as PyTorch saves it, in 64 bits without a sign."""
    return axis - 2**64 if axis >= 2**63 else axis


# --- tried by a cotangent -----------------------------------------------------------------------

# Roundings of a slope, in units of eps. On small and large networks in float32 30 were seen.
_ROUNDINGS = 1000


class Trial:
    """A combination of cotangents in other proportions from row to row, and what becomes of it.

    Slopes at the output of a module are linear in the cotangent. Where they go by rows, those of
    the combination are the same combination in the same proportions, up to rounding. Where rows
    are coupled in any way, those of a generic combination are not.

    A coupling of less than a thousand roundings, 1e-4 in float32, is not seen. It changes traces
    by as much.

    Parameters
    ----------
    cotangents
        K cotangents of the outputs, along the first axis.
    num_modules
        Number of modules whose slopes will be seen.
    generator
        Draws the proportions.
    """

    def __init__(
        self,
        cotangents: Float[Tensor, "columns rows ..."],
        num_modules: int,
        generator: torch.Generator,
    ) -> None:
        # All shares are positive, so that no column cancels another one.
        self.shares = 1.5 + generic(cotangents.new_empty(len(cotangents)))
        proportions = 0.5 + torch.rand(cotangents.shape[1], generator=generator)
        self.proportions = proportions.to(cotangents)
        combined = torch.tensordot(self.shares, cotangents, 1)
        of_rows = self.proportions.reshape(-1, *[1] * (combined.ndim - 1))
        self.combination: Tensor = of_rows * combined
        self._difference = cotangents.new_zeros(num_modules, cotangents.shape[1])
        self._size = torch.zeros_like(self._difference)
        self._other_rows: set[int] = set()

    def seen(self, part: slice, slopes: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Adds up what the slopes of some of the cotangents say.

        Parameters
        ----------
        part
            Which cotangents: positions among the K given ones with `combination` behind them.
        slopes
            For each module its slopes (columns × rows × …); None for zero.

        Returns
        -------
        list[Tensor | None]
            The slopes; None for a module whose rows are not those of the outputs.
        """
        # The combination counts with the opposite sign and without its proportions.
        shares = torch.cat([self.shares, -self.shares.new_ones(1)])[part]
        of_rows = torch.where(
            (shares < 0)[:, None], 1 / self.proportions, torch.ones_like(self.proportions)
        )
        weights = shares[:, None] * of_rows
        for number, slope in enumerate(slopes):
            if slope is None:
                continue
            if slope.shape[1] != len(self.proportions):
                self._other_rows.add(number)
                continue
            flat = slope.flatten(2) if slope.ndim > 2 else slope[:, :, None]
            self._difference[number] += (weights * (flat @ generic(flat[0, 0]))).sum(0)
            self._size[number] += (weights.abs() * torch.linalg.vector_norm(flat, dim=2)).sum(0)
        return [
            None if number in self._other_rows else slope for number, slope in enumerate(slopes)
        ]

    def coupled(self) -> set[int]:
        """Numbers of the modules whose slopes do not go by rows."""
        bound = _ROUNDINGS * torch.finfo(self._size.dtype).eps * self._size
        wrong = (self._difference.abs() > bound).any(1).nonzero()[:, 0].tolist()
        return self._other_rows | set(wrong)
