"""Is the backward pass the derivative of the forward pass? Tried where something may replace it.

A `torch.autograd.Function` of the user, a hook on gradients, or a detached value can make the
gradient that of another function: a surrogate, as in straight-through rounding, gradient reversal
and semi-gradients. Second derivatives are lost where a Function keeps intermediate values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_modules
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import CheckpointFunction

from hesstheory.autograd.graph import (
    check_twice_differentiable,
    coarsest_eps,
    differentiating,
    graph_nodes,
    user_function,
)
from hesstheory.autograd.products import gradients_of
from hesstheory.autograd.rows import generic

if TYPE_CHECKING:
    from hesstheory.problem.risk import Problem

# --- what may replace the derivative ------------------------------------------------------------

_DATA = vars(torch._C.TensorBase)["data"].__get__  # what reading `tensor.data` calls
_DETACHING = (
    Tensor.detach,
    Tensor.detach_,
    torch.detach,
    _DATA,
    Tensor.item,
    Tensor.tolist,
    Tensor.__float__,
)
_HOOKING = (Tensor.register_hook,)


@dataclass(eq=False)
class Watch(TorchFunctionMode):
    """Notes what a forward pass does besides computing: detaches, hooks, autocast.

    Parameters
    ----------
    device_type
        Of the model, for autocast.
    """

    device_type: str
    detaches: bool = False
    disables: bool = False
    hooks: bool = False
    autocasts: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs the function, once it is noted."""
        self.autocasts |= torch.is_autocast_enabled(self.device_type)
        disabled = not torch.is_grad_enabled()
        watched = disabled or func in _DETACHING or func in _HOOKING
        if watched and _depends_on_parameters((args, kwargs)):
            self.detaches |= func in _DETACHING
            self.disables |= disabled
            self.hooks |= func in _HOOKING
        return func(*args, **(kwargs or {}))


def _depends_on_parameters(values: object) -> bool:
    """Whether a tensor among the values has a graph or is a leaf of one."""
    return any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(values))


def suspects(problem: Problem, loss: Tensor, watch: Watch) -> list[str]:
    """What may make the gradient another one than that of the forward pass, in words."""
    functions = {f.__name__ for node in graph_nodes(loss) if (f := user_function(node))}
    found = [
        "a checkpoint with use_reentrant=True (take use_reentrant=False)"
        if name == CheckpointFunction.__name__
        else f"the autograd.Function {name}"
        for name in sorted(functions)
    ]
    found += [f"the hook on parameter {name}" for name, p in problem.params.items() if _hooked(p)]
    found += [
        f"the backward hook of module {name!r}"
        for name, module in problem.model.named_modules()
        if module._backward_hooks or module._backward_pre_hooks
    ]
    if torch_modules._global_backward_hooks or torch_modules._global_backward_pre_hooks:
        found.append("a global backward hook")
    if watch.hooks:
        found.append("a hook that the forward pass registers on a tensor")
    # The forward of a Function runs without gradients, too.
    if watch.detaches or (watch.disables and not functions):
        found.append(
            "a value that the forward pass or the loss detaches (detach, .data, .item(), no_grad, "
            "or a checkpoint with use_reentrant=True)"
        )
    return found


def _hooked(p: Tensor) -> bool:
    """Whether gradients of a parameter go through hooks."""
    return bool(p._backward_hooks)


# --- the trials ---------------------------------------------------------------------------------

# Samples of the first batch that are tried: at most eight, and so few that about 26 passes through
# them cost less than four through all.
_SAMPLES = 8
_SHARE = 12

# Steps relative to the size of each tensor. Long ones bend or cross kinks, short ones round.
_STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)

# Times the error of a difference, which is itself known to a factor of a few.
_ERRORS = 30

# Relative to the derivative: what is smaller is no other function. Models that detach the maximum
# of a softmax are right to rounding alone.
_RELATIVE = 1e-5

# Cotangents for which the gradient must be as many times that of one: hooks that clip are not
# linear, and may leave the gradient of this batch as it is.
_SCALES = (1e-6, 1e6)


def check_is_derivative(problem: Problem, found: Sequence[str]) -> str:
    """What two trials along one direction show against the backward pass; empty if nothing.

    gᵀv is compared with differences of the risk, Hv with differences of g, both at several steps.
    The gradient of multiples of the risk is compared with multiples of g.

    Parameters
    ----------
    problem
        A few samples, in float64 where that is possible.
    found
        What is suspected.
    """
    try:
        trial = _Trial(problem)
    except RuntimeError:  # no gradient at all: products refuse it and name the cure
        return ""
    who = " or ".join(found)
    if not trial.is_linear():
        return f"the gradient is not linear in the slope that comes back, by {who}"
    if wrong := trial.wrong_slope():
        return f"the gradient is not that of the forward pass, by {who}: {wrong}"
    if wrong := trial.wrong_bend():
        return f"the second derivative is not that of the gradient, by {who}: {wrong}"
    return ""


