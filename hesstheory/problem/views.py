"""The same problem, seen otherwise: other batches, other blocks, another precision."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hesstheory.autograd.graph import differentiating, graph_leaves
from hesstheory.problem.admission import check_partition, layout_of, trained
from hesstheory.problem.batches import (
    Batch,
    cut,
    described,
    read_batches,
    samples_of_batches,
    to_double,
)
from hesstheory.problem.first_pass import check_mean
from hesstheory.problem.partition import Partition

if TYPE_CHECKING:
    from hesstheory.problem.risk import Problem


def with_batches(problem: Problem, batches: Iterable[Batch]) -> Problem:
    """The same model, loss and partition over other batches.

    Raises
    ------
    TypeError, ValueError
        As from `Problem`: no sequence of `(inputs, targets)`, or several batches of a loss that
        is not the mean over samples.
    """
    # A shallow copy: what was checked once is not checked again, and the model is shared.
    other = copy.copy(problem)
    other.batches = read_batches(batches)
    other.samples_of_batch = samples_of_batches(other.batches, other.weight)
    check_mean(problem.no_mean, len(other.batches))
    return other


def with_partition(problem: Problem, partition: Partition) -> Problem:
    """The same problem cut into other blocks.

    Raises
    ------
    TypeError, ValueError
        As from `Problem`: the partition does not hold every parameter once.
    """
    check_partition(partition, problem.params)
    other = copy.copy(problem)
    vars(other).pop("index", None)  # cached, and of the other blocks
    other.partition = partition
    return other


@differentiating()
def double(problem: Problem) -> Problem:
    """The same problem in float64, on a copy of the model; itself where it is float64 already.

    Raises
    ------
    ValueError
        The loss reads parameters of the model by itself, and would read the old ones, or the model
        is scripted.
    """
    if problem.dtype == torch.float64:
        return problem
    other = with_batches(problem, [tree_map(to_double, batch) for batch in problem.batches])
    other.model = _doubled(problem.model)
    other.params = trained(other.model)
    other.layout = layout_of(other.model)
    if isinstance(problem.loss_fn, nn.Module):  # it may hold weights of its own
        other.loss_fn = copy.deepcopy(problem.loss_fn).double()
    before = graph_leaves(problem.loss(problem.batches[0]))
    if before & graph_leaves(other.loss(other.batches[0])):
        raise ValueError(
            "loss_fn reads parameters of the model by itself, so that a float64 copy would be "
            "measured wrongly: call model.double() before building the Problem, or let the model "
            "return the penalty"
        )
    return other


def _doubled(model: nn.Module) -> nn.Module:
    """A float64 copy of a model, with the hooks of its parameters."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(
            "the model is scripted, and the parameters of a copy would be no leaves: call "
            "model.double(), or pass the model as it was before torch.jit.script"
        )
    parameters = dict(model.named_parameters())
    tensors = {id(t): _double_leaf(t) for t in (*parameters.values(), *model.buffers())}
    # What a forward pass leaves on a module, as weight norm, pruning and modules that keep their
    # activations do, is no leaf and cannot be copied: it is made anew by the next pass.
    for module in model.modules():
        left = (x for x in tree_leaves(dict(vars(module))) if isinstance(x, Tensor) and x.grad_fn)
        tensors |= {id(x): x.detach() for x in left}
    return copy.deepcopy(model, tensors).double()


def _double_leaf(tensor: Tensor) -> Tensor:
    """A float64 copy of a parameter or buffer, through whose hooks gradients go as well."""
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128)
    copied = tensor.detach().clone()
    if tensor.is_floating_point():
        copied = copied.double()
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
    for hook in (tensor._backward_hooks or {}).values():
        copied.register_hook(hook)  # type: ignore[no-untyped-call]  # of PyTorch
    return copied


def _check_told_apart(problem: Problem) -> None:
    """Raises ValueError where the samples of a batch cannot be cut."""
    if None in problem.samples_of_batch:
        number = problem.samples_of_batch.index(None)
        raise ValueError(
            f"the samples of batch {number} cannot be told apart, since its tensors are "
            f"{described(problem.batches[number])}: pass smaller batches"
        )


def rebatched(problem: Problem, batch_size: int) -> Problem:
    """The same risk in batches of at most so many samples, for less memory.

    The order of the samples stays. Batches are cut and never joined.

    Raises
    ------
    ValueError
        The size is no whole number of at least 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}: pass a whole number of at least 1")
    _check_told_apart(problem)
    return with_batches(
        problem,
        [
            cut(batch, start, start + batch_size)
            for batch, size in zip(problem.batches, problem.batch_sizes, strict=True)
            for start in range(0, size, batch_size)
        ],
    )


def largest(problem: Problem) -> Problem:
    """The largest batch alone, the first of them where several are."""
    sizes = problem.batch_sizes
    return with_batches(problem, [problem.batches[sizes.index(max(sizes))]])


def head(problem: Problem, num_samples: int) -> Problem:
    """The first samples of the first batch alone, as one batch."""
    _check_told_apart(problem)
    return with_batches(problem, [cut(problem.batches[0], 0, num_samples)])


def samples(problem: Problem) -> Iterator[Problem]:
    """One problem per sample, in the order of the batches."""
    _check_told_apart(problem)
    for batch, size in zip(problem.batches, problem.batch_sizes, strict=True):
        for n in range(size):
            yield with_batches(problem, [cut(batch, n, n + 1)])
