"""Everything that an estimate could disturb, copied and compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from hesstheory.problem.risk import Problem

# Copies by name: of every type that an estimate could disturb.
State = dict[str, Any]


def state_of(problem: Problem) -> State:
    """Everything that an estimate could disturb, copied."""
    model = problem.model
    return {
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "gradients": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "requires_grad flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "train and eval flags": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: _hooks(module) for name, module in model.named_modules()},
        "hooks on parameters": {
            name: len(p._backward_hooks or ()) for name, p in model.named_parameters()
        },
        "batches": copy.deepcopy([list(batch) for batch in problem.batches]),
    }


def global_state() -> State:
    """Settings of the process that an estimate could disturb.

    The stream of `random` is not among them: type checkers move it too.
    """
    return {
        "the random stream of torch": torch.random.get_rng_state(),
        "the random stream of numpy": np.random.get_state(),  # noqa: NPY002
        "the default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "the number of threads": torch.get_num_threads(),
    }


def restore(state: State) -> None:
    """Gives the process back the settings of `global_state`."""
    torch.random.set_rng_state(state["the random stream of torch"])
    np.random.set_state(state["the random stream of numpy"])  # noqa: NPY002
    settings: dict[str, tuple[Callable[[], object], Callable[..., object]]] = {
        "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
        "anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        "the precision of float32 products": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    }
    for name, (now, put) in settings.items():
        if now() != state[name]:
            put(state[name])


def _hooks(module: torch.nn.Module) -> int:
    """How many hooks a module has."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind, ())) for kind in kinds)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of the entries that are not the same, bit for bit."""
    return [name for name in before if not _same(before[name], after[name])]


def _same(a: Any, b: Any) -> bool:
    """Whether two nested values are the same, bit for bit."""
    if isinstance(a, Mapping):
        return set(a) == set(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)
