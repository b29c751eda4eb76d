"""What the first forward passes show, and what is refused for it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hesstheory.autograd.graph import NotTwiceDifferentiable, graph_leaves
from hesstheory.problem.batches import cut, described
from hesstheory.problem.forward import cuda_devices, loss_value

if TYPE_CHECKING:
    from hesstheory.problem.risk import Problem


def check_risk(problem: Problem) -> str:
    """Runs every batch once, and the first one twice.

    Warns of parameters that the loss does not reach. With one batch, also warns of a loss that is
    not the mean over its samples.

    Returns
    -------
    str
        Why the loss is not the mean over samples; empty where it is.

    Raises
    ------
    ValueError
        A batch fails, the loss is not a finite number, or two passes differ. With several
        batches, also where the loss is not the mean over samples.
    """
    with _explained(problem, 0):
        loss = problem.loss(problem.batches[0])
    if not problem.allow_train_mode:
        _check_repeats(problem, loss)
    numbers = range(len(problem.batches))
    no_mean = next(filter(None, (_why_no_mean(problem, number) for number in numbers)), "")
    check_mean(no_mean, len(problem.batches))
    # Level 3 is the line that builds the Problem.
    if no_mean:
        warnings.warn(f"{no_mean}; the risk is taken to be this loss as it stands", stacklevel=3)
    if missing := _unreached(problem, loss):
        warnings.warn(
            f"the loss does not reach {', '.join(missing)}: their curvature is zero. Freeze them "
            "with requires_grad_(False) to leave them out, or check that the forward pass uses "
            "them and that no checkpoint with use_reentrant=True hides them",
            stacklevel=3,
        )
    return no_mean


def check_mean(no_mean: str, num_batches: int) -> None:
    """Raises ValueError for several batches of a loss that is not the mean over samples."""
    if no_mean and num_batches > 1:
        raise ValueError(
            f"{no_mean}; drop samples with ignored targets, use reduction='mean', or pass all "
            "samples as one batch"
        )


@contextmanager
def _explained(problem: Problem, number: int) -> Iterator[None]:
    """Says of a forward pass that fails what was given to what."""
    try:
        yield
    except (NotTwiceDifferentiable, torch.OutOfMemoryError):  # they name their own cure
        raise
    except (RuntimeError, TypeError, AttributeError, LookupError) as error:
        inputs, targets = problem.batches[number]
        reason = str(error).partition("\n")[0]
        hint = (
            "; a list is one input: use a tuple or a dict for several"
            if isinstance(inputs, list)
            else ""
        )
        raise ValueError(
            f"the model or the loss fails on batch {number} ({type(error).__name__}: {reason}): "
            f"the inputs are {described(inputs)}, the targets {described(targets)}, the model is "
            f"{problem.dtype} on {problem.device}; bring them to one dtype and device with .to(), "
            f"and try loss_fn(model(inputs), targets) by hand{hint}"
        ) from error


# --- is the model a function? -------------------------------------------------------------------


def _check_repeats(problem: Problem, loss: Tensor) -> None:
    """Raises ValueError where a second pass with other random numbers gives another loss."""
    again = _with_other_random_numbers(problem)
    # Half of the digits: threads may add up in another order, which moves the last of them.
    half_of_the_digits = torch.finfo(loss.dtype).eps ** 0.5
    if not torch.isclose(loss, again, rtol=half_of_the_digits, atol=0.0):
        raise ValueError(
            f"two forward passes on the same batch gave {loss.item()!r} and {again.item()!r}: the "
            "model is random (functional dropout?) or remembers; call model.eval(), or pass "
            "allow_train_mode=True"
        )


def _with_other_random_numbers(problem: Problem) -> Tensor:
    """The loss of the first batch, from other states of the global streams."""
    devices = cuda_devices(problem.device)
    generators = [torch.cuda.default_generators[device.index] for device in devices]
    with torch.random.fork_rng(devices):
        # Any other seed; the states are given back at the end.
        for generator in (torch.default_generator, *generators):
            generator.manual_seed(torch.initial_seed() ^ 1)
        return problem.loss(problem.batches[0])


# --- is the loss a mean over samples? -----------------------------------------------------------


def _why_no_mean(problem: Problem, number: int) -> str:
    """What shows that the loss of a batch is no mean over its samples; empty where nothing does.

    The outputs of the whole batch are cut into the first row and the others. Their losses cost
    no further pass of the model.
    """
    batch = problem.batches[number]
    size = problem.batch_sizes[number]
    with _explained(problem, number):
        outputs = problem.outputs(batch)
        if size < 2 or not _all_have_rows((outputs, batch[1]), size):
            return ""
        whole = problem.loss_of(outputs, batch).item()
    first, rest = (
        loss_value(
            problem.loss_fn, cut(outputs, start, stop), cut(batch, start, stop), problem.device
        ).item()
        for start, stop in ((0, 1), (1, size))
    )
    return _why_other_mean(whole, first, rest, size, torch.finfo(problem.dtype).eps)


def _why_other_mean(whole: float, first: float, rest: float, size: int, eps: float) -> str:
    """Why a loss is not the mean of that of its first sample and of that of the others."""
    if not math.isfinite(first + rest):
        return (
            f"loss_fn gives {whole:.6g} for {size} samples, but {first:.6g} for the first and "
            f"{rest:.6g} for the others: it is not the mean over samples (are the targets of a "
            "part ignored, as by ignore_index?)"
        )
    mean = (first + (size - 1) * rest) / size
    # A sum of `size` terms is rounded by at most size·eps of the sum of their magnitudes.
    magnitude = abs(first) + (size - 1) * abs(rest) + abs(whole)
    if abs(mean - whole) <= size * eps * magnitude:
        return ""
    return (
        f"loss_fn gives {whole:.6g} for {size} samples, but the mean of its parts is {mean:.6g}: "
        "it is not the mean over samples (reduction='sum', class weights or ignored targets?)"
    )


def _all_have_rows(parts: object, size: int) -> bool:
    """Whether every leaf that is not None is a tensor with a row for every sample."""
    return all(
        isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size
        for leaf in tree_leaves(parts)
        if leaf is not None
    )


# --- which parameters does it reach? ------------------------------------------------------------


def _unreached(problem: Problem, loss: Tensor) -> list[str]:
    """Names of the parameters that the loss of no batch depends on, given that of the first."""
    reached: set[int] = set()
    for number, batch in enumerate(problem.batches):
        reached |= graph_leaves(loss if number == 0 else problem.loss(batch))
        if all(id(p) in reached for p in problem.params.values()):
            return []
    return [name for name, p in problem.params.items() if id(p) not in reached]
