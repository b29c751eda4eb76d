"""The empirical risk of a model over batches."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from hesstheory.autograd.graph import NotTwiceDifferentiable, differentiating, graph_leaves
from hesstheory.problem.admission import (
    check_embeddings,
    check_modes,
    check_parameters,
    check_partition,
    check_types,
    layout_of,
)
from hesstheory.problem.batches import (
    Batch,
    described,
    num_rows,
    read_batches,
    rows_of,
    sizes_of_batches,
    to_double,
)
from hesstheory.problem.partition import Partition, uncompiled

_MEAN_CURE = (
    "; drop samples with ignored targets, use reduction='mean', or pass all samples as one batch"
)


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
        check_types(model, loss_fn)
        model = uncompiled(model)
        self.loss_fn = loss_fn
        self.batches = read_batches(batches)
        self.allow_train_mode = allow_train_mode
        self.batch_sizes = sizes_of_batches(self.batches)
        self._differentiate(model)
        check_parameters(self.params)
        check_embeddings(model)
        if not allow_train_mode:
            check_modes(model)
        self.partition = partition if partition is not None else Partition.by_layer(model)
        check_partition(self.partition, self.params)
        self._check_risk()

    def _differentiate(self, model: nn.Module) -> None:
        self.model = model
        self.params: Mapping[str, Tensor] = MappingProxyType(
            {name: p for name, p in model.named_parameters() if p.requires_grad}
        )
        self._layout = layout_of(model)

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
            raise KeyError(
                f"no block {block!r}; the blocks are {', '.join(map(repr, self.partition.blocks))}"
            )
        return self.partition.blocks[block]

    # --- the same problem, seen otherwise ---------------------------------------------------------------------------

    def with_batches(self, batches: Iterable[Batch]) -> Problem:
        """The same model, loss and partition over other batches."""
        other = copy.copy(self)
        other.batches = read_batches(batches)
        other.batch_sizes = sizes_of_batches(other.batches)
        if len(other.batches) > 1 and self._no_mean:
            raise ValueError(self._no_mean + _MEAN_CURE)
        return other

    def with_partition(self, partition: Partition) -> Problem:
        """The same problem cut into other blocks."""
        check_partition(partition, self.params)
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
                tree_map(lambda leaf, start=start: rows_of(leaf, start, start + batch_size), batch)
                for batch, size in zip(self.batches, self.batch_sizes, strict=True)
                for start in range(0, size, batch_size)
            ]
        )

    def largest(self) -> Problem:
        """The largest batch alone, the first of them where several are."""
        return self.with_batches(
            [max(zip(self.batch_sizes, self.batches, strict=True), key=lambda pair: pair[0])[1]]
        )

    def head(self, num_samples: int) -> Problem:
        """The first samples of the first batch alone, as one batch."""
        return self.with_batches(
            [tree_map(lambda leaf: rows_of(leaf, 0, num_samples), self.batches[0])]
        )

    def samples(self) -> Iterator[Problem]:
        """One problem per sample, in the order of the batches."""
        for batch, size in zip(self.batches, self.batch_sizes, strict=True):
            for n in range(size):
                yield self.with_batches(
                    [tree_map(lambda leaf, n=n: rows_of(leaf, n, n + 1), batch)]
                )

    # --- forward ----------------------------------------------------------------------------------------------------

    def outputs(self, batch: Batch) -> Any:
        """f_θ(x) with its graph; buffers, RNG state and modes of the model are left as they were.

        Raises ValueError where the model is no longer the one that the problem was built of; values may change.
        """
        self._check_unchanged()
        return self.outputs_at({}, batch[0])

    def outputs_at(self, tensors: Mapping[str, Tensor], inputs: Any) -> Any:
        """f at other values of some parameters, for inputs of any number of samples; for torch.func."""
        args = (
            inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        )
        kwargs = inputs if isinstance(inputs, dict) else {}
        with self._undisturbed():
            replaced = {name: b.clone() for name, b in self.model.named_buffers()} | dict(tensors)
            return (
                functional_call(self.model, replaced, args, kwargs)
                if replaced
                else self.model(*args, **kwargs)
            )

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss of one batch with its graph; raises ValueError where it is not a finite scalar."""
        return self.loss_of(self.outputs(batch), batch)

    def loss_of(self, outputs: Any, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss of given outputs of one batch."""
        loss = self._number(outputs, batch)
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the loss of a batch of {num_rows(batch[0])} samples is {loss.item()}: look for NaN or infinity in the "
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
            raise ValueError(
                f"loss_fn returned {shape}, not one real number: let it return the mean over the batch"
            )
        with differentiating():
            return loss.reshape(())

    def _check_unchanged(self) -> None:
        if (now := layout_of(self.model)) != self._layout:
            names = now.keys() | self._layout.keys()
            changed = sorted(name for name in names if now.get(name) != self._layout.get(name))
            raise ValueError(
                f"{', '.join(changed)} of the model changed after the Problem was built (replaced, frozen, unfrozen, "
                "converted or moved): build a new Problem from the model as it is now"
            )
        if not self.allow_train_mode:
            check_modes(self.model)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Gradients on, the RNG state given back, and attention by the kernel that has second derivatives."""
        with (
            torch.random.fork_rng(self._cuda_devices),
            differentiating(),
            sdpa_kernel(SDPBackend.MATH),
        ):
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
            warnings.warn(
                self._no_mean + "; the risk is taken to be this loss as it stands", stacklevel=3
            )
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
            hint = (
                "; a list is one input: use a tuple or a dict for several"
                if isinstance(inputs, list)
                else ""
            )
            raise ValueError(
                f"the model or the loss fails on batch {number} ({type(error).__name__}: {reason}): the inputs are "
                f"{described(inputs)}, the targets {described(targets)}, the model is {self.dtype} on {self.device}; "
                f"bring them to one dtype and device with .to(), and try loss_fn(model(inputs), targets) by hand{hint}"
            ) from error

    def _with_other_random_numbers(self, batch: Batch) -> Tensor:
        generators = [
            torch.default_generator,
            *(torch.cuda.default_generators[d.index] for d in self._cuda_devices),
        ]
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
            if size < 2 or not all(
                isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size for leaf in leaves
            ):
                return ""
            whole = self.loss_of(outputs, batch).item()
        first, rest = (
            self._number(
                *tree_map(partial(rows_of, start=start, stop=stop), (outputs, batch))
            ).item()
            for start, stop in ((0, 1), (1, size))
        )
        if not math.isfinite(first + rest):
            return (
                f"loss_fn gives {whole:.6g} for {size} samples, but {first:.6g} for the first and {rest:.6g} for the "
                "others: it is not the mean over samples (are the targets of a part ignored, as by ignore_index?)"
            )
        mean = (first + (size - 1) * rest) / size
        tolerance = (
            size * torch.finfo(self.dtype).eps * (abs(first) + (size - 1) * abs(rest) + abs(whole))
        )
        if abs(mean - whole) <= max(
            tolerance, 1e-3 * abs(mean) if self.dtype.itemsize < 4 else 0.0
        ):
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
