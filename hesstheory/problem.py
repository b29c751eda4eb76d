"""What is differentiated: the empirical risk of a model over batches, and the named blocks of its parameters."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

Batch = tuple[Any, Any] | list[Any]  # (inputs, targets); a DataLoader gives lists
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_DROPOUT = nn.modules.dropout._DropoutNd
_MEAN_CURE = "; drop samples with ignored targets, use reduction='mean', or pass all samples as one batch"


class NotTwiceDifferentiable(RuntimeError):
    """An operation of the model or the loss has no second derivative in PyTorch."""


@dataclass(frozen=True)
class Partition:
    """Named blocks of parameters: `blocks` maps a block's name to the names of its tensors.

    A tensor tied across blocks is listed once, in a block of its own named after its owners (`"up+down"`).
    """

    blocks: Mapping[str, tuple[str, ...]]

    @classmethod
    def by(cls, model: nn.Module, label: Callable[[str], str]) -> Partition:
        """Blocks by a function of the parameter's name; every alias of a tied tensor is asked for its label."""
        blocks: dict[str, list[str]] = {}
        for aliases in _trainable(model).values():
            owners = dict.fromkeys(label(alias) for alias in aliases)
            if bad := [owner for owner in owners if not isinstance(owner, str) or not owner]:
                raise ValueError(f"label({aliases[0]!r}) is {bad[0]!r}: return a non-empty string for every parameter")
            blocks.setdefault("+".join(owners), []).append(aliases[0])
        return cls(MappingProxyType({name: tuple(tensors) for name, tensors in blocks.items()}))

    @classmethod
    def by_layer(cls, model: nn.Module) -> Partition:
        """One block per module that owns parameters; a parameter of the root module is a block by itself."""
        return cls.by(model, lambda name: _owner(name) or name)

    @classmethod
    def by_tensor(cls, model: nn.Module) -> Partition:
        """One block per parameter tensor."""
        return cls.by(model, lambda name: name)

    @classmethod
    def by_module(cls, model: nn.Module, depth: int = 1) -> Partition:
        """One block per submodule at the given depth below the root: the stages of a network."""
        if depth < 1:
            raise ValueError(f"depth is {depth}: the root itself has depth 0, its children 1; pass depth >= 1")
        return cls.by(model, lambda name: ".".join(_owner(name).split(".")[:depth]) or name)


def _owner(parameter: str) -> str:
    """Path of the module that owns a parameter, seen through `torch.nn.utils.parametrize`."""
    module, parametrized, _ = parameter.partition(".parametrizations.")
    return module if parametrized else parameter.rpartition(".")[0]


def _trainable(model: nn.Module) -> dict[int, list[str]]:
    """Names of every trainable tensor, all aliases of a tied one together, in the order of `named_parameters`."""
    aliases: dict[int, list[str]] = {}
    for name, parameter in _uncompiled(model).named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            aliases.setdefault(id(parameter), []).append(name)
    return aliases


