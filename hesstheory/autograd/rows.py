"""Does every row of the outputs depend on its own row alone of the values on the way to it?

Per-sample gradients by the inputs of a module and the slopes at its output rest on that: slope and input of row n are
then those of sample n. A graph may prove it; else a cotangent tells that has other proportions from row to row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.autograd.graph import parents_first


def generic(like: Tensor) -> Tensor:
    """Numbers between −1 and 1 that no structure of a network has."""
    return torch.arange(1, like.numel() + 1, device=like.device).to(like).cos().reshape(like.shape)


# --- proved by the graph ----------------------------------------------------------------------------------------------
_OF_PARAMETERS = frozenset({"T", "Transpose", "View", "Permute"})

_ELEMENTWISE = frozenset(
    """Relu LeakyRelu Threshold Hardtanh Elu Celu Gelu Silu Mish Tanh Sigmoid Softplus Hardswish Hardsigmoid
    LogSigmoid""".split()  # noqa: SIM905
)

_POOLS = frozenset(
    {"MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D"}
)

_VIEWS = frozenset({"View", "UnsafeView", "ReshapeAlias"})

_BATCH_NORMS = frozenset({"NativeBatchNorm", "CudnnBatchNorm"})

# Operands of a map that goes row by row: the values, then what may depend on parameters alone.
_MAPS: dict[str, Callable[[Sequence[Any]], tuple[Any, Sequence[Any]]]] = {
    "Addmm": lambda operands: (operands[1], (operands[0], operands[2])),
    "Mm": lambda operands: (operands[0], operands[1:]),
    "Convolution": lambda operands: (operands[0], operands[1:]),
    "MkldnnConvolution": lambda operands: (operands[0], operands[1:]),
    **dict.fromkeys(_BATCH_NORMS, lambda operands: (operands[0], operands[1:])),
}

_CONSTANT, _PARAMETERS, _ROWS = "constant", "parameters", "rows"


def apart_by_graph(outputs: Tensor) -> bool:
    """Whether the graph shows it: operations that are known to go row by row, all values with a row for each output.

    False says nothing: transposes, sums over rows, attention and whatever else is not known are left to a trial.
    """
    kinds: dict[Any, str] = {None: _CONSTANT}
    for node in parents_first(outputs.grad_fn):
        kind = _kind(node, [kinds[parent] for parent, _ in node.next_functions], len(outputs))
        if kind is None:
            return False
        kinds[node] = kind
    return kinds[outputs.grad_fn] == _ROWS


def _kind(node: Any, operands: Sequence[str], num_rows: int) -> str | None:
    """What a node makes: a function of parameters alone, or of values and parameters row by row; None: not known."""
    name = node.name().partition("Backward")[0].rpartition("::")[2].rstrip("0123456789")
    if name.endswith("AccumulateGrad") or (
        name in _OF_PARAMETERS and list(operands) == [_PARAMETERS]
    ):
        return _PARAMETERS
    shape = node._input_metadata[0].shape
    if (
        len(shape) == 0 or shape[0] != num_rows or hasattr(type(node), "_forward_cls")
    ):  # a Function of the user's
        return None
    if name in _MAPS:
        values, others = _MAPS[name](operands)
        return (
            _ROWS
            if values in (_ROWS, _CONSTANT) and _ROWS not in others and not _trains(node)
            else None
        )
    if name in ("Add", "Sub", "Mul", "Div"):
        of_rows = [n for n, kind in enumerate(operands) if kind == _ROWS]
        # A value of fewer axes would be spread over the rows of the result.
        return (
            _ROWS if of_rows and all(len(_shape(node, n)) == len(shape) for n in of_rows) else None
        )
    if list(operands) != [_ROWS]:
        return None
    if name in ("Sum", "Mean"):
        axes = len(node._saved_self_sym_sizes)
        over = getattr(node, "_saved_dim", None)
        return _ROWS if over and 0 not in {_signed(d) % axes for d in over} else None
    known = (
        name in _ELEMENTWISE
        or name in _POOLS
        or (name in _VIEWS and _shape(node, 0)[0] == num_rows)
    )
    return _ROWS if known else None


def _trains(node: Any) -> bool:
    return bool(getattr(node, "_saved_training", False))


def _shape(node: Any, number: int) -> Sequence[int]:
    """The shape of an operand."""
    parent, output = node.next_functions[number]
    shape: Sequence[int] = parent._input_metadata[output].shape
    return shape


def _signed(d: int) -> int:
    """An axis as PyTorch saves it, in 64 bits without a sign."""
    return d - 2**64 if d >= 2**63 else d


# --- tried by a cotangent ---------------------------------------------------------------------------------------------
_ROUNDINGS = (
    1000  # of a slope, in units of eps; 30 were seen, on small and large networks in float32
)


class Trial:
    """A combination of cotangents in other proportions from row to row, and what becomes of it.

    Slopes at the output of a module are linear in the cotangent. Where they go by rows, those of the combination are
    the same combination in the same proportions, up to rounding; else a generic one is not, whatever couples the rows.
    A coupling of less than a thousand roundings, 1e-4 in float32, is not seen, and changes traces by as much.
    """

    def __init__(
        self,
        cotangents: Float[Tensor, "columns rows ..."],
        num_modules: int,
        generator: torch.Generator,
    ) -> None:
        self.shares = 1.5 + generic(cotangents.new_empty(len(cotangents)))
        proportions = 0.5 + torch.rand(cotangents.shape[1], generator=generator)
        self.proportions = proportions.to(cotangents)
        combined = torch.tensordot(self.shares, cotangents, 1)
        of_rows = self.proportions.reshape(-1, *[1] * (combined.ndim - 1))
        self.combination: Tensor = of_rows * combined
        rows = cotangents.new_zeros(num_modules, cotangents.shape[1])
        self._difference, self._size, self._other_rows = rows, rows.clone(), set[int]()

    def seen(self, part: slice, slopes: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Slopes of some of the cotangents, behind which the combination comes as the last; None for other rows."""
        shares = torch.cat([self.shares, -self.shares.new_ones(1)])[part]
        of_rows = torch.where(
            (shares < 0)[:, None], 1 / self.proportions, torch.ones_like(self.proportions)
        )
        for number, slope in enumerate(slopes):
            if slope is None:
                continue
            if slope.shape[1] != len(self.proportions):
                self._other_rows.add(number)
                continue
            flat = slope.flatten(2) if slope.ndim > 2 else slope[:, :, None]
            weights = shares[:, None] * of_rows
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
