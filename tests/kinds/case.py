"""A case of a kind of input: what it is made of, and its right values by a second route."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map


@dataclass
class Case:
    """A model, its loss, its batches, and what is known of the answers.

    Parameters
    ----------
    shares
        Of every batch in the risk; by the lengths of the targets if None.
    refused
        What the refusal of the Problem says; empty where it is admitted.
    refuses
        By group of calls, or by call, what the refusal says. All others give a number.
    says
        What a warning says; empty where there is none.
    right, right_ggn
        Traces by block: a function of the case that finds them.
    inside
        The context in which everything runs.
    tolerance
        Of an exact number, relative to its size; None for 1e-8 in float64 and 1e-4 else.
    """

    model: nn.Module
    loss_fn: Callable[..., Any]
    batches: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    shares: Sequence[float] | None = None
    refused: str = ""
    refuses: Mapping[str, str] = field(default_factory=dict)
    says: str = ""
    right: Callable[[Case], dict[str, float]] | None = None
    right_ggn: Callable[[Case], dict[str, float]] | None = None
    inside: Callable[[], Any] = nullcontext
    tolerance: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameters."""
        return next(self.model.parameters()).dtype

    def traces(self) -> dict[str, float]:
        """Right traces of the Hessian."""
        return self.right(self) if self.right else by_torch_func(doubled(self))

    def ggn_traces(self) -> dict[str, float]:
        """Right traces of the Gauss-Newton matrix."""
        return self.right_ggn(self) if self.right_ggn else ggn_by_torch_func(doubled(self))


def doubled(case: Case) -> Case:
    """The case in float64; itself where it is float64 already."""
    if case.dtype == torch.float64:
        return case
    other = copy.copy(case)
    other.model = copy.deepcopy(case.model).double()
    other.batches = tree_map(_double, case.batches)
    return other


def _double(leaf: object) -> object:
    if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
        return leaf.double()
    return leaf


def shares_of(case: Case) -> list[float]:
    """Share of every batch in the risk."""
    sizes = case.shares or [len(targets) for _, targets in case.batches]
    return [size / sum(sizes) for size in sizes]


def outputs_at(case: Case, tensors: Mapping[str, torch.Tensor], inputs: object) -> Any:
    """The selected outputs at other values of some parameters."""
    args = inputs if type(inputs) is tuple else (inputs,)
    kwargs = {}
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    with sdpa_kernel(SDPBackend.MATH):
        made = functional_call(case.model, dict(tensors), args, kwargs)
    return case.options.get("outputs", lambda made: made)(made)


def risk_at(case: Case, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Σ_b w_b ℓ_b at other values of some parameters."""
    return sum(
        share * case.loss_fn(outputs_at(case, tensors, inputs), targets).reshape(())
        for share, (inputs, targets) in zip(shares_of(case), case.batches, strict=True)
    )


def trained(case: Case) -> dict[str, torch.Tensor]:
    """Values of the parameters that are not frozen."""
    return {name: p.detach() for name, p in case.model.named_parameters() if p.requires_grad}


def by_layer(case: Case, of_tensor: Mapping[str, float]) -> dict[str, float]:
    """Traces by tensor added up by layer."""
    layers: dict[str, float] = {}
    for name, trace in of_tensor.items():
        layer = name.rpartition(".")[0].removesuffix(".parametrizations.weight") or name
        layers[layer] = layers.get(layer, 0.0) + trace
    return layers


def by_torch_func(case: Case) -> dict[str, float]:
    """Traces of the Hessian in every tensor by itself, by torch.func."""
    found = {}
    for name, p in trained(case).items():
        risk = lambda p, name=name: risk_at(case, {name: p})  # noqa: E731
        hessian = jacrev(jacrev(risk))(p)
        found[name] = hessian.detach().reshape(p.numel(), p.numel()).trace().item()
    return by_layer(case, found)


def by_differences(case: Case, step: float = 4e-3) -> dict[str, float]:
    """Traces from values of the risk alone, by second differences of fourth order."""
    found = {}
    with torch.no_grad():
        middle = float(risk_at(case, {}))
        for name, p in trained(case).items():
            found[name] = 0.0
            for i in range(p.numel()):
                e = torch.zeros_like(p).view(-1)
                e[i] = step
                near, far = (
                    sum(float(risk_at(case, {name: p + k * e.view_as(p)})) for k in (n, -n))
                    for n in (1, 2)
                )
                found[name] += (16 * near - far - 30 * middle) / (12 * step**2)
    return by_layer(case, found)


def by_plain_autograd(case: Case) -> dict[str, float]:
    """Traces by two backward passes a parameter: of the surrogate, where there is one."""
    params = {name: p for name, p in case.model.named_parameters() if p.requires_grad}
    risk = risk_at(case, {})
    gradients = torch.autograd.grad(risk, list(params.values()), create_graph=True)
    found = {}
    for (name, p), g in zip(params.items(), gradients, strict=True):
        found[name] = sum(
            float(torch.autograd.grad(entry, p, retain_graph=True)[0].view(-1)[i])
            for i, entry in enumerate(g.view(-1))
            if entry.requires_grad
        )
    return by_layer(case, found)


def ggn_by_torch_func(case: Case) -> dict[str, float]:
    """Traces of JᵀSJ, both by torch.func."""
    found: dict[str, float] = {}
    for share, (inputs, targets) in zip(shares_of(case), case.batches, strict=True):
        outputs = outputs_at(case, {}, inputs).detach()
        D = outputs.numel()
        loss = lambda f, like=outputs, y=targets: case.loss_fn(f.view_as(like), y).reshape(())  # noqa: E731
        S = jacrev(jacrev(loss))(outputs.reshape(-1)).detach()
        for name, p in trained(case).items():
            of = lambda p, name=name, x=inputs: outputs_at(case, {name: p}, x)  # noqa: E731
            J = jacrev(of)(p).detach().reshape(D, p.numel())
            found[name] = found.get(name, 0.0) + share * (J * (S @ J)).sum().item()
    return by_layer(case, found)