class Problem:
    """The empirical risk R(θ) = (1/N) Σ_n ℓ(f_θ(x_n), y_n) over batches of any sizes, weighted by sample count.

    `model` is called as `model(inputs)`, with a tuple of inputs spread over positions and a dict over keywords;
    `loss_fn(outputs, targets)` is the mean over a batch; `batches` holds `(inputs, targets)` pairs and is read once.
    Frozen parameters are left out. `torch.compile` around the model is taken off: autograd does not differentiate what
    it makes twice. Train-mode batch norm and active dropout are refused unless `allow_train_mode`.

    Raises ValueError for input that would give a silent wrong number; the message names the cure.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        batches: Iterable[Batch],
        partition: Partition | None = None,
        *,
        allow_train_mode: bool = False,
    ) -> None:
        _check_types(model, loss_fn)
        model = _uncompiled(model)
        self.loss_fn = loss_fn
        self.batches = _read(batches)
        self.allow_train_mode = allow_train_mode
        self.batch_sizes = _batch_sizes(self.batches)
        self._differentiate(model)
        _check_parameters(self.params)
        _check_embeddings(model)
        if not allow_train_mode:
            _check_modes(model)
        self.partition = partition if partition is not None else Partition.by_layer(model)
        _check_partition(self.partition, self.params)
        self._check_risk()

    def _differentiate(self, model: nn.Module) -> None:
        self.model = model
        self.params: Mapping[str, Tensor] = MappingProxyType(
            {name: p for name, p in model.named_parameters() if p.requires_grad}
        )
        self._layout = _layout(model)

    def __repr__(self) -> str:
        return (
            f"Problem({type(self.model).__name__}, {self.num_params} parameters in "
            f"{len(self.partition.blocks)} blocks, {self.num_samples} samples in {len(self.batches)} batches, "
            f"{self.dtype})"
        )

    # --- sizes and layout -------------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        return sum(self.batch_sizes)

    @cached_property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.params.values())

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each batch in the risk: its number of samples over N."""
        return tuple(size / self.num_samples for size in self.batch_sizes)

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.params.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    @cached_property
    def offsets(self) -> Mapping[str, tuple[int, int]]:
        """First and past-the-last position of every tensor in the flat parameter vector."""
        spans, start = {}, 0
        for name, p in self.params.items():
            spans[name] = (start, start + p.numel())
            start += p.numel()
        return MappingProxyType(spans)

    @cached_property
    def index(self) -> Mapping[str, Int[Tensor, " block_params"]]:
        """Positions of every block in the flat parameter vector (they need not be contiguous)."""
        return MappingProxyType(
            {
                block: torch.cat([torch.arange(*self.offsets[name]) for name in tensors])
                for block, tensors in self.partition.blocks.items()
            }
        )

    def tensors_of(self, block: str) -> tuple[str, ...]:
        """Names of a block's tensors; raises KeyError with the known names."""
        if block not in self.partition.blocks:
            raise KeyError(f"no block {block!r}; the blocks are {', '.join(map(repr, self.partition.blocks))}")
        return self.partition.blocks[block]

    # --- the same problem, seen otherwise ---------------------------------------------------------------------------

    def with_batches(self, batches: Iterable[Batch]) -> Problem:
        """The same model, loss and partition over other batches."""
        other = copy.copy(self)
        other.batches = _read(batches)
        other.batch_sizes = _batch_sizes(other.batches)
        if len(other.batches) > 1 and self._no_mean:
            raise ValueError(self._no_mean + _MEAN_CURE)
        return other

    def with_partition(self, partition: Partition) -> Problem:
        """The same problem cut into other blocks."""
        _check_partition(partition, self.params)
        other = copy.copy(self)
        other.__dict__.pop("index", None)
        other.partition = partition
        return other

    def double(self) -> Problem:
        """The same problem in float64, on a copy of the model; itself where it is float64 already."""
        if self.dtype == torch.float64:
            return self
        model, loss_fn = copy.deepcopy(self.model).double(), self.loss_fn
        if isinstance(loss_fn, nn.Module):  # it may hold weights of its own
            loss_fn = copy.deepcopy(loss_fn).double()
        other = self.with_batches(tree_map(to_double, batch) for batch in self.batches)
        other.loss_fn = loss_fn
        other._differentiate(model)
        if graph_leaves(self.loss(self.batches[0])) & graph_leaves(other.loss(other.batches[0])):
            raise ValueError(
                "loss_fn reads parameters of the model by itself, so that a float64 copy would be measured "
                "wrongly: call model.double() before building the Problem, or let the model return the penalty"
            )
        return other

    def rebatched(self, batch_size: int) -> Problem:
        """The same risk in batches of at most so many samples, for less memory; the order of samples stays."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}: pass a whole number of at least 1")
        return self.with_batches(
            [
                tree_map(lambda leaf, start=start: _rows(leaf, start, start + batch_size), batch)
                for batch, size in zip(self.batches, self.batch_sizes, strict=True)
                for start in range(0, size, batch_size)
            ]
        )

    def largest(self) -> Problem:
        """The largest batch alone, the first of them where several are."""
        return self.with_batches([max(zip(self.batch_sizes, self.batches, strict=True), key=lambda pair: pair[0])[1]])

    def head(self, num_samples: int) -> Problem:
        """The first samples of the first batch alone, as one batch."""
        return self.with_batches([tree_map(lambda leaf: _rows(leaf, 0, num_samples), self.batches[0])])

    def samples(self) -> Iterator[Problem]:
        """One problem per sample, in the order of the batches."""
        for batch, size in zip(self.batches, self.batch_sizes, strict=True):
            for n in range(size):
                yield self.with_batches([tree_map(lambda leaf, n=n: _rows(leaf, n, n + 1), batch)])

    # --- forward ----------------------------------------------------------------------------------------------------

    def outputs(self, batch: Batch) -> Any:
        """f_θ(x) with its graph; buffers, RNG state and modes of the model are left as they were.

        Raises ValueError where the model is no longer the one that the problem was built of; values may change.
        """
        self._check_unchanged()
        return self.outputs_at({}, batch[0])

    def outputs_at(self, tensors: Mapping[str, Tensor], inputs: Any) -> Any:
        """f at other values of some parameters, for inputs of any number of samples; for torch.func."""
        args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        kwargs = inputs if isinstance(inputs, dict) else {}
        with self._undisturbed():
            replaced = {name: b.clone() for name, b in self.model.named_buffers()} | dict(tensors)
            return functional_call(self.model, replaced, args, kwargs) if replaced else self.model(*args, **kwargs)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss of one batch with its graph; raises ValueError where it is not a finite scalar."""
        return self.loss_of(self.outputs(batch), batch)

    def loss_of(self, outputs: Any, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss of given outputs of one batch."""
        loss = self._number(outputs, batch)
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the loss of a batch of {_length(batch[0])} samples is {loss.item()}: look for NaN or infinity in the "
                "inputs, the targets and the parameters, or drop a batch whose targets are all ignored; a curvature of "
                "it would be meaningless"
            )
        return loss

    def _number(self, outputs: Any, batch: Batch) -> Float[Tensor, ""]:
        """What loss_fn gives, finite or not."""
        with self._undisturbed():
            loss = self.loss_fn(outputs, batch[1])
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn returned {shape}, not one real number: let it return the mean over the batch")
        with differentiating():
            return loss.reshape(())

    def _check_unchanged(self) -> None:
        if (now := _layout(self.model)) != self._layout:
            names = now.keys() | self._layout.keys()
            changed = sorted(name for name in names if now.get(name) != self._layout.get(name))
            raise ValueError(
                f"{', '.join(changed)} of the model changed after the Problem was built (replaced, frozen, unfrozen, "
                "converted or moved): build a new Problem from the model as it is now"
            )
        if not self.allow_train_mode:
            _check_modes(self.model)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Gradients on, the RNG state given back, and attention by the kernel that has second derivatives."""
        with torch.random.fork_rng(self._cuda_devices), differentiating(), sdpa_kernel(SDPBackend.MATH):
            yield

    @property
    def _cuda_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    # --- checks that need a forward pass ----------------------------------------------------------------------------

    def _check_risk(self) -> None:
        batch = self.batches[0]
        with self._naming(0):
            loss = self.loss(batch)
        if not self.allow_train_mode:
            again = self._with_other_random_numbers(batch)
            if not torch.isclose(loss, again, rtol=torch.finfo(loss.dtype).eps ** 0.5, atol=0.0):
                raise ValueError(
                    f"two forward passes on the same batch gave {loss.item()!r} and {again.item()!r}: the model is "
                    "random (functional dropout?) or remembers; call model.eval(), or pass allow_train_mode=True"
                )
        self._no_mean = next(filter(None, map(self._why_no_mean, range(len(self.batches)))), "")
        if self._no_mean and len(self.batches) > 1:
            raise ValueError(self._no_mean + _MEAN_CURE)
        if self._no_mean:
            warnings.warn(self._no_mean + "; the risk is taken to be this loss as it stands", stacklevel=3)
        if missing := self._unreached(loss):
            warnings.warn(
                f"the loss does not reach {', '.join(missing)}: their curvature is zero. Freeze them with "
                "requires_grad_(False) to leave them out, or check that the forward pass uses them and that no "
                "checkpoint with use_reentrant=True hides them",
                stacklevel=3,
            )

    @contextmanager
    def _naming(self, number: int) -> Iterator[None]:
        """Says of a forward pass that fails what was given to what."""
        try:
            yield
        except (NotTwiceDifferentiable, torch.OutOfMemoryError):
            raise
        except (RuntimeError, TypeError, AttributeError, LookupError) as error:
            inputs, targets = self.batches[number]
            reason = str(error).partition("\n")[0]
            hint = "; a list is one input: use a tuple or a dict for several" if isinstance(inputs, list) else ""
            raise ValueError(
                f"the model or the loss fails on batch {number} ({type(error).__name__}: {reason}): the inputs are "
                f"{_described(inputs)}, the targets {_described(targets)}, the model is {self.dtype} on {self.device}; "
                f"bring them to one dtype and device with .to(), and try loss_fn(model(inputs), targets) by hand{hint}"
            ) from error

    def _with_other_random_numbers(self, batch: Batch) -> Tensor:
        generators = [torch.default_generator, *(torch.cuda.default_generators[d.index] for d in self._cuda_devices)]
        with torch.random.fork_rng(self._cuda_devices):
            for generator in generators:
                generator.manual_seed(torch.initial_seed() ^ 1)
            return self.loss(batch)

    def _why_no_mean(self, number: int) -> str:
        """What shows that the loss of a batch is no mean over its samples; its outputs alone show it, at no cost."""
        batch, size = self.batches[number], self.batch_sizes[number]
        with self._naming(number):
            outputs = self.outputs(batch)
            leaves = [leaf for leaf in tree_leaves((outputs, batch[1])) if leaf is not None]
            if size < 2 or not all(isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size for leaf in leaves):
                return ""
            whole = self.loss_of(outputs, batch).item()
        first, rest = (
            self._number(*tree_map(partial(_rows, start=start, stop=stop), (outputs, batch))).item()
            for start, stop in ((0, 1), (1, size))
        )
        if not math.isfinite(first + rest):
            return (
                f"loss_fn gives {whole:.6g} for {size} samples, but {first:.6g} for the first and {rest:.6g} for the "
                "others: it is not the mean over samples (are the targets of a part ignored, as by ignore_index?)"
            )
        mean = (first + (size - 1) * rest) / size
        tolerance = size * torch.finfo(self.dtype).eps * (abs(first) + (size - 1) * abs(rest) + abs(whole))
        if abs(mean - whole) <= max(tolerance, 1e-3 * abs(mean) if self.dtype.itemsize < 4 else 0.0):
            return ""
        return (
            f"loss_fn gives {whole:.6g} for {size} samples, but the mean of its parts is {mean:.6g}: it is not the "
            "mean over samples (reduction='sum', class weights or ignored targets?)"
        )

    def _unreached(self, loss: Tensor) -> list[str]:
        reached: set[int] = set()
        for number, batch in enumerate(self.batches):
            reached |= graph_leaves(loss if number == 0 else self.loss(batch))
            if all(id(p) in reached for p in self.params.values()):
                return []
        return [name for name, p in self.params.items() if id(p) not in reached]


@contextmanager
def differentiating() -> Iterator[None]:
    """Gradients on, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def graph_nodes(value: Tensor) -> Iterator[Any]:
    """Every node of the graph that a tensor hangs on."""
    seen: set[Any] = set()
    stack = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parent for parent, _ in node.next_functions)


def graph_leaves(loss: Tensor) -> set[int]:
    """Identities of the leaf tensors that a graph ends in."""
    return {id(node.variable) for node in graph_nodes(loss) if hasattr(node, "variable")}


def to_double(leaf: Any) -> Any:
    """A float64 copy of a real tensor; anything else as it is."""
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _rows(leaf: Any, start: int, stop: int) -> Any:
    return leaf[start:stop] if isinstance(leaf, Tensor) and leaf.ndim else leaf


def _described(part: Any) -> str:
    """Dtype, shape and device of every tensor, and the kind of what is none."""
    return ", ".join(
        f"{leaf.dtype} {tuple(leaf.shape)} on {leaf.device}" if isinstance(leaf, Tensor) else type(leaf).__name__
        for leaf in tree_leaves(part)
    )


def _length(part: Any) -> int | None:
    return next((len(leaf) for leaf in tree_leaves(part) if isinstance(leaf, Tensor) and leaf.ndim), None)


def _read(batches: Iterable[Batch]) -> tuple[Batch, ...]:
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(f"batches is a {type(batches).__name__}: pass a list of (inputs, targets), or a DataLoader")
    with torch.random.fork_rng([]):  # a DataLoader draws from the global stream
        return tuple(batches)


def _batch_sizes(batches: Sequence[Batch]) -> tuple[int, ...]:
    if not batches:
        raise ValueError("batches is empty: pass at least one (inputs, targets) pair")
    sizes = []
    for number, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"batch {number} is a {type(batch).__name__}, not a pair: pass (inputs, targets) for every batch"
            )
        inputs, targets = (_length(part) for part in batch)
        if not inputs:
            raise ValueError(f"batch {number} has no samples: drop it, or pass tensors with the samples along axis 0")
        if targets is not None and inputs != targets:
            raise ValueError(f"batch {number} has {inputs} inputs but {targets} targets: give one target per input")
        sizes.append(inputs)
    return tuple(sizes)


def _layout(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What of the parameters must stay while their values change."""
    return {name: (id(p), p.requires_grad, p.dtype, p.device, p.shape) for name, p in model.named_parameters()}


def _uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile was given: the same function of the same parameters, which can be differentiated twice."""
    original = getattr(model, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else model


def _check_types(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: pass a torch.nn.Module (an instance, not its class)")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn is {loss_fn!r}: pass a function, such as torch.nn.functional.cross_entropy")
    tensors = (*model.named_parameters(), *model.named_buffers())
    if lazy := [name for name, tensor in tensors if nn.parameter.is_lazy(tensor)]:
        raise ValueError(f"{', '.join(lazy)} of the model have no shape yet: call model(inputs) once before")


def _check_parameters(params: Mapping[str, Tensor]) -> None:
    if not params:
        raise ValueError("the model has no trainable parameter: set requires_grad_(True) on those to be differentiated")
    for what in ("dtype", "device"):
        if len(kinds := {getattr(p, what) for p in params.values()}) > 1:
            raise ValueError(f"the parameters have several {what}s {sorted(map(str, kinds))}: bring the model to one")
    if not next(iter(params.values())).is_floating_point():
        raise ValueError("the parameters are not real floating point numbers: convert the model with .double()")
    if next(iter(params.values())).is_meta:
        raise ValueError("the parameters are on the meta device, without values: use model.to_empty() and load them")
    if bad := [name for name, p in params.items() if not bool(torch.isfinite(p).all())]:
        raise ValueError(f"{', '.join(bad)} holds NaN or infinity: restore a checkpoint from before the divergence")
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


def _check_embeddings(model: nn.Module) -> None:
    """Options whose gradients are no derivatives, no tensors of their shape, or whose forward pass changes weights."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            for option, why in _EMBEDDING_OPTIONS.items():
                if (value := getattr(module, option)) and (module.weight.requires_grad or option == "max_norm"):
                    raise ValueError(f"embedding {name!r} has {option}={value}, {why}: build it without")


def _check_modes(model: nn.Module) -> None:
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


def _check_partition(partition: Partition, params: Mapping[str, Tensor]) -> None:
    if not isinstance(partition, Partition):
        raise TypeError(
            f"partition is a {type(partition).__name__}: pass Partition(blocks), or Partition.by_layer(model)"
        )
    listed = [name for tensors in partition.blocks.values() for name in tensors]
    if unknown := sorted(set(listed) - set(params)):
        raise ValueError(f"the partition names {unknown}, which the model does not train; it trains {list(params)}")
    if missing := [name for name in params if name not in listed]:
        raise ValueError(f"the partition leaves out {missing}: put every trainable parameter into a block")
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise ValueError(f"the partition lists {twice} more than once: a parameter belongs to one block")
    if empty := [block for block, tensors in partition.blocks.items() if not tensors]:
        raise ValueError(f"the blocks {empty} hold no parameter: drop them")