def few_samples(problem: Problem) -> Problem:
    """The samples that are tried, in float64 where the model goes there."""
    size = problem.samples_of_batch[0]
    number = min(max(problem.num_samples // _SHARE, 1), _SAMPLES)
    few = problem.with_batches(problem.batches[:1]) if size is None else problem.head(number)
    if _loss_detaches(few):  # it would go on reading the parameters of the model in its own dtype
        return few
    try:
        doubled = few.double()
        doubled.loss(doubled.batches[0])
    except torch.OutOfMemoryError:
        raise
    # A model that is bound to its dtype: the differences then know how coarse they are.
    except Exception:
        return few
    return doubled


def _loss_detaches(problem: Problem) -> bool:
    """Whether the loss by itself detaches what depends on parameters, as semi-gradients do."""
    (batch,) = problem.batches
    outputs = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, problem.outputs(batch))
    watch = Watch(problem.device.type)
    with differentiating(), watch:
        problem.loss_of(outputs, batch)
    return watch.detaches or watch.disables


@dataclass
class _Trial:
    """The risk and its gradient along a line θ + hv."""

    problem: Problem
    eps: float = 0.0
    direction: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0
    gradient: list[Tensor] = field(default_factory=list)
    product: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        params = self.problem.params
        v = {name: generic(p.detach()) for name, p in params.items()}
        self.direction = {name: _size(p) / _size(v[name]) * v[name] for name, p in params.items()}
        loss, g = self._gradient(0.0, create_graph=True)
        self.eps = coarsest_eps(loss)
        self.loss = loss.item()
        self.gradient = [a.detach() for a in g]
        # What has no second derivative is refused where a product is asked for.
        with suppress(RuntimeError):
            check_twice_differentiable(loss)
            self.product = self._product(g)

    def _product(self, g: Sequence[Tensor]) -> list[Tensor]:
        """Hv, as autograd has it."""
        params = list(self.problem.params.values())
        pairs = zip(g, self.direction.values(), strict=True)
        with differentiating():
            slope = torch.stack([(a * v).sum() for a, v in pairs]).sum()
            rows = gradients_of(slope, params)
        return [
            torch.zeros_like(p) if row is None else row.detach()
            for row, p in zip(rows, params, strict=True)
        ]

    def is_linear(self) -> bool:
        """Whether the gradient of a multiple of the risk is that multiple of the gradient."""
        for scale in _SCALES:
            _, g = self._gradient(0.0, scale=scale)
            for a, b in zip(g, self.gradient, strict=True):
                bound = max(self.eps**0.5, _RELATIVE) * float(b.norm())
                if float((a / scale - b).norm()) > bound:
                    return False
        return True

    def wrong_slope(self) -> str:
        """What differences of the risk show against gᵀv."""
        pairs = zip(self.gradient, self.direction.values(), strict=True)
        claimed = torch.stack([(g * v).sum() for g, v in pairs]).sum()
        found = [
            torch.tensor((self._loss(h) - self._loss(-h)) / (2 * h), dtype=torch.float64)
            for h in _STEPS
        ]
        floor = [self.eps * abs(self.loss) / h for h in _STEPS]
        if _agrees(claimed, found, floor):
            return ""
        return f"along one direction {float(claimed):.6g} for {float(_best(found, floor)[0]):.6g}"

    def wrong_bend(self) -> str:
        """What differences of the gradient show against Hv, tensor by tensor."""
        if not self.product:
            return ""
        steps = _STEPS[::2]
        ends = [(self._gradient(h)[1], self._gradient(-h)[1]) for h in steps]
        for j, (name, row) in enumerate(zip(self.problem.params, self.product, strict=True)):
            found = [(a[j] - b[j]) / (2 * h) for (a, b), h in zip(ends, steps, strict=True)]
            size = float(self.gradient[j].norm())
            floor = [self.eps * size / h for h in steps]
            if not _agrees(row, found, floor):
                best = _best(found, floor)[0]
                return (
                    f"in {name}, {float(row.norm()):.6g} for {float(best.norm()):.6g} along one "
                    "direction"
                )
        return ""

    @contextmanager
    def _at(self, step: float) -> Iterator[None]:
        """The parameters hold θ + hv, and their own values again in the end.

        They stay the leaves that hooks belong to, and a loss that calls the model sees them move.
        """
        own = {name: p.data for name, p in self.problem.params.items()}
        with differentiating():
            for name, p in self.problem.params.items():
                p.data = own[name] + step * self.direction[name] if step else own[name]
            try:
                yield
            finally:
                for name, p in self.problem.params.items():
                    p.data = own[name]

    def _loss(self, step: float) -> float:
        """The risk at θ + hv."""
        with self._at(step):
            return self.problem.loss(self.problem.batches[0]).item()

    def _gradient(
        self, step: float, *, scale: float = 1.0, create_graph: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The risk and its gradient at θ + hv, through the hooks of the parameters."""
        params = self.problem.params
        with self._at(step):
            loss = self.problem.loss(self.problem.batches[0])
            found = gradients_of(
                loss,
                list(params.values()),
                create_graph=create_graph,
                grad_outputs=torch.full_like(loss, scale),
            )
        zeros = (torch.zeros_like(p) for p in params.values())
        return loss, [z if g is None else g for g, z in zip(found, zeros, strict=True)]


def _size(values: Tensor) -> float:
    """Euclidean norm, one where that is zero."""
    return float(values.detach().norm()) or 1.0


def _errors(found: Sequence[Tensor], floor: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
    """Of every difference its error, by its neighbours and by rounding, and itself."""
    for j in range(1, len(found)):
        yield float((found[j] - found[j - 1]).norm()) + floor[j], found[j]


def _best(found: Sequence[Tensor], floor: Sequence[float]) -> tuple[Tensor, float]:
    """The difference with the smallest error, and that error."""
    error, value = min(_errors(found, floor), key=lambda pair: pair[0])
    return value, error


def _agrees(claimed: Tensor, found: Sequence[Tensor], floor: Sequence[float]) -> bool:
    """Whether a derivative is that which differences show, within their error."""
    value, error = _best(found, floor)
    away = float((claimed.double() - value.double()).norm())
    return away <= _ERRORS * error + _RELATIVE * float(claimed.norm())
