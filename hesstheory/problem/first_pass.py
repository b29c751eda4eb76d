"""What the first forward passes show, and what is refused for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesstheory.autograd.graph import NotTwiceDifferentiable, differentiating, graph_leaves
from hesstheory.problem.batches import described
from hesstheory.problem.forward import cuda_devices
from hesstheory.problem.means import why_no_mean
from hesstheory.problem.surrogates import Watch, check_is_derivative, few_samples, suspects

if TYPE_CHECKING:
    from hesstheory.problem.risk import Problem


def check_risk(problem: Problem) -> tuple[str, str]:
    """Runs every batch once, and the first one twice.

    Warns of parameters that the loss does not reach. With one batch, also warns of a loss that is
    not the mean over its samples.

    Returns
    -------
    tuple[str, str]
        Why the loss is not the mean over samples; empty where it is. What shows that the backward
        pass is not the derivative of the forward pass, where that is allowed; empty where nothing
        does.

    Raises
    ------
    ValueError
        A batch fails, the loss is not a finite number, two passes differ, or the gradient is that
        of a surrogate. With several batches, also where the loss is not the mean over samples.
    """
    watch = Watch(problem.device.type)
    loss = _watched_loss(problem, watch)
    if not problem.allow_train_mode:
        _check_repeats(problem, loss)
    numbers = range(len(problem.batches))
    no_mean = _why_unknown(problem) or next(
        filter(None, (_explained_no_mean(problem, number) for number in numbers)), ""
    )
    check_mean(no_mean, len(problem.batches))
    for warning in _warnings(problem, loss, no_mean, watch):
        warnings.warn(warning, stacklevel=3)  # the line that builds the Problem
    return no_mean, _surrogate(problem, loss, watch)


def _watched_loss(problem: Problem, watch: Watch) -> Tensor:
    """The loss of the first batch, while the watch notes what the forward pass does."""
    # Compiled code cannot be watched. What fails for another reason fails again, and is explained.
    with suppress(Exception), differentiating(), watch:
        return problem.loss(problem.batches[0])
    with _explained(problem, 0):
        return problem.loss(problem.batches[0])


def _warnings(problem: Problem, loss: Tensor, no_mean: str, watch: Watch) -> Iterator[str]:
    """What limits the numbers of an admitted problem."""
    if no_mean:
        yield f"{no_mean}; the risk is taken to be this loss as it stands"
    if missing := _unreached(problem, loss):
        yield (
            f"the loss does not reach {', '.join(missing)}: their curvature is zero. Freeze them "
            "with requires_grad_(False) to leave them out, or check that the forward pass uses "
            "them and that no checkpoint with use_reentrant=True hides them"
        )
    if watch.autocasts and problem.dtype != torch.float64:
        yield (
            "the forward pass turns on autocast by itself: its numbers, and every curvature, are "
            "those of a coarser dtype; take the autocast out of forward"
        )


def _surrogate(problem: Problem, loss: Tensor, watch: Watch) -> str:
    """What shows that the gradient is a surrogate's; ValueError where that is not allowed."""
    if not (found := suspects(problem, loss, watch)):
        return ""
    surrogate = check_is_derivative(few_samples(problem), found)
    if surrogate and not problem.allow_surrogate:
        raise ValueError(
            f"{surrogate}. A curvature would be that of a surrogate: write the operation in torch "
            "operations, save inputs and not intermediate values for backward, take the hook or "
            "the detach away, or pass allow_surrogate=True to study the surrogate"
        )
    return surrogate


def _why_unknown(problem: Problem) -> str:
    """Why nothing is known of a mean over the samples of one batch; empty where that is known."""
    if problem.weight is not None or None not in problem.samples_of_batch:
        return ""
    return (
        f"the samples of the batch cannot be counted (inputs {described(problem.batches[0][0])}), "
        "so that the loss is not known to be the mean over samples"
    )


def _explained_no_mean(problem: Problem, number: int) -> str:
    """What shows that the loss of a batch is no mean over its terms, failures explained."""
    with _explained(problem, number):
        outputs = problem.outputs(problem.batches[number])
        problem.loss_of(outputs, problem.batches[number])  # refuses a loss that is not finite
        return why_no_mean(problem, number, outputs)


def check_mean(no_mean: str, num_batches: int) -> None:
    """Raises ValueError for several batches of a loss that is not the mean over samples."""
    if no_mean and num_batches > 1:
        raise ValueError(
            f"{no_mean}; drop samples with ignored targets, use reduction='mean', or pass all "
            "samples as one batch; where the mean is one over other terms than samples, pass "
            "weight=, a function of a batch that counts them"
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


# --- which parameters does it reach? ------------------------------------------------------------


def _unreached(problem: Problem, loss: Tensor) -> list[str]:
    """Names of the parameters that the loss of no batch depends on, given that of the first."""
    reached: set[int] = set()
    for number, batch in enumerate(problem.batches):
        reached |= graph_leaves(loss if number == 0 else problem.loss(batch))
        if all(id(p) in reached for p in problem.params.values()):
            return []
    return [name for name, p in problem.params.items() if id(p) not in reached]
