"""Is tr H = tr G? The premise of exact traces, read off the graph and tried by second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from hesstheory.autograd.graph import owners, second_derivatives
from hesstheory.autograd.products import vjp
from hesstheory.autograd.rows import generic
from hesstheory.autograd.rules import obstacle
from hesstheory.outputs.per_sample import Linearised

_LARGE = 100_000  # parameters from which on a vector of them costs as much as a pass of one sample


class NotPiecewiseLinear(ValueError):
    """The outputs are not known to be piecewise linear in every single parameter: tr H_ll may not be tr G_ll (G3)."""


def check_piecewise_linear(line: Linearised) -> None:
    if line.outputs.grad_fn is None or obstacle(line.outputs) is None:
        return
    problem = line.problem
    with owners(problem.model) as owner:
        found = obstacle(problem.outputs(line.batch))
    assert found is not None
    node, reason = found
    where = owner.get(node, "")
    kind = type(problem.model.get_submodule(where)).__name__
    raise NotPiecewiseLinear(
        f"tr H may not be tr G: in module {where!r} ({kind}), {reason}; pass target='ggn' for the exact Gauss-Newton "
        "traces, or estimate tr H"
    )


def check_no_bend(line: Linearised) -> None:
    """∂²⟨u, f⟩/∂θ_i² = 0 up to rounding for a generic u, at three parameters of a small network and at one, amid
    the tensors, of a large one, where a second derivative costs as much as a gradient: what the graph does not show
    may show here."""
    params, spans = list(line.problem.params.values()), list(line.problem.offsets.values())
    P, u, eps = line.problem.num_params, generic(line.outputs), torch.finfo(line.problem.dtype).eps
    tried = {P // 4, P // 2, 3 * P // 4} if P < _LARGE else {sum(spans[len(spans) // 2]) // 2}
    for i in sorted(tried):
        p, start = next(
            (p, start) for p, (start, stop) in zip(params, spans, strict=True) if i < stop
        )
        with second_derivatives():
            (g,) = torch.autograd.grad(line.outputs, [p], u, create_graph=True, allow_unused=True)
        if g is None or not g.requires_grad:
            continue
        (row,) = vjp([g.reshape(-1)[i - start]], [g.new_ones(1)], [p])
        if row is None:
            continue
        slope, bend = float(g.detach().reshape(-1)[i - start]), float(row.reshape(-1)[i - start])
        # Over the length of the parameters a bend of rounding changes the slope by rounding.
        if bend and abs(bend) > max(
            eps**0.5 * _largest(row), 32 * eps * abs(slope) / (_largest(p) or 1.0)
        ):
            raise NotPiecewiseLinear(
                f"tr H may not be tr G although the graph looks piecewise linear: in parameter {i} a combination of "
                f"the outputs of the first samples has the slope {slope:.3g} and the second derivative {bend:.3g}; "
                "pass target='ggn', or estimate tr H"
            )


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max())
