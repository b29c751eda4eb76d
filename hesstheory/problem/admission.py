"""What is refused before anything is differentiated, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from hesstheory.problem.partition import Partition

_BATCH_NORM = nn.modules.batchnorm._BatchNorm

_DROPOUT = nn.modules.dropout._DropoutNd


def layout_of(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What of the parameters must stay while their values change."""
    return {
        name: (id(p), p.requires_grad, p.dtype, p.device, p.shape)
        for name, p in model.named_parameters()
    }


def check_types(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}: pass a torch.nn.Module (an instance, not its class)"
        )
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn is {loss_fn!r}: pass a function, such as torch.nn.functional.cross_entropy"
        )
    tensors = (*model.named_parameters(), *model.named_buffers())
    if lazy := [name for name, tensor in tensors if nn.parameter.is_lazy(tensor)]:
        raise ValueError(
            f"{', '.join(lazy)} of the model have no shape yet: call model(inputs) once before"
        )


def check_parameters(params: Mapping[str, Tensor]) -> None:
    if not params:
        raise ValueError(
            "the model has no trainable parameter: set requires_grad_(True) on those to be differentiated"
        )
    for what in ("dtype", "device"):
        if len(kinds := {getattr(p, what) for p in params.values()}) > 1:
            raise ValueError(
                f"the parameters have several {what}s {sorted(map(str, kinds))}: bring the model to one"
            )
    if not next(iter(params.values())).is_floating_point():
        raise ValueError(
            "the parameters are not real floating point numbers: convert the model with .double()"
        )
    if next(iter(params.values())).is_meta:
        raise ValueError(
            "the parameters are on the meta device, without values: use model.to_empty() and load them"
        )
    if bad := [name for name, p in params.items() if not bool(torch.isfinite(p).all())]:
        raise ValueError(
            f"{', '.join(bad)} holds NaN or infinity: restore a checkpoint from before the divergence"
        )
    _check_storage(params)


def _check_storage(params: Mapping[str, Tensor]) -> None:
    """Refuses entries that share memory, which autograd takes for different ones; views that interleave are fine."""
    before: list[tuple[int, str]] = []  # where in memory the tensors end that have begun
    for name, p in sorted(params.items(), key=lambda item: item[1].data_ptr()):
        if not p.numel():
            continue
        if _folds(p):
            raise ValueError(
                f"entries of {name} share memory (it has strides {p.stride()}; expanded?): make the small tensor the "
                "parameter and expand it in forward, or give every entry its own with nn.Parameter(p.detach().clone())"
            )
        before = [(end, other) for end, other in before if end > p.data_ptr()]
        for _, other in before:
            if torch.isin(_addresses(p), _addresses(params[other])).any():
                raise ValueError(
                    f"{other} and {name} are two parameters over one storage: autograd does not know that they are "
                    "tied and drops their cross blocks; assign the same nn.Parameter object to both modules, or give "
                    "one a clone"
                )
        before.append((p.data_ptr() + p.itemsize * _span(p), name))


def _folds(p: Tensor) -> bool:
    """Whether entries share memory: a dimension does not step over all that the smaller steps reach."""
    reach = 0
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _span(p: Tensor) -> int:
    """Entries from the first in memory to the last."""
    return 1 + sum((size - 1) * stride for stride, size in zip(p.stride(), p.shape, strict=True))


def _addresses(p: Tensor) -> Int[Tensor, " entries"]:
    offsets = torch.arange(_span(p)).as_strided(p.shape, p.stride())
    return p.data_ptr() + p.itemsize * offsets.flatten()


_EMBEDDING_OPTIONS = {
    "max_norm": "which changes its weights in every forward pass",
    "scale_grad_by_freq": "which makes its gradients no derivatives",
    "sparse": "whose gradients have no second derivative",
}


def check_embeddings(model: nn.Module) -> None:
    """Options whose gradients are no derivatives, no tensors of their shape, or whose forward pass changes weights."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            for option, why in _EMBEDDING_OPTIONS.items():
                if (value := getattr(module, option)) and (
                    module.weight.requires_grad or option == "max_norm"
                ):
                    raise ValueError(
                        f"embedding {name!r} has {option}={value}, {why}: build it without"
                    )


def check_modes(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORM) and (module.training or module.running_mean is None):
            where = "in train mode" if module.training else "without running statistics"
            raise ValueError(
                f"batch norm {name!r} is {where}: the risk is then no mean over samples, and batches change it; "
                "call model.eval(), or pass allow_train_mode=True to study the mini-batch Hessian"
            )
        if module.training and (
            (isinstance(module, _DROPOUT) and module.p > 0)
            or (isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0)
        ):
            raise ValueError(
                f"dropout {name!r} is active: every graph would draw another mask; call model.eval(), "
                "or pass allow_train_mode=True to study the masked network"
            )


def check_partition(partition: Partition, params: Mapping[str, Tensor]) -> None:
    if not isinstance(partition, Partition):
        raise TypeError(
            f"partition is a {type(partition).__name__}: pass Partition(blocks), or Partition.by_layer(model)"
        )
    listed = [name for tensors in partition.blocks.values() for name in tensors]
    if unknown := sorted(set(listed) - set(params)):
        raise ValueError(
            f"the partition names {unknown}, which the model does not train; it trains {list(params)}"
        )
    if missing := [name for name in params if name not in listed]:
        raise ValueError(
            f"the partition leaves out {missing}: put every trainable parameter into a block"
        )
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise ValueError(
            f"the partition lists {twice} more than once: a parameter belongs to one block"
        )
    if empty := [block for block, tensors in partition.blocks.items() if not tensors]:
        raise ValueError(f"the blocks {empty} hold no parameter: drop them")
