"""The premise of exact traces, tr H = tr G: read off the graph, tried by second derivatives."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hesstheory.autograd.graph import owners, second_derivatives
from hesstheory.autograd.products import vjp
from hesstheory.autograd.rows import generic
from hesstheory.autograd.rules import InPlace, obstacle
from hesstheory.outputs.per_sample import Linearised

# Parameters from which on a second derivative costs as much as a pass of one sample: one parameter
# is tried instead of three.
_LARGE = 100_000

# Roundings, in eps, of a second derivative relative to the slope over the length of a parameter:
# over that length it changes the slope by so many. The bend of log exp w, which is rounding alone,
# stays below (tests/outputs/test_premise.py).
_ROUNDINGS = 32


class NotPiecewiseLinear(ValueError):
    """The outputs are not known to be piecewise linear in every single parameter (claim G3).

    tr H_ll may then differ from tr G_ll. The message names the module.

    Examples
    --------
    >>> import torch
    >>> from hesstheory import NotPiecewiseLinear, exact_traces, zoo
    >>> problem = zoo.problem("tiny_mlp", torch.Generator().manual_seed(0), num_samples=8)
    >>> try:
    ...     exact_traces(problem)
    ... except NotPiecewiseLinear as error:
    ...     print(str(error).partition(",")[0])
    tr H may not be tr G: in module 'act1' (Tanh)
    """


def check_piecewise_linear(line: Linearised) -> None:
    """Raises NotPiecewiseLinear where the graph of the outputs does not show the premise."""
    if line.outputs.grad_fn is None or obstacle(line.outputs) is None:
        return
    problem = line.problem
    # A second forward pass, since only a refusal needs to know the module, and what was in place.
    in_place = InPlace()
    with owners(problem.model) as owner, in_place:
        outputs = problem.outputs(line.batch)
    if (found := obstacle(outputs, in_place_is_linear=in_place.is_linear)) is None:
        return
    node, reason = found
    where = owner.get(node, "")
    kind = type(dict(problem.model.named_modules())[where]).__name__
    raise NotPiecewiseLinear(
        f"tr H may not be tr G: in module {where!r} ({kind}), {reason}; pass matrix=ggn for the "
        "exact Gauss-Newton traces, or estimate tr H"
    )


def check_no_bend(line: Linearised) -> None:
    """Raises NotPiecewiseLinear where ∂²⟨u, f⟩/∂θ_i² is not zero for a generic u.

    What the graph does not show may show here. Three parameters of a small network are tried, one
    amid the tensors of a large one.
    """
    u = generic(line.outputs)
    eps = torch.finfo(line.problem.dtype).eps
    for i, p, position in _tried(line):
        with second_derivatives():
            (g,) = torch.autograd.grad(line.outputs, [p], u, create_graph=True, allow_unused=True)
        if g is None or not g.requires_grad:
            continue
        (row,) = vjp([g.reshape(-1)[position]], [g.new_ones(1)], [p])
        if row is None:
            continue
        slope = float(g.detach().reshape(-1)[position])
        bend = float(row.reshape(-1)[position])
        # Half of the digits of the row, or roundings of the slope.
        rounding = max(
            eps**0.5 * _largest(row), _ROUNDINGS * eps * abs(slope) / (_largest(p) or 1.0)
        )
        if bend and abs(bend) > rounding:
            raise NotPiecewiseLinear(
                "tr H may not be tr G although the graph looks piecewise linear: in parameter "
                f"{i} a combination of the outputs of the first samples has the slope "
                f"{slope:.3g} and the second derivative {bend:.3g}; pass matrix=ggn, or estimate "
                "tr H"
            )


def _tried(line: Linearised) -> Iterator[tuple[int, Tensor, int]]:
    """Numbers of the tried parameters, with the tensor of each and the position in it."""
    P = line.problem.num_params
    params = list(line.problem.params.values())
    spans = list(line.problem.offsets.values())
    middle = spans[len(spans) // 2]
    numbers = {P // 4, P // 2, 3 * P // 4} if P < _LARGE else {sum(middle) // 2}
    for i in sorted(numbers):
        for p, (start, stop) in zip(params, spans, strict=True):
            if start <= i < stop:
                yield i, p, i - start


def _largest(values: Tensor) -> float:
    """The largest absolute value."""
    return float(values.detach().abs().max())
