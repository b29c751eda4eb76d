"""What is refused before anything is differentiated, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Int
from torch import Tensor, nn

from hesstheory.problem.partition import Partition

# Base classes, private in PyTorch: of batch norms in all dimensions, SyncBatchNorm among them, and
# of all dropouts, those of channels and of SELU units among them.
_BATCH_NORM = nn.modules.batchnorm._BatchNorm

_DROPOUT = nn.modules.dropout._DropoutNd

# By the name of a parameter, what must stay while its values change: its identity, whether it is
# trained, its dtype, device and shape.
Layout = dict[str, tuple[int, bool, torch.dtype, torch.device, torch.Size]]


def layout_of(model: nn.Module) -> Layout:
    """What of the parameters must stay while their values change."""
    return {
        name: (id(p), p.requires_grad, p.dtype, p.device, p.shape)
        for name, p in model.named_parameters()
    }


def trained(model: nn.Module) -> Mapping[str, Tensor]:
    """The parameters that are not frozen, by name, each tied tensor once."""
    return MappingProxyType({name: p for name, p in model.named_parameters() if p.requires_grad})


# --- the model ----------------------------------------------------------------------------------


def check_model(model: nn.Module, params: Mapping[str, Tensor], allow_train_mode: bool) -> None:
    """Raises ValueError for parameters and modules of which a curvature would be wrong."""
    check_parameters(params)
    check_embeddings(model)
    if not allow_train_mode:
        check_modes(model)


def check_types(model: nn.Module, loss_fn: Callable[..., object]) -> None:
    """Raises TypeError for what is no module or no function, ValueError for lazy layers."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}: pass a torch.nn.Module (an instance, not its "
            "class)"
        )
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn is {loss_fn!r}: pass a function, such as torch.nn.functional.cross_entropy"
        )
    if isinstance(loss_fn, type):
        raise TypeError(f"loss_fn is the class {loss_fn.__name__}: pass {loss_fn.__name__}()")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(
            f"model is a {type(model).__name__}, whose hooks and copies do not fire for second "
            "derivatives: pass model.module"
        )
    tensors = (*model.named_parameters(), *model.named_buffers())
    if lazy := [name for name, tensor in tensors if nn.parameter.is_lazy(tensor)]:
        raise ValueError(
            f"{', '.join(lazy)} of the model have no shape yet: call model(inputs) once before"
        )


def check_functions(**given: object) -> None:
    """Raises TypeError for an option that is no function and not None."""
    for option, function in given.items():
        if function is not None and not callable(function):
            raise TypeError(f"{option} is {function!r}: pass a function, or leave it out")


def check_modes(model: nn.Module) -> None:
    """Raises ValueError for active dropout, and for batch norm that reads its batch."""
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORM) and (module.training or module.running_mean is None):
            where = "in train mode" if module.training else "without running statistics"
            raise ValueError(
                f"batch norm {name!r} is {where}: the risk is then no mean over samples, and "
                "batches change it; call model.eval(), or pass allow_train_mode=True to study the "
                "mini-batch Hessian"
            )
        if module.training and _drops(module):
            raise ValueError(
                f"dropout {name!r} is active: every graph would draw another mask; call "
                "model.eval(), or pass allow_train_mode=True to study the masked network"
            )


def _drops(module: nn.Module) -> bool:
    """Whether a module drops values in train mode."""
    if isinstance(module, _DROPOUT):
        return module.p > 0
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0


_EMBEDDING_OPTIONS = {
    "max_norm": "which changes its weights in every forward pass",
    "scale_grad_by_freq": "which makes its gradients no derivatives",
    "sparse": "whose gradients have no second derivative",
}


def check_embeddings(model: nn.Module) -> None:
    """Raises ValueError for embeddings whose gradients are no derivatives, or that move."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        for option, why in _EMBEDDING_OPTIONS.items():
            # A frozen embedding has no gradient, but max_norm writes into it all the same.
            matters = module.weight.requires_grad or option == "max_norm"
            if matters and (value := getattr(module, option)):
                raise ValueError(
                    f"embedding {name!r} has {option}={value}, {why}: build it without"
                )


def check_unchanged(model: nn.Module, layout: Layout, allow_train_mode: bool) -> None:
    """Raises ValueError where a model is no longer the one that was admitted.

    Values of parameters may change. Whether they are finite shows in the loss.
    """
    now = layout_of(model)
    if now != layout:
        names = now.keys() | layout.keys()
        changed = sorted(name for name in names if now.get(name) != layout.get(name))
        raise ValueError(
            f"{', '.join(changed)} of the model changed after the Problem was built (replaced, "
            "frozen, unfrozen, converted or moved): build a new Problem from the model as it is "
            "now"
        )
    if not allow_train_mode:
        check_modes(model)


# --- its parameters -----------------------------------------------------------------------------


def check_parameters(params: Mapping[str, Tensor]) -> None:
    """Raises ValueError for parameters that are not finite real tensors of one kind."""
    if not params:
        raise ValueError(
            "the model has no trainable parameter: set requires_grad_(True) on those to be "
            "differentiated"
        )
    # θ is one vector: it has one dtype and one device, so that the first tensor speaks for all.
    _check_one("dtype", {p.dtype for p in params.values()})
    _check_one("device", {p.device for p in params.values()})
    first = next(iter(params.values()))
    if first.is_complex():
        raise ValueError(
            "the parameters are complex, and a Hessian is one in real numbers: make "
            "torch.view_as_real(p) the parameter and call torch.view_as_complex(p) in forward"
        )
    if not first.is_floating_point():
        raise ValueError(
            "the parameters are not real floating point numbers: convert the model with .double()"
        )
    if first.is_meta:  # before any question about values, which would fail without a cure
        raise ValueError(
            "the parameters are on the meta device, without values: use model.to_empty() and load "
            "them"
        )
    if bad := [name for name, p in params.items() if not bool(torch.isfinite(p).all())]:
        raise ValueError(
            f"{', '.join(bad)} holds NaN or infinity: restore a checkpoint from before the "
            "divergence"
        )
    _check_storage(params)


def _check_one(what: str, kinds: set[torch.dtype] | set[torch.device]) -> None:
    """Raises ValueError for parameters of several dtypes or devices."""
    if len(kinds) > 1:
        raise ValueError(
            f"the parameters have several {what}s {sorted(map(str, kinds))}: bring the model to one"
        )


def _check_storage(params: Mapping[str, Tensor]) -> None:
    """Refuses entries that share memory; views that interleave without sharing are fine."""
    # In the order of memory, only tensors that have begun and not ended can overlap the next.
    begun: list[tuple[int, str]] = []  # ends and names
    for name, p in sorted(params.items(), key=lambda item: item[1].data_ptr()):
        if not p.numel():
            continue
        if _folds(p):
            raise ValueError(
                f"entries of {name} share memory (it has strides {p.stride()}; expanded?): make "
                "the small tensor the parameter and expand it in forward, or give every entry its "
                "own with nn.Parameter(p.detach().clone())"
            )
        begun = [(end, other) for end, other in begun if end > p.data_ptr()]
        for _, other in begun:
            if torch.isin(_addresses(p), _addresses(params[other])).any():
                raise ValueError(
                    f"{other} and {name} are two parameters over one storage: autograd does not "
                    "know that they are tied and drops their cross blocks; assign the same "
                    "nn.Parameter object to both modules, or give one a clone"
                )
        begun.append((p.data_ptr() + p.itemsize * _span(p), name))


def _folds(p: Tensor) -> bool:
    """Whether entries share memory: a stride is not longer than all that smaller steps reach."""
    reach = 0
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _span(p: Tensor) -> int:
    """Entries from the first in memory to the last."""
    # Strides of PyTorch are never negative: the first entry is the lowest.
    return 1 + sum((size - 1) * stride for stride, size in zip(p.stride(), p.shape, strict=True))


def _addresses(p: Tensor) -> Int[Tensor, " entries"]:
    """Where in memory every entry of a tensor is."""
    offsets = torch.arange(_span(p)).as_strided(p.shape, p.stride())
    return p.data_ptr() + p.itemsize * offsets.flatten()


# --- their blocks -------------------------------------------------------------------------------


def check_partition(partition: Partition, params: Mapping[str, Tensor]) -> None:
    """Raises TypeError or ValueError for blocks that do not hold every parameter once."""
    if not isinstance(partition, Partition):
        raise TypeError(
            f"partition is a {type(partition).__name__}: pass Partition(blocks), or "
            "Partition.by_layer(model)"
        )
    listed = [name for tensors in partition.blocks.values() for name in tensors]
    if unknown := sorted(set(listed) - set(params)):
        raise ValueError(
            f"the partition names {unknown}, which the model does not train; it trains "
            f"{list(params)}"
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
